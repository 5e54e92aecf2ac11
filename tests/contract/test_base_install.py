"""The base install is the worker, and what it must not carry cannot be imported there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("broker", "edge_api", "remote_worker", "setup.cfg", "pyproject.toml", "README.md")
UNWANTED = ("celery", "kombu", "redis", "flask", "marshmallow", "sqlalchemy", "alembic", "psycopg")


def run(*argv: str | Path, cwd: Path) -> str:
    """Run a program to its good end and return what it said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing is left in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone, held to the locked versions, in a clean virtual environment."""
    place = tmp_path_factory.mktemp("base")
    run(sys.executable, "-m", "venv", "venv", cwd=place)
    pins = re.findall(r"^[a-z0-9-]+==[^ ]+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (place / "constraints.txt").write_text("\n".join(pins), encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt"]
    run(place / "venv/bin/python", "-m", "pip", "install", *options, wheel, cwd=place)
    return place / "venv/bin/python"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_base_install_starts_the_worker(python: Path, tmp_path: Path) -> None:
    said = run(python.parent / "drawbridge-worker", "--help", cwd=tmp_path)
    assert "run" in said
    assert "check" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", UNWANTED)
def test_the_base_install_has_no(module: str, python: Path, tmp_path: Path) -> None:
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is not None)"
    run(python, "-c", find, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_queue_says_what_to_install(python: Path, tmp_path: Path) -> None:
    asked = [str(python.parent / "drawbridge"), "edge"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "celery-drawbridge[" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_holds_the_files_that_are_not_python(wheel: Path) -> None:
    names = set(run(sys.executable, "-m", "zipfile", "-l", str(wheel), cwd=wheel.parent).split())
    kept = (".lua", ".json", ".mako")
    wanted = {
        str(file.relative_to(ROOT))
        for package in ("broker", "edge_api", "remote_worker")
        for file in (ROOT / package).rglob("*")
        if file.suffix in {*kept, ".py"} and "__pycache__" not in file.parts
    }
    assert wanted
    assert wanted <= names
