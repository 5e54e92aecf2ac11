"""The keys of an issuer: the only one to fetch anything, and to know how long a key is believed."""

from __future__ import annotations

import base64
import binascii
import http.client
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from broker.errors import AuthFailed, DrawbridgeError, Unavailable
from edge_api.json_body import loads

logger = logging.getLogger(__name__)

#: a whole fetch, from the first packet to the last byte
FETCH_S: Final = 5.0
#: what a set of keys may weigh
SIZE_MAX: Final = 64 * 1024
#: keys younger than this are not asked for again
FRESH_S: Final = 300.0
#: an issuer that is away is believed for as long after its last answer
STALE_S: Final = 3600.0
#: between two fetches, whatever is asked for
COOLDOWN_S: Final = 30.0
RSA_BITS_MIN: Final = 2048

#: kind and curve of key that an algorithm needs
_NEEDS: Final = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}

Known = dict[tuple[str, str], jwt.PyJWK]


class IssuerUnavailable(Unavailable):
    """The token's issuer does not answer, and its keys are not known here; ask again."""


class Keys:
    """The keys of one issuer; threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        fetch: Callable[[str], bytes] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask ``url``, no sooner than the first key is needed."""
        self._url = url
        self._fetch = fetch or fetch_keys
        self._timer = timer
        self._fetching = threading.Lock()
        self._known: tuple[Known, float] | None = None
        self._next_fetch = timer()

    def get(self, kid: str, algorithm: str) -> jwt.PyJWK:
        """Return the key of this name for this algorithm.

        Raises:
            AuthFailed: the issuer has none.
            IssuerUnavailable: nobody knows.
        """
        found, fresh = self._find(kid, algorithm)
        if found is None or not fresh:
            self._refresh(wait=found is None)
            found, _ = self._find(kid, algorithm)
        if found is not None:
            return found
        if self._known is None or self._timer() - self._known[1] >= STALE_S:
            raise IssuerUnavailable
        raise AuthFailed(why="unknown_key")

    def _find(self, kid: str, algorithm: str) -> tuple[jwt.PyJWK | None, bool]:
        if self._known is None:
            return None, False
        keys, at = self._known
        age = self._timer() - at
        return (keys.get((kid, algorithm)) if age < STALE_S else None), age < FRESH_S

    def _refresh(self, *, wait: bool) -> None:
        """Fetch, unless somebody just did; who has a key to go on with waits for nobody."""
        if self._timer() < self._next_fetch and not self._fetching.locked():
            return
        if not self._fetching.acquire(timeout=2 * FETCH_S if wait else 0):
            return
        try:
            if self._timer() < self._next_fetch:
                return
            self._next_fetch = self._timer() + COOLDOWN_S
            self._known = dict(_usable(loads(self._fetch(self._url)))), self._timer()
        except (OSError, http.client.HTTPException, DrawbridgeError) as error:
            logger.warning("no keys from %s: %s", self._url, error, extra={"action": "jwks"})
        finally:
            self._fetching.release()


def _usable(document: Any) -> Iterator[tuple[tuple[str, str], jwt.PyJWK]]:
    """Read the keys that a token may be signed with; others may be for something else."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise IssuerUnavailable("the issuer's answer is no set of keys")
    seen: dict[tuple[str, str], int] = {}
    for one in keys:
        for algorithm in _algorithms(one):
            name = (one["kid"], algorithm)
            seen[name] = seen.get(name, 0) + 1
    for one in keys:
        for algorithm in _algorithms(one):
            # of two keys with one name nobody knows which is meant
            if seen[one["kid"], algorithm] == 1:
                with suppress(jwt.PyJWTError, ValueError, TypeError, KeyError):
                    yield (one["kid"], algorithm), jwt.PyJWK(one, algorithm=algorithm)


def _algorithms(one: Any) -> Iterator[str]:
    if not isinstance(one, dict) or not isinstance(one.get("kid"), str):
        return
    if one.get("use", "sig") != "sig":
        return
    for algorithm, (kind, curve) in _NEEDS.items():
        if one.get("kty") != kind or one.get("alg", algorithm) != algorithm:
            continue
        if (curve is None or one.get("crv") == curve) and (kind != "RSA" or _bits(one)):
            yield algorithm


def _bits(one: dict[str, Any]) -> bool:
    """Tell whether an RSA key is long enough."""
    try:
        text = str(one.get("n")).encode()
        number = int.from_bytes(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
    except (binascii.Error, ValueError):
        return False
    return number.bit_length() >= RSA_BITS_MIN


def fetch_keys(url: str) -> bytes:
    """Fetch a set of keys: no redirects, no proxies, no more than its limits of bytes and time.

    Raises:
        OSError: it cannot be had, or not in time.
        IssuerUnavailable: what came is no answer to this.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=FETCH_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=FETCH_S)
    try:
        connection.connect()
        # a peer that drips would renew the socket's own timeout for ever
        timer = threading.Timer(FETCH_S, _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            path = parts.path or "/"
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request("GET", target, headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise IssuerUnavailable(f"the issuer answers {response.status}")
            body = response.read(SIZE_MAX + 1)
        finally:
            timer.cancel()
    finally:
        connection.close()
    if len(body) > SIZE_MAX:
        raise IssuerUnavailable(f"the issuer's keys weigh more than {SIZE_MAX} bytes")
    return body


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
