"""What a secret looks like, and how it is taken out of a stream that may cut it anywhere."""

import base64
import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

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
#: What is held back is looked at once more with this much of what follows.
_GATHER = 8


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


def _escaped(secret: str) -> Iterable[str]:
    """Yield how programs write a text inside of another."""
    yield secret
    for quoted in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield quoted
        yield re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), quoted)
    for dumped in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
        yield dumped
        yield dumped.replace("/", "\\/")
        # JSON inside of JSON, as in a tool's arguments
        yield json.dumps(dumped)[1:-1]
    yield html.escape(secret)
    yield html.escape(secret, quote=False)
    yield secret.replace("'", "'\\''")
    yield secret.replace("'", "'\"'\"'")


def _plain_forms(secret: str) -> set[bytes]:
    """Return the spellings that stand in one piece."""
    forms = {text.encode() for text in _escaped(secret)}
    wide = {secret.encode(f"utf-{form}") for form in ("16-le", "16-be", "32-le", "32-be")}
    return {form for form in forms | wide if len(form) >= MIN_SECRET}


def _dumped_forms(secret: str) -> set[bytes]:
    """Return the spellings that are broken into lines."""
    raw = secret.encode()
    wide = secret.encode("utf-16-le")
    forms = {raw.hex().encode(), raw.hex().upper().encode(), wide.hex().encode()}
    forms.update(_base64_forms(raw), _base64_forms(wide))
    return {form for form in forms if len(form) >= MIN_SECRET}


def _broken(form: bytes) -> bytes:
    """Return a pattern of a form that a line may end within, also one told as JSON."""
    between = rb"(?:\r?\n|\\n)?"
    return between.join(re.escape(form[at : at + 1]) for at in range(len(form)))


class Redactor:
    """Knows the secrets of one daemon and takes them out of bytes and texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = [secret for secret in secrets if len(secret) >= MIN_SECRET]
        plain = _longest_first(form for secret in known for form in _plain_forms(secret))
        dumped = _longest_first(form for secret in known for form in _dumped_forms(secret))
        parts = [*map(re.escape, plain), *map(_broken, dumped), *_SHAPES]
        self._pattern = re.compile(b"|".join(parts))
        # Of a broken form each character may have two more behind it.
        self._hold = max([_HOLD, *map(len, plain), *(3 * len(form) for form in dumped)])

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


def _longest_first(forms: Iterable[bytes]) -> list[bytes]:
    """Order forms so that none hides behind its own beginning."""
    return sorted(set(forms), key=lambda form: (-len(form), form))


class RedactedStream:
    """Gives back what was fed without secrets, late by the bytes that might still become one."""

    def __init__(self, pattern: re.Pattern[bytes], *, hold: int) -> None:
        self._pattern = pattern
        self._hold = hold
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Return what is certain by now."""
        self._held += chunk
        # Short chunks are gathered: each look goes over what was held back once more.
        return self._take(keep=self._hold) if len(self._held) >= _GATHER * self._hold else b""

    def close(self) -> bytes:
        """Return the rest."""
        return self._take(keep=0)

    def _take(self, *, keep: int) -> bytes:
        """Emit up to the last position where no secret can be unfinished; hold the rest back."""
        data = bytes(self._held)
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
        self._held = bytearray(data[end:])
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
        if len(self._held) >= _GATHER * self._hold:
            self._look()
            del self._held[: -self._hold]

    def close(self) -> bool:
        """Return whether there was one."""
        self._look()
        return self._found

    def _look(self) -> None:
        """Search what is held."""
        self._found = self._found or self._pattern.search(self._held) is not None
