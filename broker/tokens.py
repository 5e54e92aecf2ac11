"""The only one to know how the text of a token is built and read; knows no database."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from broker.errors import AuthFailed

#: published for scanners of leaked secrets
PATTERN: Final = r"drb_(?:opr|prd|wkr)_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}"

#: kind of credential by the three letters in its token
KINDS: Final = MappingProxyType({"opr": "operator", "prd": "producer", "wkr": "worker"})

#: the part of a token that names it, safe to log
ID: Final = re.compile(r"[0-9A-Za-z]{12}")

_TEXT: Final = re.compile(PATTERN)
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH: Final = 12
_SECRET_BYTES: Final = 32
_SECRET_LENGTH: Final = 43
_CRC_LENGTH: Final = 6


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token: its text, shown once, and what is stored of it."""

    text: str = field(repr=False)
    id: str
    secret_sha256: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A token's parts; well-formed, not yet proven."""

    kind: str
    id: str
    secret: str = field(repr=False)

    @property
    def secret_sha256(self) -> str:
        """What the ledger holds of the secret; a fast hash is right for 256 random bits."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


def issue(kind: str) -> Issued:
    """Make a token of a kind that ``KINDS`` names."""
    short = next(letters for letters, name in KINDS.items() if name == kind)
    token_id = "".join(secrets.choice(_DIGITS) for _ in range(_ID_LENGTH))
    secret = _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_LENGTH)
    body = f"drb_{short}_{token_id}_{secret}"
    parsed = Parsed(kind, token_id, secret)
    return Issued(f"{body}_{_checksum(body)}", token_id, parsed.secret_sha256)


def parse(text: str) -> Parsed:
    """Take a token apart; its checksum stops typos before they cost a lookup.

    Raises:
        AuthFailed: no token of ours was ever written like this.
    """
    if not _TEXT.fullmatch(text):
        raise AuthFailed
    body, _, checksum = text.rpartition("_")
    if _checksum(body) != checksum:
        raise AuthFailed
    _, short, token_id, secret = body.split("_")
    return Parsed(KINDS[short], token_id, secret)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CRC_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
