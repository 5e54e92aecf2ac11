"""What this worker was told: one frozen object, made once by the command line."""

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from remote_worker.account import Account
from remote_worker.errors import Misconfigured
from remote_worker.limits import Limits

PREFIX = "/api/queue"
_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"(?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*")
_AUTHOR = re.compile(r"[^<>\x00-\x1f]+ <[^<>\s\x00-\x1f]+>")
_MAX_TOKEN_FILE = 64 * 1024
_MADE_AT_EDGE = "put there what `drawbridge tokens create --kind worker` makes"
UNSANDBOXED = "danger-full-access"
SANDBOXES = ("read-only", "workspace-write", UNSANDBOXED)
#: who published commits are by, where the owner says nothing else
GIT_AUTHOR = "Drawbridge <drawbridge@localhost>"
#: what a child may be shut in with; `auto` is the first that works
ISOLATIONS = ("auto", "bwrap", "unshare", "none")
LOG_FORMATS = ("auto", "text", "json")
#: What a program must know of the way out of this machine; passed on when it is set.
WAY_OUT = (
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one daemon."""

    url: str
    token_file: Path
    worker_id: str
    work_dir: Path
    #: job types to claim; empty: whatever the token allows, and what we cannot run is failed
    types: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ("codex", "git")
    lease_s: int = 60
    wait_s: int = 25
    concurrency: int = 1
    #: on the way to the edge
    proxy: str | None = field(default=None, repr=False)
    #: whose certificates the edge may have, where the usual authorities do not do
    ca_file: Path | None = None
    max_jobs: int | None = None
    #: how long a daemon that drains waits for what runs; None: for ever
    drain_timeout_s: float | None = None
    idle_exit_s: float | None = None
    #: what repositories the owner of this machine lets in; empty: any but those on this machine
    allow_repository: tuple[str, ...] = ()
    git: str = "git"
    codex: str = "codex"
    codex_home: Path = field(default_factory=lambda: Path.home() / ".codex")
    codex_sandbox: str = "workspace-write"
    model: str | None = None
    effort: str | None = None
    #: what a job may take at most, whatever its payload says
    time_limit_s: int = 7200
    #: variables of the daemon's environment that children get as well, with their values
    pass_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: str = os.defpath
    #: the token for one git host; without it only public repositories, and no publishing
    git_token_file: Path | None = None
    git_host: str = "github.com"
    #: the owner's own `gh` login in the token file's place
    use_gh: bool = False
    gh: str = "gh"
    owner_home: Path = field(default_factory=Path.home)
    #: where pull requests are opened, when it is not where the host has its API by custom
    forge_api: str | None = None
    #: who the published commits are by
    git_author: str = GIT_AUTHOR
    #: a published patch may touch what the forge runs by itself
    allow_workflows: bool = False
    #: one of ISOLATIONS
    isolation: str = "auto"
    #: whose the processes of jobs are when the daemon is root; None: its own user's
    run_as: Account | None = None
    #: what no job may see beside the worker's own secrets
    hide: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    #: what jobs of type `command` may run; empty: there is no such type here
    allow_program: tuple[str, ...] = ()

    def passed_secrets(self) -> list[str]:
        """Return what is secret of the passed variables: all values, of a proxy its password."""
        proxies = [value for name, value in self.pass_environment.items() if name in WAY_OUT]
        passwords = [urlsplit(value).password or "" for value in proxies if "://" in value]
        others = [value for name, value in self.pass_environment.items() if name not in WAY_OUT]
        return [*passwords, *others]

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the way out."""
        check_url(self.url)
        _check_way(self.proxy, self.ca_file)
        if not _WORKER_ID.fullmatch(self.worker_id):
            raise Misconfigured(
                f"worker id {self.worker_id!r}: use 1-128 letters, digits, '.', '_' and '-'"
                " (--worker-id, the name its token was made for)"
            )
        if not _HOST.fullmatch(self.git_host):
            raise Misconfigured(f"--git-host {self.git_host!r}: write a host's name, lower case")
        if not _AUTHOR.fullmatch(self.git_author):
            raise Misconfigured(f"--git-author {self.git_author!r}: write Name <address>")
        if self.forge_api is not None:
            check_url(self.forge_api, option="--forge-api")


def check_url(url: str, *, option: str = "--url") -> None:
    """Refuse an edge that could be anybody: https, or plain http on this machine alone."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misconfigured(f"{option} {url!r}: write https://host[:port]")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Misconfigured(
            f"{option} takes no user, password, query or fragment: https://host[:port]"
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise Misconfigured(
            f"{option} {url!r} would send the token in the clear: use https"
            " (http is taken for this machine's own address only, as in http://127.0.0.1:8080)"
        )


def _check_way(proxy: str | None, ca_file: Path | None) -> None:
    """Refuse a way to the edge that cannot be gone; a proxy's password is not repeated."""
    if proxy is not None:
        parts = urlsplit(proxy)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misconfigured("--proxy (or HTTPS_PROXY): write http://[user:password@]host:port")
    if ca_file is not None and not ca_file.is_file():
        raise Misconfigured(f"--ca-file (or SSL_CERT_FILE) {ca_file}: there is no such file")


def _is_loopback(host: str) -> bool:
    """Say whether a host is this machine by name or address, without asking anybody."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TokenFile:
    """The worker's token: as the edge last took it, or as its owner has replaced it since."""

    def __init__(self, path: Path) -> None:
        """Raise Misconfigured when the file holds none."""
        self._path = path
        #: all there were, the one to use last; none of them gets into a log
        self.known: tuple[str, ...] = (read_token(path),)

    @property
    def current(self) -> str:
        """Return the token to use."""
        return self.known[-1]

    def replaced(self, refused: str) -> bool:
        """Look into the file again after a refusal; say whether there is another to be tried."""
        try:
            found = read_token(self._path)
        except Misconfigured:
            return False
        if found != self.current:
            self.known = (*self.known[-1:], found)
        return found != refused


def read_token(path: Path, *, way_out: str = _MADE_AT_EDGE) -> str:
    """Return the token; a file that others may read is refused, for it keeps no secret."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            text = file.read(_MAX_TOKEN_FILE).decode("ascii").strip()
    except OSError as error:
        raise Misconfigured(
            f"token file {path}: {error.strerror}; {way_out}, in a file of your own with mode 0600"
        ) from None
    except UnicodeDecodeError:
        raise Misconfigured(f"token file {path} holds no token: it is not ASCII text") from None
    if info.st_uid not in (os.getuid(), 0) or stat.S_IMODE(info.st_mode) & 0o077:
        raise Misconfigured(
            f"token file {path} can be read by others: chown it to yourself and chmod 600 {path}"
        )
    if not text or any(c.isspace() for c in text):
        raise Misconfigured(f"token file {path} holds no single token: one line, nothing else")
    return text
