"""The compose file without containers: its command lines run here, on loopback addresses."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from tests.services import missing, postgres_binaries, valkey_binary

ROOT: Final = Path(__file__).resolve().parents[1]
#: Debian puts servers there, which are not on everybody's PATH
PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
#: what .env must or may say; each another word, so that one in the wrong place is found
SECRETS: Final = {
    name: f"{name.lower().replace('_', '')}1"
    for name in (
        "LEDGER_PASSWORD", "EDGE_DB_PASSWORD", "EDGE_REDIS_PASSWORD", "BRIDGE_REDIS_PASSWORD",
        "BROKER_PASSWORD", "FLOWER_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    )
}  # fmt: skip


def program(name: str) -> str:
    """Return where a program is; at home a test without it is skipped."""
    found = shutil.which(name, path=PATH)
    if found is None:
        missing(f"{name} is not installed")
    return found


@cache
def compose() -> dict[str, Any]:
    """Return the compose file as docker-compose reads it, with the profile of the worker."""
    argv = [program("docker-compose"), "-f", str(ROOT / "docker-compose.yml")]
    done = subprocess.run(
        [*argv, "--profile", "worker", "config"],
        check=False, capture_output=True, text=True, cwd=ROOT,
        env={"PATH": PATH, "HOME": os.environ.get("HOME", "/"), **SECRETS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


class Here:
    """What stands in the place of the addresses and folders that only containers have."""

    def __init__(self, folder: Path, places: Mapping[str, str]) -> None:
        self.folder = folder
        self._places = dict(places)
        # longest first: one place may be the beginning of another
        words = sorted(map(re.escape, places), key=len, reverse=True)
        self._any = re.compile("|".join(words))
        self._programs = folder / "programs"
        self._programs.mkdir()
        for name, target in (
            ("redis-server", valkey_binary()), ("psql", postgres_binaries() / "psql"),
        ):  # fmt: skip
            (self._programs / name).symlink_to(target)

    def said(self, text: str) -> str:
        """Return a text of the file with every place replaced."""
        return self._any.sub(lambda found: self._places[found[0]], text)

    def argv(self, service: str) -> list[str]:
        """Return the command line of a service."""
        return [self.said(word) for word in compose()["services"][service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        """Return its environment; programs of this installation come first."""
        told = compose()["services"][service].get("environment", {})
        path = os.pathsep.join([str(self._programs), sysconfig.get_path("scripts"), PATH])
        home = {"PATH": path, "TMPDIR": str(self.folder), "HOME": str(self.folder)}
        return home | {name: self.said(str(value)) for name, value in told.items()}
