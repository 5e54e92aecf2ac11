"""README's list of the life of a job leads from file to file, so every file must be there."""

import re
from pathlib import Path

from broker.settings import NAMES

ROOT = Path(__file__).resolve().parents[2]


def test_the_life_of_a_job_is_twelve_steps_through_files_that_exist():
    text = (ROOT / "README.md").read_text()
    life = text.partition("## The life of a job\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. ((?:`[^`]+`(?:, )?)+): ", life, flags=re.MULTILINE)
    named = [name for step in steps for name in re.findall(r"`([^`]+)`", step)]
    assert len(steps) == 12
    assert len(named) == len(set(named))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_folder_it_sends_readers_to_has_a_readme():
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\(([^)]+\.md)\)", text)
    assert linked
    assert [name for name in linked if not (ROOT / name).is_file()] == []


def test_every_setting_is_listed_as_the_registry_has_it():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(DRAWBRIDGE_[A-Z_]+)` \| (.+) \|$", text, flags=re.MULTILINE)
    assert dict(rows) == dict(NAMES)
