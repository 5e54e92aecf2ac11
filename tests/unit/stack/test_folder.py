"""The data folder: one stack at a time, private, and tokens good in one database."""

from pathlib import Path

import pytest

from broker.stack.folder import Folder, FolderInUse


def test_a_second_stack_on_the_folder_is_refused_until_the_first_is_gone(tmp_path: Path):
    folder = Folder(tmp_path / "data")
    with (
        folder.locked(),
        pytest.raises(FolderInUse, match=r"process \d+\) runs on .*--data-dir"),
        Folder(tmp_path / "data").locked(),
    ):
        pass
    with folder.locked():
        assert folder.path.stat().st_mode & 0o077 == 0


def test_a_token_is_remembered_for_one_database(tmp_path: Path):
    folder = Folder(tmp_path)
    one = folder.token("operator", database_url="sqlite:////a")
    assert one == folder.token("operator", database_url="sqlite:////a")
    assert one != folder.token("operator", database_url="sqlite:////b")
