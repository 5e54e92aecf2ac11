"""``python -m tests.fuzz``: the long run, with a seed that is printed, and its figures."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tests.fuzz.run import ENVIRONMENT, ROOT, described, fuzz, tokens
from tests.processes import Process
from tests.services import Valkey

LOADERS = ROOT / "tests" / "attacks" / "test_fuzz.py"


@click.command()
@click.option("--seed", type=int, help="Repeat a run; without it one is chosen.")
@click.option("--cases", default=100, show_default=True, help="Random cases for each route.")
@click.option("--inputs", default=50_000, show_default=True, help="Inputs for each loader.")
def main(*, seed: int | None, cases: int, inputs: int) -> None:
    """Fuzz the loaders, then every route of an edge on loopback; exit 1 on any finding."""
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    click.echo(f"seed {seed}")
    failed = _loaders(seed, inputs)
    with tempfile.TemporaryDirectory(prefix="drawbridge-fuzz-") as name:
        failed |= _routes(Path(name), seed, cases)
    sys.exit(failed)


def _loaders(seed: int, inputs: int) -> bool:
    argv = [
        sys.executable, "-m", "pytest", "-q", "--timeout", "0", "-p", "no:randomly",
        f"--hypothesis-seed={seed}", str(LOADERS),
    ]  # fmt: skip
    environment = {**os.environ, "FUZZ_INPUTS": str(inputs)}
    return subprocess.run(argv, check=False, cwd=ROOT, env=environment).returncode != 0


def _routes(folder: Path, seed: int, cases: int) -> bool:
    valkey = Valkey().start()
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "DRAWBRIDGE_DATABASE_URL": f"sqlite:///{folder}/ledger.sqlite3",
        "DRAWBRIDGE_RESERVATIONS_URL": valkey.url,
        "DRAWBRIDGE_ARTIFACTS_DIR": str(folder / "artifacts"),
        "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "NORMAL",
    }
    command = Path(sys.executable).with_name("drawbridge")
    subprocess.run([command, "migrate"], check=True, env=environment)
    edge = Process(
        [command, "edge", "--port", "0", "--threads", "100", "--json"],
        log=folder / "edge.log",
        env=environment,
        stdout_apart=True,
    )
    try:
        url = json.loads(edge.wait_for(r'^\{"url": "http://127.0.0.1:\d+"\}$', 60)[0])["url"]
        credentials = tokens(environment["DRAWBRIDGE_DATABASE_URL"])
        report = fuzz(url, credentials, folder, "--seed", str(seed), "--max-examples", str(cases))
        crashes = (folder / "edge.log").read_text().count('"action": "crash"')
    finally:
        edge.close()
        valkey.remove()
    if report.failed:
        click.echo(report.text)
    idle = report.never_good(described(folder))
    click.echo(f"cases: {report.cases}; requests: {report.requests}; crashes: {crashes}")
    for status, count in sorted(report.statuses.items()):
        click.echo(f"{count:7} answered {status}")
    for operation in sorted(idle):
        click.echo(f"never succeeded: {operation}")
    return report.failed or bool(idle) or crashes > 0


if __name__ == "__main__":
    main()
