"""Who may run what: canonical repositories, lanes and the matching of workers to lanes; pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from broker.errors import InvalidPayload, InvalidRepository, NotAuthorized

#: host of a bare ``Owner/Name``
DEFAULT_HOST: Final = "github.com"
#: hosts whose paths do not know upper and lower case
CASELESS_HOSTS: Final = frozenset({"github.com"})
REPOSITORY_MAX: Final = 255

# A first dot is fine (``Org/.github``), a first dash would be an option to some program.
_SEGMENT = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
_GLOB_SEGMENT = re.compile(r"[A-Za-z0-9._*][A-Za-z0-9._*-]*")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")
# A last label like this makes the whole host an address: 127.1, 0x7f.1, 192.168.0.0xff.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCP = re.compile(r"git@([^:/@]+):(?!/)(.+)")


def canonical_repository(text: str) -> str:
    """Return the one form of a repository's name, ``host/owner/name`` (or ``file:///path``).

    ``Org/Repo``, ``https://github.com/Org/Repo.git`` and ``git@github.com:Org/Repo`` are one
    repository. Rules: security.md, "Repository canonicaliser"; decision 34.

    Raises:
        InvalidRepository: not a name or URL that may be handed to a worker.
    """
    return _canonical(text, _SEGMENT)


def repository_pattern(text: str) -> str:
    """Return the canonical form of an allow-list entry, where a segment may hold ``*``."""
    return _canonical(text, _GLOB_SEGMENT)


def _canonical(text: str, segment: re.Pattern[str]) -> str:
    if not text.isascii() or not text.isprintable() or len(text) > REPOSITORY_MAX:
        raise InvalidRepository
    if text.startswith("file:///"):
        return _canonical_file(text)
    host, path = _split(text)
    host = host.lower()
    if not _HOST.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise InvalidRepository
    parts = path.removesuffix("/").removesuffix(".git").split("/")
    if len(parts) < 2 or not all(segment.fullmatch(part) for part in parts):  # noqa: PLR2004
        raise InvalidRepository
    if any(part.strip(".") == "" for part in parts):
        raise InvalidRepository
    # x.git.git and x.GIT would become another repository when read once more
    if parts[-1].lower().endswith(".git"):
        raise InvalidRepository
    path = "/".join(parts)
    return f"{host}/{path.lower() if host in CASELESS_HOSTS else path}"


def _split(text: str) -> tuple[str, str]:
    if match := _SCP.fullmatch(text):
        return match[1], match[2]
    if "://" not in text:
        first, _, rest = text.partition("/")
        return (first, rest) if "." in first and "/" in rest else (DEFAULT_HOST, text)
    try:
        url = urlsplit(text)
        plain = url.scheme == "https" and url.port is None and "@" not in url.netloc
    except ValueError:
        raise InvalidRepository from None
    if not plain or url.query or url.fragment or url.netloc.endswith(":"):
        raise InvalidRepository
    return url.netloc, url.path.removeprefix("/")


def _canonical_file(text: str) -> str:
    parts = text.removeprefix("file:///").removesuffix("/").split("/")
    if any(part in {"", ".", ".."} or set(part) & set("%?#\\") for part in parts):
        raise InvalidRepository
    return "file:///" + "/".join(parts)


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of work: jobs of a lane differ in nothing that a policy looks at."""

    queue: str
    type: str
    repository: str | None
    capabilities: tuple[str, ...]

    def spec(self) -> str:
        """Return the canonical JSON that the key is made of."""
        return _spec_and_key(self)[0]

    @property
    def key(self) -> str:
        """First 16 hex digits of sha256 over the spec: the lane's name in the reservations."""
        return _spec_and_key(self)[1]

    @classmethod
    def from_spec(cls, spec: str) -> Lane:
        """Read back what ``spec`` wrote."""
        return _lane(spec)


# As many lanes as kinds of work, and each placement of a job asks for one.
@lru_cache(maxsize=4096)
def _spec_and_key(lane: Lane) -> tuple[str, str]:
    parts = [lane.queue, lane.type, lane.repository, list(lane.capabilities)]
    spec = json.dumps(parts, separators=(",", ":"))
    return spec, hashlib.sha256(spec.encode()).hexdigest()[:16]


@lru_cache(maxsize=4096)
def _lane(spec: str) -> Lane:
    queue, kind, repository, capabilities = json.loads(spec)
    return Lane(queue, kind, repository, tuple(capabilities))


def lane_of(
    queue: str,
    job_type: str,
    payload: Mapping[str, Any],
    capabilities: Sequence[str] | None = None,
) -> Lane:
    """Return the lane of a job.

    Raises:
        InvalidPayload: ``requiredCapabilities`` is not a list of strings.
        InvalidRepository: a ``codex_*`` job names a repository that no worker may be handed.
    """
    if capabilities is None:
        capabilities = payload.get("requiredCapabilities") or ()
        if payload.get("requiredCapabilities") is not None and not isinstance(
            payload["requiredCapabilities"], list
        ):
            raise InvalidPayload("payload.requiredCapabilities must be a list of strings")
    if not all(isinstance(one, str) and one for one in capabilities):
        raise InvalidPayload("payload.requiredCapabilities must be a list of strings")
    return Lane(queue, job_type, _repository(job_type, payload), tuple(sorted(set(capabilities))))


def _repository(job_type: str, payload: Mapping[str, Any]) -> str | None:
    named = payload.get("repository")
    if job_type == "codex_skill":
        inputs = payload.get("inputs")
        if isinstance(inputs, dict):
            named = inputs.get("repo") or inputs.get("repository") or named
    if named is None:
        return None
    try:
        # what is no string is no name either
        return canonical_repository(named.strip() if isinstance(named, str) else "")
    except InvalidRepository:
        if job_type.startswith("codex_"):
            raise
        return None


@dataclass(frozen=True, slots=True)
class Policy:
    """What a credential may run; ``None`` does not restrict, an empty tuple allows nothing."""

    types: tuple[str, ...] | None = None
    repositories: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    max_concurrency: int | None = None
    #: addresses it may be used from, as CIDR
    ip_ranges: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What one claim may be given: the credential's policy merged with the request."""

    types: frozenset[str] | None
    repositories: tuple[str, ...] | None
    capabilities: frozenset[str]
    queues: frozenset[str] | None
    #: but not from these, for now
    paused: frozenset[str] = frozenset()

    def __call__(self, lane: Lane) -> bool:
        """See a lane; equal ones see the same, so the reservations may keep it in mind."""
        return self.allows(lane)

    def allows(self, lane: Lane) -> bool:
        """Tell whether a job of this lane may be given."""
        return (
            (self.types is None or lane.type in self.types)
            and self.sees(lane.queue)
            and self.capabilities.issuperset(lane.capabilities)
            and self._allows_repository(lane.repository)
        )

    def sees(self, queue: str) -> bool:
        """Tell whether any job of this queue may be given."""
        return queue not in self.paused and (self.queues is None or queue in self.queues)

    def _allows_repository(self, repository: str | None) -> bool:
        if self.repositories is None:
            return True
        if repository is None:
            return False
        return any(_glob(pattern).fullmatch(repository) for pattern in self.repositories)


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    first, *rest = (re.escape(part) for part in pattern.split("*"))
    if not rest:
        return re.compile(first)
    # Atomic: the leftmost match of each part leaves the most for the rest. Without it thirty stars
    # keep a processor busy for ever.
    middle = "".join(f"(?>[^/]*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{middle}[^/]*{rest[-1]}")


def merge(
    policy: Policy,
    *,
    allowed_types: Iterable[str] | None = None,
    worker_capabilities: Iterable[str] | None = None,
    paused: frozenset[str] = frozenset(),
) -> Eligibility:
    """Merge a policy with a claim's own wishes, as contract.md "Policy" says.

    Raises:
        NotAuthorized: the request names types, and none of them is the credential's.
    """
    types = None if policy.types is None else frozenset(policy.types)
    if allowed_types is not None:
        wanted = frozenset(allowed_types)
        types = wanted if types is None else types & wanted
        if wanted and not types:
            raise NotAuthorized("allowedTypes holds no type that this token may run")
    own = policy.capabilities
    declared = worker_capabilities or () if own is None else own
    return Eligibility(
        types=types,
        repositories=policy.repositories,
        capabilities=frozenset(declared),
        queues=None if policy.queues is None else frozenset(policy.queues),
        paused=paused,
    )
