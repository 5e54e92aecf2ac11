"""How a child's output is kept: bounded, without secrets, line by line."""

from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from remote_worker.errors import WorkerError
from remote_worker.process import STDOUT
from remote_worker.redact import Redactor

#: A longer line is passed on in pieces: nobody makes the daemon hold a gigabyte without newline.
MAX_LINE = 1024 * 1024
_TAIL_LINES = 40
_TAIL_LINE_CHARS = 400
#: More of a line is kept, for a secret that was cut in two is none to a redactor.
_TAIL_KEPT = _TAIL_LINE_CHARS + 8192


class TooMuchOutput(WorkerError):
    """A program wrote more than a file of its kind may hold."""


class Captured:
    """Keeps a short output in memory: its beginning on stdout, its end on stderr."""

    def __init__(self, *, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._out = bytearray()
        self._err = bytearray()

    def write(self, stream: int, chunk: bytes) -> None:
        """Take a chunk."""
        if stream == STDOUT:
            if len(self._out) + len(chunk) > self._limit:
                raise TooMuchOutput(f"more than {self._limit} bytes of output")
            self._out += chunk
        else:
            self._err = (self._err + chunk)[-16_384:]

    @property
    def out(self) -> bytes:
        """Return what was written to stdout."""
        return bytes(self._out)

    @property
    def err(self) -> str:
        """Return the end of what was written to stderr."""
        return self._err.decode(errors="replace").strip()


class ToFile:
    """Writes stdout to a file as it is; keeps the end of stderr."""

    def __init__(self, file: BinaryIO, *, limit: int) -> None:
        self._file = file
        self._left = limit
        self._limit = limit
        self._stderr = Captured()

    def write(self, stream: int, chunk: bytes) -> None:
        """Take a chunk."""
        if stream != STDOUT:
            self._stderr.write(stream, chunk)
            return
        self._left -= len(chunk)
        if self._left < 0:
            raise TooMuchOutput(f"more than {self._limit} bytes")
        self._file.write(chunk)

    @property
    def err(self) -> str:
        """Return the end of what was written to stderr."""
        return self._stderr.err


class Log:
    """A log file of whole lines from both streams, redacted, cut at its limit.

    Lines of stdout are also handed to a listener, before redaction: who parses them must see what
    was written. What the listener passes on it redacts itself.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        redactor: Redactor,
        limit: int,
        on_line: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._left = limit
        self._limit = limit
        self._redactor = redactor
        self._stream = redactor.stream()
        self._on_line = on_line
        self._partial: dict[int, bytes] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def note(self, text: str) -> None:
        """Write a line of the worker's own."""
        self._emit(self._stream.feed(f"[worker] {text}\n".encode()))

    def write(self, stream: int, chunk: bytes) -> None:
        """Take a chunk; what is not a whole line yet waits for its end."""
        *lines, rest = (self._partial.get(stream, b"") + chunk).split(b"\n")
        for line in lines:
            self._line(stream, line)
        while len(rest) > MAX_LINE:
            self._line(stream, rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._partial[stream] = rest

    def close(self) -> None:
        """Write what is left and flush."""
        for stream, rest in self._partial.items():
            if rest:
                self._line(stream, rest)
        self._partial = {}
        self._emit(self._stream.close())
        self._file.flush()

    @property
    def tail(self) -> str:
        """Return the last lines, redacted."""
        clean = self._redactor.text("\n".join(self._tail))
        return "\n".join(line[-_TAIL_LINE_CHARS:] for line in clean.split("\n"))

    def _line(self, stream: int, line: bytes) -> None:
        """Pass on one line."""
        if stream == STDOUT:
            self._on_line(line)
        if line.strip():
            self._tail.append(line[-_TAIL_KEPT:].decode(errors="replace"))
        self._emit(self._stream.feed(line + b"\n"))

    def _emit(self, data: bytes) -> None:
        """Write until the file is full, and say so once."""
        if self._left <= 0:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(f"\n[worker] cut here: the log holds {self._limit} bytes\n".encode())
