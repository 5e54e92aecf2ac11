"""From a JWT to who it is: the only one to know what such a token must say before it is believed.

Everything that costs nothing is looked at first, the signature next, and only then what was signed.
Nothing in a token chooses a key, an address or an algorithm; it only names one of ours.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jwt

from broker import issuers
from broker.errors import AuthFailed
from broker.issuers import PARTS, Issuer, Issuers, Proven, Unmapped
from broker.policy import Policy
from edge_api.errors import MalformedJson
from edge_api.json_body import loads
from edge_api.jwks import Keys

#: a token's whole text
SIZE_MAX: Final = 8 * 1024
LEEWAY_S: Final = 60
#: what was made longer ago is not believed, whatever it says
AGE_MAX_S: Final = 24 * 3600
#: from making to expiry
LIFE_MAX_S: Final = 3600
_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_KID_MAX: Final = 128
#: it is written into logs and into the audit
_SUBJECT: Final = re.compile(r"[!-~]{1,200}")
#: PyJWT shall prove the signature, issuer and audience; moments are compared with our own clock
_OPTIONS: Final = {
    "require": ["exp", "iat", "iss", "aud", "sub"],
    "verify_exp": False, "verify_nbf": False, "verify_iat": False,
}  # fmt: skip


class Oidc:
    """Believes the tokens of the issuers in one file; threads may share it."""

    def __init__(
        self,
        path: Path,
        *,
        fetch: Callable[[str], bytes] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file; nothing is fetched before a token needs it.

        Raises:
            ConfigurationError: the file is wrong.
        """
        self.issuers = Issuers(path, timer=timer)
        self._fetch = fetch
        self._timer = timer
        self._lock = threading.Lock()
        self._keys: dict[str, Keys] = {}

    def prove(self, text: str, *, now: datetime) -> Proven:
        """Return who a token is.

        Raises:
            AuthFailed: it is not to be believed.
            NotAuthorized: it is, but no rule says who it is.
            IssuerUnavailable: its issuer's keys are not known, and it does not answer.
        """
        header, claims = _read(text)
        issuer = self.issuers.get(claims.get("iss"))
        if issuer is None:
            raise AuthFailed(why="issuer")
        kid, algorithm = _check_header(header, issuer)
        _check_moments(claims, now.timestamp())
        key = self._keys_of(issuer).get(kid, algorithm)
        try:
            proven: Mapping[str, Any] = jwt.decode(
                text, key=key, algorithms=[algorithm], issuer=issuer.issuer,
                audience=issuer.audience, options=_OPTIONS,  # type: ignore[arg-type]
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise AuthFailed(why=_why(error)) from None
        subject = proven["sub"]
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise AuthFailed(why="subject")
        who = f"oidc:{issuer.name}:{subject}"
        rule = next((one for one in issuer.rules if one.fits(proven)), None)
        if rule is None:
            raise Unmapped(who)
        return Proven(rule.kind, who, rule.worker_id, rule.policy)

    def policies(self) -> dict[str, list[tuple[str, Policy]]]:
        """Return by worker the policies that tokens may give it, with the issuer's name."""
        return issuers.policies(self.issuers.all())

    def _keys_of(self, issuer: Issuer) -> Keys:
        with self._lock:
            if issuer.jwks_url not in self._keys:
                self._keys[issuer.jwks_url] = Keys(
                    issuer.jwks_url, fetch=self._fetch, timer=self._timer
                )
            return self._keys[issuer.jwks_url]


def _read(text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read header and claims, of which nothing is proven yet."""
    parts = text.split(".")
    if len(text) > SIZE_MAX or len(parts) != PARTS or not all(map(_PART.fullmatch, parts)):
        raise AuthFailed(why="malformed")
    return _object(parts[0]), _object(parts[1])


def _object(part: str) -> Mapping[str, Any]:
    try:
        value = loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_"))
    except (binascii.Error, MalformedJson):
        raise AuthFailed(why="malformed") from None
    if not isinstance(value, dict):
        raise AuthFailed(why="malformed")
    return value


def _check_header(header: Mapping[str, Any], issuer: Issuer) -> tuple[str, str]:
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise AuthFailed(why="algorithm")
    if not isinstance(kid, str) or not 0 < len(kid) <= _KID_MAX:
        raise AuthFailed(why="unknown_key")
    if not isinstance(kind, str) or (
        kind.lower().removeprefix("application/") not in issuer.token_types
    ):
        raise AuthFailed(why="token_type")
    if "crit" in header:
        raise AuthFailed(why="critical_extension")
    return kid, algorithm


def _check_moments(claims: Mapping[str, Any], now: float) -> None:
    made: Any = claims.get("iat")
    expires: Any = claims.get("exp")
    begins: Any = claims.get("nbf", made)
    if any(type(one) not in {int, float} for one in (made, expires, begins)):
        raise AuthFailed(why="moments")
    if now >= expires + LEEWAY_S:
        raise AuthFailed(why="expired")
    if max(made, begins) > now + LEEWAY_S:
        raise AuthFailed(why="not_yet")
    if made < now - AGE_MAX_S or expires - made > LIFE_MAX_S:
        raise AuthFailed(why="moments")


def _why(error: jwt.PyJWTError) -> str:
    names = {
        jwt.InvalidAudienceError: "audience",
        jwt.InvalidIssuerError: "issuer",
        jwt.InvalidSignatureError: "signature",
        jwt.MissingRequiredClaimError: "claims",
    }
    return next((name for kind, name in names.items() if isinstance(error, kind)), "malformed")
