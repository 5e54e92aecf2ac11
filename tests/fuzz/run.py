"""One run of schemathesis against an edge that listens; knows its command line and its verdict."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import requests

from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger

ROOT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = Path(sys.executable).with_name("schemathesis")
CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
#: for an edge under it: nobody here is told to come back later
ENVIRONMENT: Final = {
    "DRAWBRIDGE_CALLS_PER_SECOND": "100000",
    "DRAWBRIDGE_FAILURES_PER_MINUTE": "1000000",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    failed: bool
    text: str
    #: by method, path and status
    tally: Counter[str]

    @property
    def requests(self) -> int:
        """How many were made."""
        return self.tally.total()

    @property
    def cases(self) -> str:
        """What schemathesis says of its cases."""
        found = re.search(r"Test cases:\n +(.+)", self.text)
        return found[1] if found else "none"

    @property
    def statuses(self) -> Counter[str]:
        """How many got each status."""
        found: Counter[str] = Counter()
        for key, count in self.tally.items():
            found[key.rpartition(" ")[2]] += count
        return found

    def never_good(self, described: Mapping[str, object]) -> set[str]:
        """Return the operations of which no request succeeded."""
        good = {key.rpartition(" ")[0] for key in self.tally if key.rpartition(" ")[2] < "4"}
        return set(described) - good


def tokens(database_url: str) -> dict[str, str]:
    """Make a credential of each kind."""
    ledger = Ledger(database_url)
    credentials, now = Credentials(ledger), datetime.now(UTC)
    made = {
        "operator": credentials.create("operator", now=now)[1],
        "producer": credentials.create("producer", now=now)[1],
        "worker": credentials.create("worker", worker_id="w1", now=now)[1],
        "other": credentials.create("worker", worker_id="w2", now=now)[1],
    }
    ledger.close()
    return made


def fuzz(url: str, credentials: Mapping[str, str], folder: Path, *options: str) -> Report:
    """Read the description that an edge serves, and make requests of it."""
    bearer = {"Authorization": f"Bearer {credentials['operator']}"}
    served = requests.get(f"{url}/openapi.json", headers=bearer, timeout=60)
    (folder / "openapi.json").write_bytes(served.content)
    tally = folder / "tally.json"
    argv = [
        COMMAND, "--config-file", CONFIG, "run", folder / "openapi.json", "--url", url,
        "--checks", "all", "--suppress-health-check", "all", "--no-color",
        "--continue-on-failure", *options,
    ]  # fmt: skip
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            "FUZZ_URL": url,
            "FUZZ_TALLY": str(tally),
            "FUZZ_TOKENS": json.dumps(dict(credentials)),
            **{f"FUZZ_{kind.upper()}": token for kind, token in credentials.items()},
        },
    )  # fmt: skip
    counted = Counter[str](json.loads(tally.read_text()) if tally.exists() else {})
    return Report(done.returncode != 0, done.stdout + done.stderr, counted)


def described(folder: Path) -> dict[str, object]:
    """Return the operations of the description that was read, by method and path."""
    document = json.loads((folder / "openapi.json").read_text())
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "parameters"
    }
