"""The data folder: one stack at a time, private, and tokens good in one database."""

import socket
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


def test_a_stack_is_found_where_the_last_one_was(tmp_path: Path):
    folder, names = Folder(tmp_path), ("edge", "broker")
    first = folder.ports(names)
    assert len(set(first.values())) == len(names)
    assert folder.ports(names) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["broker"]))
        other.listen()
        moved = folder.ports(names)
        assert moved["edge"] == first["edge"]
        assert moved["broker"] != first["broker"]
    (tmp_path / "ports.json").write_text('{"edge": ')
    assert set(folder.ports(names)) == set(names)
