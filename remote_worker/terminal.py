"""What a person sees who runs the worker by hand: slots, jobs, progress, above them the log."""

import logging
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from remote_worker.board import Board, Snapshot
from remote_worker.log import TextFormatter, visible

_PER_S = 2.0
_MAX_SAID = 60


class Terminal:
    """A live view on stderr; the log goes on above it."""

    def __init__(self, board: Board, *, console: Console | None = None) -> None:
        self._board = board
        self._console = console or Console(stderr=True)
        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=_PER_S,
            transient=True,
        )  # fmt: skip
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Self:
        """Take the terminal."""
        root = logging.getLogger()
        self._handlers, root.handlers = root.handlers, [_Above(self._console)]
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._live.stop()
        logging.getLogger().handlers = self._handlers

    def _draw(self) -> RenderableType:
        return drawn(self._board.look())


def drawn(now: Snapshot) -> RenderableType:
    """Return the picture of a moment."""
    head = f"{now.state} · {len(now.jobs)} of {now.slots} slots"
    for ending, number in sorted(now.endings.items()):
        head += f" · {number} {ending}"
    if now.heard_s is not None:
        head += f" · edge heard {now.heard_s:.0f} s ago"
    table = Table("job", "type", "for", "heartbeat", "progress", box=None, pad_edge=False)
    for job in now.jobs:
        beat = "-" if job.beat_s is None else f"{job.beat_s:.0f} s ago"
        said = "".join(c if c.isprintable() else " " for c in job.said)[:_MAX_SAID]
        table.add_row(job.id, Text(visible(job.type)), f"{job.running_s:.0f} s", beat, Text(said))
    troubles = [Text(f"! {one}", style="red") for one in now.troubles]
    return Group(Text(head, style="bold"), *([table] if now.jobs else []), *troubles)


class _Above(logging.Handler):
    """Prints records above the live view."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        self._console.print(Text(self.format(record)))
