"""A cut of `make chaos` for the gate: half a minute of random faults on each database."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos.__main__ import judge
from tests.chaos.parts import stock_kombu, whole_stack
from tests.chaos.report import Options

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def options(folder: Path, *, seconds: float, database: str) -> Options:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"CHAOS_SEED={seed}")
    return Options(seed=seed, seconds=seconds, databases=(database,), folder=folder)


@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def test_random_faults_break_no_promise(tmp_path: Path, database: str):
    report = whole_stack.run(options(tmp_path, seconds=30, database=database))
    print(report.figures)
    assert judge([report]) == []


def test_stock_kombu_consumption_is_found_out(tmp_path: Path):
    report = stock_kombu.run(options(tmp_path, seconds=30, database="sqlite"))
    print(report.figures)
    assert judge([report]) == []
