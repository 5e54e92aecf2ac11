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


def test_a_stack_is_found_where_the_last_one_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, names = Folder(tmp_path), ("edge", "broker")
    taken: set[int] = set()
    # what else runs on this machine must not decide it
    monkeypatch.setattr("broker.stack.servers.is_free", lambda port: port not in taken)
    monkeypatch.setattr(
        "broker.stack.servers.free_ports", lambda n: tuple(next(fresh) for _ in range(n))
    )
    fresh = iter(range(40_000, 41_000))
    first = folder.ports(names)
    assert len(set(first.values())) == len(names)
    assert folder.ports(names) == first
    taken.add(first["broker"])
    moved = folder.ports(names)
    assert moved["edge"] == first["edge"]
    assert moved["broker"] != first["broker"]
    (tmp_path / "ports.json").write_text('{"edge": ')
    assert set(folder.ports(names)) == set(names)


def test_a_port_that_cannot_be_is_left(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"edge": 70000}')
    assert 0 < Folder(tmp_path).ports(("edge",))["edge"] < 65536
