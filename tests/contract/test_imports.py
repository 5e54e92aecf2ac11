"""What an import drags in: import-linter cannot see what happens at run time, sys.modules can."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CELERY = {"celery", "kombu", "billiard"}
QUEUE = {"redis", "flask", "flask_smorest", "marshmallow", "sqlalchemy", "alembic", "psycopg"}


def imported_by(program: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return {module.partition(".")[0] for module in done.stderr.split()}


def modules_of(package: str) -> list[str]:
    """Return the names of a package's modules."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def test_an_import_is_seen() -> None:
    assert "redis" in imported_by("import redis.asyncio")


def test_the_edge_reaches_no_celery() -> None:
    imports = "\n".join(f"import {module}" for module in modules_of("edge_api"))
    assert not (CELERY | {"remote_worker"}) & imported_by(imports)


def test_the_worker_carries_nothing_of_the_queue() -> None:
    imports = "\n".join(f"import {module}" for module in modules_of("remote_worker"))
    assert not (CELERY | QUEUE | {"broker", "edge_api"}) & imported_by(imports)


@pytest.mark.parametrize("command", ["broker.cli", "remote_worker.cli"])
def test_a_command_line_loads_only_what_it_is_asked_for(command: str) -> None:
    assert find_spec(command)
    assert not (CELERY | QUEUE) & imported_by(f"import {command}")


@pytest.mark.parametrize("program", ["edge_api.cli", "broker.bridge.cli"])
def test_who_only_asks_for_the_revision_loads_no_alembic(program: str) -> None:
    assert "alembic" not in imported_by(f"import {program}")


@pytest.mark.parametrize("package", ["broker", "remote_worker"])
def test_a_package_is_only_a_docstring(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1
