"""Find or fetch the Codex CLI: the only place that knows its pinned version, size and cache.

    python deploy/demo/install_codex.py [--no-path] [--dir .demo/codex] [--json]

Prints the path of a `codex` that runs, and nothing else, on stdout. Exit code 3: there is none and
no npm to fetch it with. Exit code 4: npm could not.
"""

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

VERSION: Final = "0.169.0"
PACKAGE: Final = "@openai/codex"
UNPACKED_MB: Final = 404
DEFAULT_DIR: Final = Path(__file__).resolve().parents[2] / ".demo" / "codex"
INSTALL_TIMEOUT_S: Final = 900.0
RUN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Codex:
    """A Codex CLI that runs, and where it came from: path, cache or npm."""

    path: str
    version: str
    source: str


class NoNpm(Exception):
    """There is no Codex CLI here and no npm to fetch it with."""

    exit_code = 3


class InstallFailed(Exception):
    """npm could not install the Codex CLI."""

    exit_code = 4


def find(directory: Path = DEFAULT_DIR, *, use_path: bool = True) -> Codex | None:
    """Return the CLI on PATH, else the cached one of the pinned version, else None."""
    if use_path and (found := shutil.which("codex")) and (version := version_of(Path(found))):
        return Codex(found, version, "path")
    cached = _binary(directory)
    if cached.exists() and version_of(cached) == VERSION:
        return Codex(str(cached), VERSION, "cache")
    return None


def install(directory: Path = DEFAULT_DIR, *, use_path: bool = True) -> Codex:
    """Return what `find` finds, else install the pinned version by npm into the directory.

    Two at once wait for one another, and the second finds what the first has installed.
    """
    if found := find(directory, use_path=use_path):
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise NoNpm(
            "no `codex` on PATH, none cached, and no npm to install it with; install Node.js 20 "
            f"or newer, or the CLI itself (npm install -g {PACKAGE}@{VERSION}), and run this again"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / ".lock"):
        return find(directory, use_path=False) or _install_by(npm, directory)


def version_of(codex: Path) -> str | None:
    """Return the version a `codex` reports, or None when it does not run."""
    try:
        done = subprocess.run(
            [str(codex), "--version"],
            check=True,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().rpartition(" ")[2] or None


def _binary(directory: Path) -> Path:
    return directory / "node_modules" / ".bin" / "codex"


def _install_by(npm: str, directory: Path) -> Codex:
    say(
        f"Installing the Codex CLI {VERSION} by npm into {directory}: "
        f"about {UNPACKED_MB} MB unpacked, once."
    )
    # A package.json of its own: without one npm would climb to a folder above that has one.
    (directory / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    command = [npm, "install", "--prefix", str(directory), "--no-audit", "--no-fund"]
    command += ["--ignore-scripts", "--loglevel=error", f"{PACKAGE}@{VERSION}"]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()) as child:
        try:
            code = _wait(child, directory, began)
        finally:
            if child.poll() is None:
                child.kill()
    if code != 0:
        raise InstallFailed(f"`{' '.join(command)}` ended with exit code {code}")
    found = find(directory, use_path=False)
    if found is None:
        raise InstallFailed(f"npm ended well, but {_binary(directory)} does not run here")
    say(f"Installed in {time.monotonic() - began:.0f} s.")
    return Codex(found.path, found.version, "npm")


def _wait(child: "subprocess.Popen[bytes]", directory: Path, began: float) -> int:
    """Wait for npm, saying every few seconds how much has arrived."""
    while True:
        try:
            return child.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - began
            if passed > INSTALL_TIMEOUT_S:
                raise InstallFailed(f"npm was not done after {passed:.0f} s") from None
            say(f"  {_megabytes(directory)} of about {UNPACKED_MB} MB after {passed:.0f} s")


def _megabytes(directory: Path) -> int:
    """Return the size of what is there while npm moves things about."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total // 1_000_000


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Tell a person; stdout is for the path."""
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None, out: IO[str] = sys.stdout) -> int:
    """Print the path of a `codex` that runs."""
    parser = argparse.ArgumentParser(description="Find the Codex CLI, or install it by npm.")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="the cache (%(default)s)")
    parser.add_argument("--no-path", action="store_true", help="only the pinned version will do")
    parser.add_argument("--json", action="store_true", help="path, version and source as JSON")
    options = parser.parse_args(argv)
    try:
        codex = install(options.dir.absolute(), use_path=not options.no_path)
    except (NoNpm, InstallFailed) as problem:
        say(str(problem))
        return problem.exit_code
    print(json.dumps(asdict(codex)) if options.json else codex.path, file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
