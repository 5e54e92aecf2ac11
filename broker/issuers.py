"""Which token issuers the edge believes, and who each of their tokens is: the file that says so.

The file is read at start, and again within seconds of a change; one that has become wrong changes
nothing but the log.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from broker.errors import ConfigurationError, DrawbridgeError, NotAuthorized
from broker.ledger import credential_rules
from broker.policy import Policy

logger = logging.getLogger(__name__)

#: what a token may be signed with; anything symmetric would make a key of what is public
ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
#: how old the file may be while it is looked at again
LOOK_EVERY_S: Final = 5.0
#: of a JWT, between dots
PARTS: Final = 3
_NAME: Final = re.compile(r"[a-z0-9-]{1,32}")
_ISSUER_KEYS: Final = {
    "name": str, "issuer": str, "audience": str, "jwks_url": str, "algorithms": list,
    "token_types": list, "insecure_loopback": bool, "rule": list,
}  # fmt: skip
_POLICY_KEYS: Final = {
    "types": list, "repositories": list, "capabilities": list, "queues": list,
    "max_concurrency": int, "ip_ranges": list,
}  # fmt: skip
_RULE_KEYS: Final = {"claims": dict, "kind": str, "worker_id": str, **_POLICY_KEYS}


@dataclass(frozen=True, slots=True)
class Rule:
    """Who a token is whose claims are exactly these."""

    claims: Mapping[str, str]
    kind: str
    worker_id: str | None
    policy: Policy

    def fits(self, claims: Mapping[str, Any]) -> bool:
        """Tell whether a token is meant; a claim that is a list must hold the value."""
        return all(_has(claims.get(name), value) for name, value in self.claims.items())


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer, pinned: what its tokens must say, and who they are."""

    name: str
    issuer: str
    audience: str
    jwks_url: str
    algorithms: tuple[str, ...]
    token_types: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Proven:
    """Who a token is, by the first rule that fits it."""

    kind: str
    #: names the issuer and its subject; safe to log
    id: str
    worker_id: str | None
    policy: Policy


class Issuers:
    """The issuers of one file, as it is now; threads may share it."""

    def __init__(self, path: Path, *, timer: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            ConfigurationError: it is not there, or wrong.
        """
        self._path = path
        self._timer = timer
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._issuers = {one.issuer: one for one in read(path)}
        self._look_at = timer() + LOOK_EVERY_S

    def get(self, issuer: object) -> Issuer | None:
        """Return the issuer of exactly this name."""
        self._look()
        return self._issuers.get(issuer) if isinstance(issuer, str) else None

    def all(self) -> tuple[Issuer, ...]:
        """Return all of them."""
        self._look()
        return tuple(self._issuers.values())

    def _look(self) -> None:
        with self._lock:
            if self._timer() < self._look_at:
                return
            self._look_at = self._timer() + LOOK_EVERY_S
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._issuers = {one.issuer: one for one in read(self._path)}
            except ConfigurationError as error:
                logger.error("what was read before stays: %s", error, extra={"action": "oidc"})  # noqa: TRY400
                return
            logger.info("read %s again", self._path, extra={"action": "oidc"})


class Unmapped(NotAuthorized):
    """This token is genuine, but no rule says whose it is."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who


def is_jwt(text: str) -> bool:
    """Tell whether a bearer token looks like a JWT rather than one of ours."""
    return text.count(".") == PARTS - 1 and not text.startswith("drb_")


def read(path: Path) -> tuple[Issuer, ...]:
    """Read the file.

    Raises:
        ConfigurationError: and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            said = tomllib.load(file)
        found = tuple(_issuer(one) for one in _tables(said, {"issuer": list})["issuer"])
        if len({one.issuer for one in found}) < len(found) or not found:
            raise ConfigurationError("it names no issuer, or one twice")
        if len({one.name for one in found}) < len(found):
            raise ConfigurationError("two issuers have one name")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, DrawbridgeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigurationError(f"{path} is wrong: {what}") from error
    return found


def policies(issuers: Iterable[Issuer]) -> dict[str, list[tuple[str, Policy]]]:
    """Return by worker the policies that tokens may give it, with the issuer's name."""
    found: dict[str, list[tuple[str, Policy]]] = {}
    for issuer in issuers:
        for rule in issuer.rules:
            if rule.worker_id is not None:
                found.setdefault(rule.worker_id, []).append((issuer.name, rule.policy))
    return found


def _issuer(said: Any) -> Issuer:
    said = _tables(said, _ISSUER_KEYS)
    algorithms = tuple(said["algorithms"])
    if not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise ConfigurationError(f"algorithms are some of {', '.join(ALGORITHMS)}")
    if not _NAME.fullmatch(said["name"]):
        raise ConfigurationError("name is 1-32 of lower-case letters, digits, dashes")
    if not said["issuer"] or not said["audience"]:
        raise ConfigurationError("issuer and audience may not be empty")
    _check_url(said["jwks_url"], loopback=said.get("insecure_loopback", False))
    types = tuple(str(one).lower() for one in said.get("token_types", ["at+jwt"]))
    return Issuer(
        name=said["name"],
        issuer=said["issuer"],
        audience=said["audience"],
        jwks_url=said["jwks_url"],
        algorithms=algorithms,
        token_types=types,
        rules=tuple(_rule(one) for one in said.get("rule", [])),
    )


def _rule(said: Any) -> Rule:
    said = _tables(said, _RULE_KEYS)
    claims = said["claims"]
    if not claims or not all(isinstance(value, str) and value for value in claims.values()):
        raise ConfigurationError("a rule's claims are names with texts to be equal to")
    policy = credential_rules.read({name: said[name] for name in _POLICY_KEYS if name in said})
    worker_id = said.get("worker_id")
    credential_rules.check_owner(said["kind"], worker_id, policy)
    return Rule(dict(claims), said["kind"], worker_id, credential_rules.canonical(policy))


def _tables(table: Any, keys: Mapping[str, type]) -> dict[str, Any]:
    said: dict[str, Any] = table
    if not isinstance(said, dict):
        raise ConfigurationError("a table is expected")
    for name, value in said.items():
        if name not in keys:
            raise ConfigurationError(f"there is no {name!r} here; known are {', '.join(keys)}")
        if type(value) is not keys[name]:  # a bool is no number here
            raise ConfigurationError(f"{name} must be a {keys[name].__name__}")
        if isinstance(value, list) and name not in {"issuer", "rule"}:
            _check_texts(name, value)
    return said


def _check_texts(name: str, values: list[Any]) -> None:
    if not all(isinstance(one, str) and one for one in values):
        raise ConfigurationError(f"{name} must hold texts")


def _check_url(text: str, *, loopback: bool) -> None:
    url = urlsplit(text)
    host = url.hostname or ""
    if not host or "@" in url.netloc or url.fragment:
        raise ConfigurationError("jwks_url is no https URL")
    if url.scheme == "https":
        return
    if url.scheme != "http" or not loopback or not _is_loopback(host):
        raise ConfigurationError(
            "jwks_url must be https (plain http only on loopback, with insecure_loopback = true)"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _has(claimed: Any, value: str) -> bool:
    if isinstance(claimed, list):
        return value in claimed
    return type(claimed) is str and claimed == value


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
