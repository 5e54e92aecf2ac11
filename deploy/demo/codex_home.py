"""A CODEX_HOME that talks to the scripted model: the only place that knows Codex's configuration.

python deploy/demo/codex_home.py --codex <codex> --model-url <url> <home>    prints the sandbox
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

#: Nobody checks it: the scripted model takes any key and `codex login status` takes this one.
DUMMY_KEY: Final = "sk-scripted-no-account"
#: Nobody asks it anything; Codex warns of models it has never heard of.
MODEL: Final = "gpt-5.5"
SANDBOXED: Final = "workspace-write"
UNSANDBOXED: Final = "danger-full-access"
TIMEOUT_S: Final = 60.0

#: Plugins, apps and the update check dial github.com and chatgpt.com at every start, and a run in
#: the demo talks to the model and to nobody else.
_CONFIG: Final = """\
model = {model}
model_provider = "scripted"
approval_policy = "never"
sandbox_mode = {sandbox}
check_for_update_on_startup = false

[analytics]
enabled = false

[features]
apps = false
plugins = false
remote_plugin = false
shell_snapshot = false

[model_providers.scripted]
name = "scripted"
base_url = {url}
wire_api = "responses"
request_max_retries = 1
stream_max_retries = 1
"""


def prepare(home: Path, *, codex: str, model_url: str) -> str:
    """Write the configuration, log in, and return the sandbox mode that works on this machine.

    A repeat overwrites the configuration and logs in again. Better not under the folder for
    temporary files: there Codex warns, and goes on without the helpers it puts on PATH.
    """
    home = home.absolute()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(home, model_url=model_url, sandbox=SANDBOXED)
    sandbox = SANDBOXED if sandbox_works(home, codex=codex) else UNSANDBOXED
    _write(home, model_url=model_url, sandbox=sandbox)
    _codex(home, codex, "login", "--with-api-key", text=DUMMY_KEY).check_returncode()
    _codex(home, codex, "login", "status").check_returncode()
    return sandbox


def sandbox_works(home: Path, *, codex: str) -> bool:
    """Say whether Codex can confine a command here: containers often forbid what it needs."""
    return _codex(home, codex, "sandbox", "--", "true").returncode == 0


def environment(home: Path) -> dict[str, str]:
    """Return the environment with which Codex uses this home and nothing of the caller's."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TMPDIR", "USER")
    return {n: os.environ[n] for n in kept if n in os.environ} | {"CODEX_HOME": str(home)}


def _write(home: Path, *, model_url: str, sandbox: str) -> None:
    # A JSON string is a TOML string.
    text = _CONFIG.format(
        model=json.dumps(MODEL), url=json.dumps(model_url), sandbox=json.dumps(sandbox)
    )
    (home / "config.toml").write_text(text, encoding="utf-8")


def _codex(
    home: Path, codex: str, *arguments: str, text: str = ""
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [codex, *arguments],
        input=text,
        env=environment(home),
        cwd=home,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def main(argv: list[str] | None = None) -> int:
    """Prepare a home and print the sandbox mode written into it."""
    parser = argparse.ArgumentParser(description="Prepare a CODEX_HOME for the scripted model.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--codex", required=True)
    parser.add_argument("--model-url", required=True)
    options = parser.parse_args(argv)
    codex = shutil.which(options.codex)
    if codex is None:
        parser.error(f"{options.codex} is not there, or cannot be executed")
    print(prepare(options.home, codex=str(Path(codex).absolute()), model_url=options.model_url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
