"""The table of long files names files that there are, and leaves the order within them alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.order import LONG, longest_first

TESTS = Path(__file__).parents[1]


@dataclass
class Named:
    nodeid: str


def test_each_file_named_is_there_once():
    assert [file for file in LONG if not (TESTS / file).is_file()] == []
    assert len(set(LONG)) == len(LONG)


def test_the_longest_comes_first_and_its_tests_as_they_were():
    first, second = f"tests/{LONG[0]}", f"tests/{LONG[1]}"
    drawn = ["tests/a.py::x", f"{second}::b", f"{first}::z", f"{first}::a[::]", "tests/b.py::y"]
    items: list[Any] = [Named(one) for one in drawn]
    longest_first(items)
    assert [one.nodeid for one in items] == [drawn[2], drawn[3], drawn[1], drawn[0], drawn[4]]
