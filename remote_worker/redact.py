"""What a secret looks like, and how it is taken out of a stream that may cut it anywhere."""

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

#: Shorter values are words, and replacing them would say where they stood.
MIN_SECRET = 6
MARK = b"[redacted]"

# Tokens that nobody told us about but everybody knows by their shape.
_SHAPES = (
    rb"gh[pousr]_[A-Za-z0-9]{30,255}",
    rb"github_pat_[A-Za-z0-9_]{30,255}",
    rb"glpat-[A-Za-z0-9_-]{20,255}",
    rb"drb_(?:opr|prd|wkr)_[A-Za-z0-9]{12}_[A-Za-z0-9]{43}_[A-Za-z0-9]{6}",
    # A digit, and nothing before: "task-" and "sk-" begin many a name that is no secret.
    rb"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z_-]{0,255}[0-9])[A-Za-z0-9_-]{20,255}",
    rb"(?:AKIA|ASIA)[A-Z0-9]{16}",
    (
        rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]{0,8000}"
        rb"(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    ),
)
#: A match may begin this many bytes before the end of what came so far and still be unfinished.
_HOLD = 8192


def _base64_forms(raw: bytes) -> Iterable[bytes]:
    """Yield what every base64 text that contains the secret contains, whatever stands before it."""
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw)
        # The first characters mix in what stands before, the last ones what comes after.
        head = (shift * 8 + 5) // 6
        tail = (3 - (shift + len(raw)) % 3) % 3
        core = text[head : len(text) - (tail + 1 if tail else 0)]
        yield core
        yield core.replace(b"+", b"-").replace(b"/", b"_")


def _forms(secret: str) -> set[bytes]:
    """Return the spellings under which a secret usually shows up."""
    raw = secret.encode()
    forms = {
        raw,
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        secret.replace("'", "'\\''").encode(),
        *_base64_forms(raw),
    }
    return {form for form in forms if len(form) >= MIN_SECRET}


class Redactor:
    """Knows the secrets of one daemon and takes them out of bytes and texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        needles = {
            form for secret in secrets if len(secret) >= MIN_SECRET for form in _forms(secret)
        }
        longest_first = sorted(needles, key=lambda form: (-len(form), form))
        self._pattern = re.compile(b"|".join([*map(re.escape, longest_first), *_SHAPES]))
        self._hold = max([_HOLD, *map(len, needles)])

    def text(self, text: str) -> str:
        """Return the text without secrets, nor what no edge takes: NUL and half characters."""
        clean = self._pattern.sub(MARK, text.encode(errors="replace")).decode(errors="replace")
        return clean.replace("\0", "\N{REPLACEMENT CHARACTER}")

    def value(self, value: object) -> object:
        """Return a JSON value whose texts are without secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def stream(self) -> "RedactedStream":
        """Return a fresh stream filter."""
        return RedactedStream(self._pattern, hold=self._hold)

    def scan(self) -> "SecretScan":
        """Return a fresh search."""
        return SecretScan(self._pattern, hold=self._hold)


class RedactedStream:
    """Gives back what was fed without secrets, late by the bytes that might still become one."""

    def __init__(self, pattern: re.Pattern[bytes], *, hold: int) -> None:
        self._pattern = pattern
        self._hold = hold
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what is certain by now."""
        return self._take(self._held + chunk, keep=self._hold)

    def close(self) -> bytes:
        """Return the rest."""
        return self._take(self._held, keep=0)

    def _take(self, data: bytes, *, keep: int) -> bytes:
        """Emit up to the last position where no secret can be unfinished; hold the rest back."""
        safe = max(0, len(data) - keep)
        out: list[bytes] = []
        done = 0
        for match in self._pattern.finditer(data):
            if match.start() >= safe:
                break
            if keep and match.end() == len(data) and match.end() - match.start() < keep:
                # It reaches the edge of what is known and may go on.
                safe = match.start()
                break
            out += (data[done : match.start()], MARK)
            done = match.end()
        end = max(done, safe)
        out.append(data[done:end])
        self._held = data[end:]
        return b"".join(out)


class SecretScan:
    """Says whether a secret is in what was fed, wherever it was cut."""

    def __init__(self, pattern: re.Pattern[bytes], *, hold: int) -> None:
        self._pattern = pattern
        self._hold = hold
        self._held = bytearray()
        self._found = False

    def feed(self, chunk: bytes) -> None:
        """Take some more."""
        self._held += chunk
        # Short chunks are gathered: each look goes over what was held back once more.
        if len(self._held) >= 8 * self._hold:
            self._look()
            del self._held[: -self._hold]

    def close(self) -> bool:
        """Return whether there was one."""
        self._look()
        return self._found

    def _look(self) -> None:
        """Search what is held."""
        self._found = self._found or self._pattern.search(self._held) is not None
