"""Wall clocks that go wrong: how a process of ours is made to live in another time, and to jump.

libfaketime stands between the process and the kernel; what is monotonic stays true, as it does when
an administrator sets a clock. The product knows nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.services import missing

#: Debian's own place, whatever the architecture.
DEBIAN: Final = "lib/*/faketime/libfaketime.so.1"
#: Where Python finds a way to sleep that the library bears.
SLEEPER: Final = Path(__file__).parent / "elsewhen"


def faketime_library() -> Path:
    """Return the library that lies about the time."""
    found = sorted(Path("/usr").glob(DEBIAN))
    if not found:
        missing(
            f"libfaketime is not installed (no /usr/{DEBIAN}; Debian: apt-get install faketime)"
        )
    return found[0]


class Skew:
    """The wall clock of one process, so many seconds off; it may jump at any moment."""

    def __init__(self, file: Path, offset_s: float) -> None:
        self._file = file
        self.offset_s = offset_s
        self.jump(offset_s)

    def environ(self) -> dict[str, str]:
        """Return what makes a process live by it."""
        return {
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # read anew at each look at the clock, so that a jump is one
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": str(SLEEPER),
            # files keep their true moments, as on a disk shared with others
            "NO_FAKE_STAT": "1",
        }

    def jump(self, offset_s: float) -> None:
        """Set the clock, at once: a reader sees the old moment or the new."""
        self.offset_s = offset_s
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+.3f}\n")
        fresh.replace(self._file)
