"""How git and the forge get the owner's credential for one host, and nobody else gets it.

The token is in no argument, no environment, no URL and no configuration file: git asks a helper
that knows where it lies, each time, and only for the one host.
"""

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from remote_worker.errors import Misconfigured
from remote_worker.settings import Settings, read_token

#: GitHub takes any name beside a token; this one says what the other half is.
_USER = "x-access-token"
_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One token for one host: from a file, or from the owner's `gh`."""

    host: str
    file: Path | None
    gh: str
    #: where the owner's `gh` keeps its login
    home: Path
    path: str

    def git_options(self) -> tuple[str, ...]:
        """Return what lets git ask for the token, for this host over https and for nothing else."""
        if self.file is None:
            ask = f"HOME={shlex.quote(str(self.home))} {shlex.quote(self.gh)} auth git-credential"
        else:
            ask = (
                f'f() {{ if test "$1" = get; then echo username={_USER}; printf password=;'
                f" cat -- {shlex.quote(str(self.file))}; echo; fi; }}; f"
            )
        return ("-c", f"credential.https://{self.host}.helper=!{ask}")

    def token(self) -> str:
        """Return the token as it is now; Misconfigured when there is none."""
        if self.file is not None:
            return read_token(self.file, way_out="put a token of your git host there")
        argv = [self.gh, "auth", "token", "--hostname", self.host]
        environment = {"PATH": self.path, "HOME": str(self.home)}
        try:
            done = subprocess.run(
                argv, env=environment, capture_output=True, timeout=_LIMIT_S, check=True,
                stdin=subprocess.DEVNULL, cwd=os.sep,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise Misconfigured(
                f"{self.gh} has no token for {self.host} ({error}): run"
                f" `gh auth login --hostname {self.host}` as this user"
            ) from None
        return done.stdout.decode(errors="replace").strip()


def of(settings: Settings) -> Credential | None:
    """Return the credential the owner gave this worker, or None."""
    if settings.git_token_file is None and not settings.use_gh:
        return None
    return Credential(
        host=settings.git_host,
        file=settings.git_token_file,
        gh=settings.gh,
        home=settings.owner_home,
        path=settings.path,
    )


def secrets(settings: Settings) -> list[str]:
    """Return what must not get into a log; a token that cannot be read, nobody can leak."""
    credential = of(settings)
    if credential is None:
        return []
    try:
        return [credential.token()]
    except Misconfigured:
        return []
