"""What `check` says of memory and tasks is what the cgroups of this process say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker import bounds
from remote_worker.bounds import of_cgroups
from remote_worker.limits import Limits
from remote_worker.settings import Settings

GIB = 2**30


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_the_least_bound_on_the_way_up_counts(tmp_path: Path) -> None:
    unit = tmp_path / "user.slice" / "worker.service"
    put(unit / "memory.max", str(4 * GIB))
    put(unit / "pids.max", "max")
    put(unit.parent / "memory.max", str(2 * GIB))
    put(unit.parent / "pids.max", "512")
    found = of_cgroups("0::/user.slice/worker.service\n", tmp_path)
    assert found == {"memory": 2 * GIB, "pids": 512}


def test_the_older_cgroups_are_read_and_their_number_for_none_is_none(tmp_path: Path) -> None:
    put(tmp_path / "memory" / "a" / "memory.limit_in_bytes", str(3 * GIB))
    put(tmp_path / "memory" / "memory.limit_in_bytes", "9223372036854771712")
    put(tmp_path / "pids" / "pids.max", "max")
    own = "9:name=systemd:/\n8:pids:/\n4:memory:/a\n0::/\n"
    assert of_cgroups(own, tmp_path) == {"memory": 3 * GIB}


def test_a_cgroup_that_is_not_mounted_here_is_the_root(tmp_path: Path) -> None:
    put(tmp_path / "memory.max", str(GIB))
    assert of_cgroups("0::/docker/abc\n", tmp_path) == {"memory": GIB}
    assert of_cgroups("nonsense\n", tmp_path / "none") == {}


@pytest.mark.parametrize("uid,refused", [(0, False), (1000, True)])
def test_it_is_told_who_counts_and_what_the_kernel_does_not(
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    refused: bool,
) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    put(tmp_path / "pids.max", "99")
    monkeypatch.setattr(bounds, "_OWN", own)
    monkeypatch.setattr(bounds, "_ROOT", tmp_path)
    monkeypatch.setattr("remote_worker.isolation.os.getuid", lambda: uid)
    limits = Limits(memory_bytes=GIB, tasks=77)
    said = bounds.told(make_settings(isolation="none", limits=limits))
    assert "each job: 1024 MiB of memory and 77 tasks, counted by the worker" in said
    assert ("the kernel refuses" in said) is refused
    assert said.endswith("worker and all jobs: 99 tasks, by cgroup")
    (tmp_path / "pids.max").unlink()
    assert "no bound by a cgroup" in bounds.told(make_settings(isolation="none", limits=limits))
