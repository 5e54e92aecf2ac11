"""README's table and the marks of the tests say the same, and nothing claimed is missing."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
ROW: Final = re.compile(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
TEST: Final = re.compile(r"`(test_\w+\.py::test_\w+)`")

#: numbers that must have a test; whoever takes more of the list adds them here
CLAIMED: Final = {
    1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 16, 17, 21, 22, 23, 24, 25, 26, 27, 29, 30, 31, 32, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 44, 45, 46, 47, 49, 50, 51, 53, 54, 55, 57, 58, 59, 61,
    62, 63, 65, 66, 67, 68, 69, 71, 72,
    73, 75, 76, 79, 80, 81, 82, 84, 85, 87, 89, 90, 92, 99, 101, 102, 104, 105, 107, 108, 109, 110,
    111, 112, 115, 116, 117, 118,
}  # fmt: skip


#: tests of a number that lie in another folder
ELSEWHERE: Final = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def marked() -> dict[int, set[str]]:
    """Read which tests say of themselves that they are an attack of the list."""
    found: dict[int, set[str]] = defaultdict(set)
    for file in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in _numbers(node):
                    found[number].add(f"{file.name}::{node.name}")
    return dict(found)


def _numbers(node: ast.FunctionDef) -> Iterator[int]:
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.attack":
            yield from (ast.literal_eval(argument) for argument in mark.args)


def listed() -> dict[int, set[str]]:
    """Read the table."""
    rows = ROW.findall((FOLDER / "README.md").read_text())
    numbers = [int(number) for number, _ in rows]
    assert numbers == sorted(set(numbers)), "a number a row, in order"
    return {int(number): set(TEST.findall(tests)) for number, tests in rows}


def test_the_table_names_the_tests_there_are() -> None:
    assert {number: tests for number, tests in listed().items() if tests} == marked()


def test_every_number_claimed_has_a_test() -> None:
    assert set(marked()) >= CLAIMED


def test_the_tests_of_other_folders_are_there() -> None:
    named = ELSEWHERE.findall((FOLDER / "README.md").read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (FOLDER.parents[1] / file).read_text()
