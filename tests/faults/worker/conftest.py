"""A real edge on real stores, served over HTTP behind a proxy that lets down, and real daemons."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from tests import jobtypes
from tests.contract.edge.conftest import (  # noqa: F401  fixtures
    Caller,
    Edge,
    edge,
    make_edge,
    spare_apps,
    sqlite_url,
    user,
)
from tests.lossy import Lossy
from tests.processes import Process

ROOT = Path(__file__).resolve().parents[3]
WORKER = "w1"
Start = Callable[..., Process]


@pytest.fixture
def served(edge: Edge) -> Iterator[str]:  # noqa: F811  the fixture
    """Serve the edge on a real socket."""
    server = make_server("127.0.0.1", 0, edge.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    edge.services.waiting.stop()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lossy(served: str) -> Iterator[Lossy]:
    """Give a proxy before the edge that lets nobody down yet."""
    with Lossy(served) as running:
        yield running


@pytest.fixture(scope="session")
def job_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with job types for tests."""
    return jobtypes.install(tmp_path_factory.mktemp("job-types"))


@pytest.fixture
def token_file(edge: Edge, tmp_path: Path) -> Path:  # noqa: F811  the fixture
    """Give a file with the worker's token."""
    path = tmp_path / "token"
    bearer = edge.worker(WORKER).headers["Authorization"]
    path.write_text(bearer.removeprefix("Bearer ") + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def start(
    process: Callable[..., Process], lossy: Lossy, token_file: Path, tmp_path: Path, job_types: Path
) -> Start:
    """Start daemons on one work directory."""

    def call(*more: str, environ: Mapping[str, str] | None = None, **named: Any) -> Process:
        options = {
            "url": lossy.url, "token-file": token_file, "worker-id": WORKER,
            "work-dir": tmp_path / "work", "types": "echo,child", "wait-seconds": 2,
            "log-format": "json", "isolation": "none",
        }  # fmt: skip
        options |= {name.replace("_", "-"): value for name, value in named.items()}
        argv = [sys.executable, "-m", "remote_worker", "run"]
        for name, value in options.items():
            argv += [f"--{name}", str(value)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(job_types)}
        environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)} | dict(
            environ or {}
        )
        return process([*argv, *more], env=environment, cwd=ROOT)

    return call
