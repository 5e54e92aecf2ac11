"""The demo's repository: the only place that knows what the scripted `edit` finds to change.

python deploy/demo/repository.py <path>     prints the starting commit
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Final

#: Fixed names and times, so that the commits have the same ids on every machine.
_WHO: Final = MappingProxyType(
    {
        "GIT_AUTHOR_NAME": "Ada Example",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada Example",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        # Nobody's own git settings (signing, hooks, templates) belong in the demo.
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
)
README: Final = """\
# greetings

A package that greets people.

    python3 -m unittest discover -s tests -t .
"""
PACKAGE: Final = '''\
"""Greetings for every occasion."""


def greet(name: str) -> str:
    """Greet one person."""
    return f"Hello, {name}!"
'''
TESTS: Final = """\
import unittest

from greetings import greet


class TestGreet(unittest.TestCase):
    def test_greet_names_the_person(self) -> None:
        self.assertEqual(greet("Ada"), "Hello, Ada!")
"""
COMMITS: Final = (
    ("Say what this is", {"README.md": README, ".gitignore": "__pycache__/\n"}),
    ("Greet people", {"greetings/__init__.py": PACKAGE}),
    ("Test the greeting", {"tests/__init__.py": "", "tests/test_greet.py": TESTS}),
)
INSTRUCTION: Final = (
    "Add a function farewell(name) to the package greetings, in the manner of greet(name), "
    "with a test for it. Run the tests."
)


def create(path: Path) -> str:
    """Make the repository at a path that is empty or absent, and return its last commit."""
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty")
    _git(path, "init", "--quiet", "--initial-branch=main")
    for number, (subject, files) in enumerate(COMMITS):
        for name, text in files.items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        _git(path, "add", "--all")
        _git(path, "commit", "--quiet", "--message", subject, date=f"2026-01-0{number + 1}T12:00Z")
    return _git(path, "rev-parse", "HEAD")


def _git(path: Path, *arguments: str, date: str = "2026-01-01T12:00Z") -> str:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        **_WHO,
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_DATE": date,
    }
    done = subprocess.run(
        ["git", "-C", str(path), *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def main(argv: list[str] | None = None) -> int:
    """Create the repository and print its last commit."""
    parser = argparse.ArgumentParser(description="Create the demo's repository.")
    parser.add_argument("path", type=Path)
    options = parser.parse_args(argv)
    print(create(options.path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
