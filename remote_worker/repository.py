"""Which repositories there can be, under which one name, and whether this worker takes them.

The edge canonicalises too. The worker does not take its word for it: what is compared with the
owner's patterns is what is cloned, letter by letter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_MAX_LENGTH = 255
_DEFAULT_HOST = "github.com"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label begins with a letter: no IP address does, in no base.
_HOST = re.compile(rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
_SEGMENT = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
_FILE_PATH = re.compile(r"(?:/[A-Za-z0-9._+@=, -]+)+")
_SCP = re.compile(r"git@([A-Za-z0-9.-]+):(.+)")


class InvalidRepository(ValueError):
    """Not a repository this product knows how to name."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository by its one name."""

    #: `host/owner/name`, or `file:///abs`
    canonical: str

    @property
    def is_local(self) -> bool:
        """Say whether it lies on this machine."""
        return self.canonical.startswith("file://")

    @property
    def host(self) -> str:
        """Return the host; of one on this machine there is none."""
        return "" if self.is_local else self.canonical.partition("/")[0]

    @property
    def path(self) -> str:
        """Return owner and name."""
        return self.canonical.partition("/")[2]

    @property
    def url(self) -> str:
        """Return where it is cloned from."""
        return self.canonical if self.is_local else f"https://{self.canonical}.git"


def parse(text: str) -> Repository:
    """Return the repository a text names.

    Raises InvalidRepository before any program has seen the text.
    """
    if not text or len(text) > _MAX_LENGTH or not text.isascii() or not text.isprintable():
        raise InvalidRepository("a repository is 1-255 printable ASCII characters")
    if any(bad in text for bad in ("..", "%", "\\")):
        raise InvalidRepository("a repository contains no '..', '%' or backslash")
    if text.startswith("file://"):
        return _local(text.removeprefix("file://"))
    if text.startswith("https://"):
        host, _, path = text.removeprefix("https://").partition("/")
    elif scp := _SCP.fullmatch(text):
        host, path = scp.groups()
    elif text.count("/") == 1:
        host, path = _DEFAULT_HOST, text
    else:
        host, _, path = text.partition("/")
    return _hosted(host, path)


def _local(path: str) -> Repository:
    """Name a repository on this machine."""
    if not _FILE_PATH.fullmatch(path) or "." in PurePosixPath(path).parts or "/./" in path:
        raise InvalidRepository("a local repository is file:///absolute/path")
    return Repository(canonical=f"file://{path}")


def _hosted(host: str, path: str) -> Repository:
    """Name a repository on a host."""
    host = host.lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise InvalidRepository(
            "a repository is Org/Repo, https://host/Org/Repo or git@host:Org/Repo"
            " (a host name, no user, no port, no address)"
        )
    segments = path.removesuffix("/").removesuffix(".git").split("/")
    if len(segments) < 2 or not all(_SEGMENT.fullmatch(s) and s != "." for s in segments):  # noqa: PLR2004 - owner and name
        raise InvalidRepository("a repository on a host has an owner and a name")
    if any(segment.startswith("-") for segment in segments):
        raise InvalidRepository("no part of a repository begins with '-'")
    path = "/".join(segments)
    return Repository(canonical=f"{host}/{path.lower() if host == _DEFAULT_HOST else path}")


def allowed(repository: Repository, patterns: Sequence[str]) -> bool:
    """Say whether the owner of this worker lets it work there.

    Without patterns every repository on a host is fine (the edge knows what the token may), and
    none on this machine. `*` stands for anything, so `Org/*` is everything under Org; what lies on
    this machine is matched only by a pattern that says `file://` itself.
    """
    if not patterns:
        return not repository.is_local
    return any(
        fnmatchcase(repository.canonical, _canonical_pattern(pattern))
        for pattern in patterns
        if pattern.startswith("file://") == repository.is_local
    )


def _canonical_pattern(pattern: str) -> str:
    """Spell a pattern as canonical names are spelled."""
    if pattern.startswith("file://"):
        return pattern
    pattern = pattern.removeprefix("https://").removesuffix(".git")
    host, _, rest = pattern.partition("/")
    if "." not in host and host != "*":
        host, rest = _DEFAULT_HOST, pattern
    host = host.lower()
    return f"{host}/{rest.lower() if host == _DEFAULT_HOST else rest}"
