"""Another user's processes for jobs: who he may be, what he is given and what he reaches."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from remote_worker import account, disk
from remote_worker.box import Box, Kind
from remote_worker.errors import Interrupted, Interruption, Misconfigured
from remote_worker.limits import Limits
from remote_worker.output import Captured
from remote_worker.preflight import check
from remote_worker.process import Command, run
from remote_worker.settings import Settings
from remote_worker.wire import Wire
from tests.unit.remote_worker.test_process import STUBBORN, gone


@pytest.fixture
def nobody() -> account.Account:
    if os.getuid() != 0:
        pytest.skip("at home: only root runs children as somebody else")
    return account.find("nobody")


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder that any user can pass through."""
    with TemporaryDirectory(prefix="drawbridge-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize(
    "name,why", [("no-such-user", "useradd"), ("root", "is root"), ("0", "is root"),
                 ("9" * 40, "no such user"), ("", "no such user")],
)  # fmt: skip
def test_a_user_that_will_not_do(name: str, why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        account.find(name)


def test_only_root_can_be_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_worker.account.os.getuid", lambda: 1234)
    with pytest.raises(Misconfigured, match="only root"):
        account.find("nobody")


def test_he_is_given_what_is_there_and_nothing_it_leads_to(
    nobody: account.Account, place: Path
) -> None:
    (place / "given" / "deep").mkdir(parents=True)
    (place / "given" / "file").write_text("x")
    (place / "ours").write_text("x")
    (place / "folder").mkdir()
    (place / "given" / "link").symlink_to(place / "ours")
    (place / "given" / "away").symlink_to(place / "folder")
    (place / "given" / "twice").hardlink_to(place / "ours")
    nobody.give(place / "given")
    owners = {path.name: path.lstat().st_uid for path in place.rglob("*")}
    assert {name for name, uid in owners.items() if uid == nobody.uid} == {
        "given", "deep", "file", "link", "away",
    }  # fmt: skip


def test_what_he_reaches_is_the_kernels_word(nobody: account.Account, place: Path) -> None:
    (place / "shut").mkdir(mode=0o700)
    (place / "shut" / "file").write_text("x")
    (place / "an 'odd\nname").write_text("x")
    there, odd = place / "shut", place / "an 'odd\nname"
    assert nobody.sees([there / "file", odd, place / "none", there]) == {odd, there}


@pytest.mark.parametrize("shut", [3, disk._MOST_SHUT + 1])
def test_folders_shut_to_their_owner_hide_no_size(
    nobody: account.Account, place: Path, shut: int
) -> None:
    """Root sees all, so the look is his whose the folders are."""
    folder = place / "of-him"
    for number in range(shut):
        # one in the other, and then many side by side
        folder = folder / "in" if number < 3 else place / "of-him" / f"n{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(os.urandom(6 << 20) if number + 1 == shut == 3 else b"")
    nobody.give(place / "of-him")
    folders = [path for path in (place / "of-him").rglob("*") if path.is_dir()]
    for path in sorted(folders, reverse=True):
        path.chmod(0)

    def look() -> str:
        limits = Limits(workspace_bytes=4 << 20)
        return str(disk.breach(place / "of-him", limits=limits))

    said = as_user(nobody, look)
    assert ("shut to their own owner" if shut > 3 else "grew beyond 4194304 bytes") in said
    # as they were, for whoever looks next
    assert {path.stat().st_mode & 0o777 for path in folders} == {0}


def as_user(who: account.Account, ask: Callable[[], str]) -> str:
    """Ask in a process of another user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgid(who.gid)
        os.setuid(who.uid)
        try:
            os.write(writer, ask().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said


def test_his_tree_is_ended_like_any_other(nobody: account.Account, place: Path) -> None:
    box = Box(kind=Kind.NONE, program="", hidden=(), work_dir=place, own=place, account=nobody)
    box.give(place)
    argv = ["/usr/bin/python3", "-I", "-S", "-c", STUBBORN]
    marks = (place / "child", place / "grandchild")
    with pytest.raises(Interrupted):
        run(
            Command(
                argv=argv, cwd=place, environment={"PATH": os.defpath}, time_limit_s=60,
                grace_s=0.2, box=box,
            ),
            sink=Captured(),
            interrupt=lambda: (
                Interruption.CANCELLED
                if all(mark.exists() and mark.read_text() for mark in marks)
                else None
            ),
        )  # fmt: skip
    assert all(mark.stat().st_uid == nobody.uid for mark in marks)
    assert all(gone(int(mark.read_text())) for mark in marks)


def test_check_says_who_the_children_are_and_where_he_cannot_come(
    nobody: account.Account, make_settings: Callable[..., Settings], wire: Wire, place: Path
) -> None:
    def gates(work_dir: Path) -> dict[str, tuple[bool, bool, str]]:
        given = make_settings(
            run_as=nobody, work_dir=work_dir, types=("command",), allow_program=("true",)
        )
        return {g.name: (g.ok, g.warning, g.detail) for g in check(given, wire).gates}

    (place / "shut").mkdir(mode=0o700)
    closed = gates(place / "shut" / "work")["work directory"]
    assert not closed[0]
    assert "user nobody cannot come there" in closed[2]
    found = gates(place / "work")
    assert found["work directory"][0]
    ok, warning, detail = found["isolation"]
    assert ok
    assert "children are user nobody" in detail
    assert warning == ("NOT shut in" in detail)
