"""How the demo speaks: in colour to a terminal, in plain lines to anything else."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

STYLES: Final = {"info": "", "warn": "yellow", "error": "bold red"}
MESSAGE_MAX: Final = 300


class Screen:
    """Lines with the seconds since the start, and the time each step took."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, emoji=False)
        self._began = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    @property
    def passed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str, style: str = "") -> None:
        """Print one line, stamped; what a machine sent is text and never markup."""
        line = Text.assemble((f"{self.passed_s:7.2f} s  ", "dim"), (text, style))
        self._console.print(line, soft_wrap=True)

    def event(self, level: str, message: str, payload: dict[str, Any]) -> None:
        """Print one event of the job."""
        more = {k: v for k, v in payload.items() if v not in (None, "") and k != "kind"}
        told = f"{message}  {json.dumps(more)}" if more else message
        told = "".join(c if c.isprintable() else " " for c in told)
        self.say(f"│ {told[:MESSAGE_MAX]}", STYLES.get(level, ""))

    def loud(self, text: str) -> None:
        """Print what must not be overlooked."""
        self._console.print()
        self._console.print(Text(f"*** {text} ***", style="bold black on yellow"), soft_wrap=True)
        self._console.print()

    def title(self, text: str) -> None:
        """Print a heading."""
        self._console.print()
        self._console.print(Text(f"── {text}", style="bold"), soft_wrap=True)

    def json(self, value: object) -> None:
        """Print an object."""
        self._print_code(json.dumps(value, indent=2), "json")

    def patch(self, text: str) -> None:
        """Print a unified diff."""
        self._print_code(text, "diff")

    def _print_code(self, text: str, language: str) -> None:
        if self._console.is_terminal:
            # The terminal's own colours: a theme's white cannot be read on a light one.
            plain = text.rstrip("\n")
            self._console.print(
                Syntax(
                    plain, language, theme="ansi_dark", background_color="default", word_wrap=True
                )
            )
        else:
            self._console.print(Text(text.rstrip("\n")), soft_wrap=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and keep how long it took."""
        self.say(name)
        began = time.monotonic()
        yield
        self.steps.append((name, time.monotonic() - began))

    def timings(self) -> None:
        """Print the steps with their times, and the whole."""
        self.title("where the time went")
        for name, seconds in self.steps:
            self._console.print(f"{seconds:7.2f} s  {name}", soft_wrap=True)
        self._console.print(f"{self.passed_s:7.2f} s  in all", soft_wrap=True)
