"""What ``drawbridge doctor`` may say of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a thing is."""

    #: as it must be
    OK = "ok"
    #: nothing is wrong, but somebody should know
    NOTICE = "notice"
    #: somebody must do something
    PROBLEM = "problem"
    #: it could not be looked at, for a reason told elsewhere
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at, and for a problem the way out of it."""

    check: str
    level: Level
    message: str
    way_out: str | None = None


def ok(check: str, message: str) -> Finding:
    """Say that a thing is as it must be."""
    return Finding(check, Level.OK, message)


def problem(check: str, message: str, way_out: str) -> Finding:
    """Say what is wrong, and what to do."""
    return Finding(check, Level.PROBLEM, message, way_out)


def skipped(check: str, why: str) -> Finding:
    """Say why a thing could not be looked at."""
    return Finding(check, Level.SKIPPED, why)


def age(seconds: float) -> str:
    """Write a length of time for people."""
    if seconds < 120:  # noqa: PLR2004  two minutes
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"
