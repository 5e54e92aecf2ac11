"""`python -m tests.bench.servers`: WSGI servers under what an edge meets, one table.

Ours needs nothing but the environment of the project. The others come from a folder of your own:

    pip install --target /tmp/servers gevent granian waitress
    PYTHONPATH=/tmp/servers python -m tests.bench.servers gthread gevent granian waitress edge
"""

import json
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import psutil

from broker.ledger import migrate
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from tests.bench.sockets import Polls, Trickle, beat, request
from tests.processes import Process, until
from tests.services import Valkey, free_port

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
APP: Final = "tests.bench.served_app:application"
THREADS: Final = 1100
POLLS: Final = 1000
HOARD: Final = 500
SLOW: Final = 200
BEATS: Final = 1000
CALLERS: Final = 8

#: how each is started on a port, as its own manual says for many long calls
SERVERS: Final[dict[str, str]] = {
    "edge": f"{BIN / 'drawbridge'} edge --port {{port}}",
    "gthread": f"-m gunicorn -b 127.0.0.1:{{port}} -k gthread --threads {THREADS} "
    f"--worker-connections 4000 --keep-alive 75 --graceful-timeout 10 {APP}",
    "gevent": f"-m gunicorn -b 127.0.0.1:{{port}} -k gevent --worker-connections 4000 "
    f"--keep-alive 75 --graceful-timeout 10 {APP}",
    "granian": f"-m granian --host 127.0.0.1 --port {{port}} --interface wsgi "
    f"--blocking-threads {THREADS} --backpressure {THREADS} --no-ws {APP}",
    "waitress": f"-m waitress --listen 127.0.0.1:{{port}} --threads {THREADS} "
    f"--connection-limit 4000 --asyncore-use-poll {APP}",
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(SERVERS)))
@click.option("--seconds", default=5.0, show_default=True, help="How long claims are counted.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a server.")
def main(names: tuple[str, ...], *, seconds: float, as_json: bool) -> None:
    """Measure one server after the other, each on stores of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not as_json:
        python = platform.python_version()
        click.echo(f"{platform.platform()}, {os.cpu_count()} cores, Python {python}")
    for name in names or tuple(SERVERS):
        with ExitStack() as held:
            figures = _measure(held.enter_context(_serving(name)), seconds)
        click.echo(json.dumps({"server": name, **figures}) if as_json else _lines(name, figures))


class Served:
    """A server under test."""

    def __init__(self, process: Process, port: int, tokens: dict[str, str]) -> None:
        self.process = process
        self.port = port
        self.tokens = tokens

    def call(self, path: str, body: Any, *, kind: str = "worker") -> Any:
        """Post and return the JSON."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=60)) as sock:
            return beat(sock, request(path, body, token=self.tokens[kind]))

    def memory(self) -> int:
        """Return what it and its children hold."""
        root = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))


@contextmanager
def _serving(name: str) -> Iterator[Served]:
    folder = Path(tempfile.mkdtemp(prefix="drawbridge-servers-"))
    url = f"sqlite:///{folder / 'ledger.db'}"
    valkey = Valkey().start()
    migrate.upgrade(url)
    ledger = Ledger(url)
    now = datetime.now(UTC)
    tokens = {
        "worker": Credentials(ledger).create("worker", worker_id="w1", now=now)[1],
        "operator": Credentials(ledger).create("operator", now=now)[1],
    }
    ledger.close()
    port = free_port()
    env = {
        "DRAWBRIDGE_DATABASE_URL": url,
        "DRAWBRIDGE_RESERVATIONS_URL": valkey.url,
        "DRAWBRIDGE_ARTIFACTS_DIR": str(folder / "artifacts"),
        # one worker stands for a fleet, whose calls would each count by themselves
        "DRAWBRIDGE_CALLS_PER_SECOND": "100000",
        "BENCH_THREADS": str(THREADS),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    argv = [sys.executable, *SERVERS[name].format(port=port).split()]
    process = Process(argv, log=folder / "server.log", env=env, cwd=ROOT)
    served = Served(process, port, tokens)
    try:
        until(lambda: _answers(served), 60, process.tail)
        yield served
    finally:
        process.close()
        valkey.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(served: Served) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=5)) as sock:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _measure(served: Served, seconds: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"claims_per_s": round(_claims(served, seconds))}
    served.call("/jobs", {"type": "t"}, kind="operator")
    claimed = {"workerId": "w1", "leaseSeconds": 3600}
    job = served.call("/jobs/claim", claimed)["job"]["id"]
    before = served.memory()
    with Polls(served.port, served.tokens["worker"], POLLS) as polls:
        polls.settle()
        figures["waiting"] = polls.open()
        figures["not_waiting"] = polls.answers()
        figures["kib_per_wait"] = round((served.memory() - before) / 1024 / POLLS, 1)
        figures |= {f"waits_{key}": value for key, value in _beats(served, job).items()}
    with (
        Polls(served.port, served.tokens["worker"], HOARD) as polls,
        Trickle(served.port, served.tokens["worker"], SLOW),
    ):
        polls.settle()
        figures |= {f"slow_{key}": value for key, value in _beats(served, job).items()}
    with Polls(served.port, served.tokens["worker"], HOARD) as polls:
        polls.settle()
        waiting = polls.open()
        began = time.monotonic()
        os.kill(served.process.pid, signal.SIGTERM)
        try:
            served.process.wait(60)
            figures["stop_s"] = round(time.monotonic() - began, 1)
        except Exception:  # noqa: BLE001  a server that does not stop is a result
            figures["stop_s"] = None
        figures["stop_answered"] = f"{polls.answered()}/{waiting}"
    return figures


def _claims(served: Served, seconds: float) -> float:
    data = request(
        "/jobs/claim", {"workerId": "w1", "leaseSeconds": 60}, token=served.tokens["worker"]
    )
    counts = [0] * CALLERS
    until_ = time.monotonic() + seconds

    def call(at: int) -> None:
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=60)) as sock:
            while time.monotonic() < until_:
                beat(sock, data)
                counts[at] += 1

    threads = [threading.Thread(target=call, args=(at,)) for at in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def _beats(served: Served, job: str) -> dict[str, Any]:
    """Send heartbeats on connections of their own, as a fleet does."""
    data = request(
        f"/jobs/{job}/heartbeat", {"workerId": "w1", "leaseSeconds": 3600},
        token=served.tokens["worker"],
    )  # fmt: skip

    def one(_: int) -> float | None:
        began = time.monotonic()
        try:
            with closing(socket.create_connection(("127.0.0.1", served.port), timeout=5)) as sock:
                beat(sock, data)
        except (OSError, ValueError):
            return None
        return time.monotonic() - began

    with ThreadPoolExecutor(CALLERS) as pool:
        first = list(pool.map(one, range(40)))
        # one that answers nothing shall not be asked for an hour
        rest = list(pool.map(one, range(BEATS - 40))) if any(first) else []
    took = sorted(each for each in first + rest if each is not None)
    return {
        "ok_percent": round(100 * len(took) / len(first + rest), 2),
        "p50_ms": round(took[len(took) // 2] * 1000, 1) if took else None,
        "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 1) if took else None,
    }


def _lines(name: str, figures: dict[str, Any]) -> str:
    return "\n".join([name, *(f"  {key:<20} {value}" for key, value in figures.items())])


if __name__ == "__main__":
    main()
