"""Job types of installed packages: found by entry point, refused before the first claim."""

import configparser
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remote_worker import daemon
from remote_worker.cli import main
from remote_worker.client import Client
from remote_worker.errors import Misconfigured
from remote_worker.handlers import GROUP, HANDLERS, load
from remote_worker.handlers.context import Context, Outcome
from remote_worker.job import parse_job
from remote_worker.lease import Terms
from remote_worker.redact import Redactor
from remote_worker.run import JobRun
from remote_worker.settings import Settings
from remote_worker.spool import Spool
from tests.unit.remote_worker.edge import WORKER, FakeEdge

EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "handlers"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package as pip leaves it: modules, and a dist-info with its entry points."""

    def call(points: dict[str, str], *, modules: Path = EXAMPLE) -> None:
        info = tmp_path / "site" / "some_handlers-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-handlers\nVersion: 1.0\n")
        parser = configparser.ConfigParser()
        parser[GROUP] = points
        with (info / "entry_points.txt").open("w") as file:
            parser.write(file)
        monkeypatch.syspath_prepend(str(info.parent))
        monkeypatch.syspath_prepend(str(modules))
        monkeypatch.delitem(sys.modules, "word_count", raising=False)

    return call


def example_points() -> dict[str, str]:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points: dict[str, str] = project["entry-points"][GROUP]
    return points


def test_without_packages_there_are_our_own() -> None:
    assert load() == HANDLERS


@pytest.mark.parametrize(
    "payload,ended", [({"text": "one two\nthree"}, "complete"), ({"text": 3}, "fail")]
)
def test_the_example_runs_as_a_job(
    install: Install, client: Client, edge: FakeEdge, make_settings: Callable[..., Settings],
    payload: dict[str, object], ended: str,
) -> None:  # fmt: skip
    install(example_points())
    settings = make_settings()
    settings.work_dir.mkdir()
    spool = Spool(settings.work_dir)
    spool.open()
    held = edge.offer("word_count", **payload)
    job_run = JobRun(
        parse_job(held.job), client=client, settings=settings, spool=spool, handlers=load(),
        redactor=Redactor(), terms=Terms(lease_s=60, interval_s=0.1), stopping=lambda: False,
        on_drain=lambda: None,
    )  # fmt: skip
    assert job_run.run()
    spool.close()
    assert held.ended == ended
    if ended == "complete":
        assert held.report["result"]["words"] == 3
        assert held.report["result"]["report"]["artifactId"] == "artifact-reports/words.txt"
        assert held.artifacts["reports/words.txt"]["text"] == "3\n"
        assert held.messages == ["counting"]
    else:
        assert held.report["errorType"] == "invalid_payload"


@pytest.mark.parametrize(
    "more,ended",
    [
        ({"state": "COUNTING", "meta": {"of": 3}}, "complete"),
        ({"state": "SUCCESS"}, "fail"),
        ({"state": "counting"}, "fail"),
        ({"meta": {"long": "x" * 4096}}, "fail"),
    ],
)
def test_a_handler_names_the_state_that_celery_sees(
    client: Client, edge: FakeEdge, make_settings: Callable[..., Settings], more: dict[str, Any],
    ended: str,
) -> None:  # fmt: skip
    """What the edge would refuse fails the job at once, and not its heartbeats."""

    def count(context: Context) -> Outcome:
        context.progress("counting", 5.0, **more)
        context.lease.confirm(max_age_s=0, tries=1)  # a heartbeat, now
        return Outcome(summary="", result={})

    settings = make_settings()
    settings.work_dir.mkdir()
    spool = Spool(settings.work_dir)
    spool.open()
    held = edge.offer("count")
    JobRun(
        parse_job(held.job), client=client, settings=settings, spool=spool,
        handlers={"count": count}, redactor=Redactor(), stopping=lambda: False,
        terms=Terms(lease_s=60, interval_s=60), on_drain=lambda: None,
    ).run()  # fmt: skip
    spool.close()
    assert held.ended == ended
    said = [one.body.get("progress") for one in edge.asked("/heartbeat")]
    told = {"message": "counting", "percent": 5.0, **more}
    assert said[-1] == (told if ended == "complete" else None)


@pytest.mark.parametrize(
    "points,said",
    [
        ({"codex_exec": "word_count:word_count"}, "is taken"),
        ({"a b": "word_count:word_count"}, "no name for a job type"),
        ({"x": "no_such_module:x"}, "cannot be loaded"),
        ({"x": "word_count:nothing"}, "cannot be loaded"),
        ({"x": "word_count:__doc__"}, "is no function"),
    ],
)
def test_a_handler_that_cannot_be_had_is_an_error_at_once(
    install: Install, points: dict[str, str], said: str
) -> None:
    install(points)
    with pytest.raises(Misconfigured, match=said):
        load()


def test_the_daemon_does_not_start_with_a_broken_handler(
    install: Install, edge: FakeEdge, token_file: Path, tmp_path: Path
) -> None:
    install({"x": "no_such_module:x"})
    arguments = ["--url", edge.url, "--token-file", str(token_file), "--worker-id", WORKER,
                 "--work-dir", str(tmp_path / "work"), "--types", "x"]  # fmt: skip
    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == daemon.EXIT_PREFLIGHT
    assert "cannot be loaded" in result.output
    assert not edge.asked("/claim")


LOADED = """
from remote_worker.handlers import load
print(sorted(load()), load()["word_count"].__module__)
"""


@pytest.mark.slow
def test_the_example_is_found_when_pip_has_installed_it(tmp_path: Path) -> None:
    """What test_the_example_runs_as_a_job imitates, by pip itself."""
    # pip builds beside the sources
    sources = shutil.copytree(EXAMPLE, tmp_path / "handlers")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    target = tmp_path / "site"
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, sources],
        check=True, capture_output=True,
    )  # fmt: skip
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True,
        env={"PYTHONPATH": f"{target}:{root}", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stdout.strip() == "['codex_exec', 'command', 'word_count'] word_count"
