"""Attacks on the worker by repositories, refs, workspaces and patches."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_worker.handlers import changes as changed
from remote_worker.handlers import workspace as ws
from remote_worker.limits import MIB, Limits
from tests.attacks.worker_kit import (
    GOOD,
    Run,
    bare,
    client,
    edge,
    git_token,
    host,
    make_settings,
    publish,
    run,
    run_git,
    seen,
    source,
    template,
    token_file,
    waits,
    wire,
)
from tests.githost import GitHost

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def no_git(tmp_path: Path) -> Callable[[], bool]:
    """Give a git that tells when it was run at all, in place of the worker's."""
    marker, program = tmp_path / "git-was-run", tmp_path / "git-trap"
    program.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    program.chmod(0o755)
    return lambda: not marker.exists()


@pytest.mark.attack(99)
@pytest.mark.parametrize(
    "repository",
    [
        "--upload-pack=touch X", "-uX", "ext::sh -c touch% X", "fd::17", "file:///etc/../x",
        "/local/path", "http://github.com/Org/Repo", "git://github.com/Org/Repo",
        "ssh://-oProxyCommand=touch/x", "https://user:pw@github.com/Org/Repo",
        "https://github.com:8443/Org/Repo", "https://169.254.169.254/a/b", "https://2130706433/a/b",
        "https://0x7f.1/a/b", "https://github.com/Org/Repo\n--upload-pack=x", "https://git%68ub.com/a/b",
        "https://github.com/-Org/Repo", "git@-oProxyCommand=x:a/b", "https://g\u0456thub.com/Org/Repo",
        "", "a", "..", 7, None, {"url": "https://github.com/Org/Repo"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_repository_that_is_none(
    run: Run, no_git: Callable[[], bool], seen: Path, tmp_path: Path, repository: object
) -> None:
    """It is refused before any git process."""
    held = run(GOOD, repository=repository, settings={"git": str(tmp_path / "git-trap")})
    assert (held.ended, held.report["errorType"]) == ("fail", "invalid_repository")
    assert held.report["retryable"] is False
    assert no_git()
    assert not seen.exists()


@pytest.mark.attack(99)
@pytest.mark.parametrize("repository", ["file:///etc", "file:///root/secret.git"])
def test_a_repository_on_this_machine_without_the_owners_word(
    run: Run, no_git: Callable[[], bool], tmp_path: Path, repository: str
) -> None:
    held = run(GOOD, repository=repository, settings={"git": str(tmp_path / "git-trap")})
    assert held.report["errorType"] == "repository_not_allowed"
    assert no_git()


@pytest.mark.attack(101)
@pytest.mark.parametrize(
    "ref",
    [
        "--upload-pack=touch X", "--orphan=x", "-f", "a..b", "@{-1}", "HEAD@{1}", "+main",
        "refs/heads/x:refs/heads/main", "main\nx", "main x", "a\\b", "a//b", "x.lock", "a/.b",
        "main^{commit}", "main~1", ":/first", "*", "m?in", "[a]", "ref\u202e", "0" * 40, "a" * 300,
    ],
    ids=repr,
)  # fmt: skip
def test_a_ref_that_is_none(
    run: Run, no_git: Callable[[], bool], seen: Path, tmp_path: Path, ref: str
) -> None:
    for payload in ({"ref": ref}, {"publish": {"mode": "branch", "baseBranch": ref}}):
        held = run(GOOD, settings={"git": str(tmp_path / "git-trap")}, **payload)
        assert held.report["errorType"] in {"invalid_ref", "invalid_payload"}
        assert held.report["retryable"] is False
    assert no_git()
    assert not seen.exists()


# Everything the agent can leave in its workspace for a git that would believe it.
POISON = """
import os, subprocess
marker = os.environ["BRIDGE_MARKER"]
script = os.path.join(os.path.dirname(here), "evil.sh")
with open(script, "w") as file:
    file.write("#!/bin/sh\\ntouch " + marker + "\\ncat\\n")
os.chmod(script, 0o755)
dirs = [here / ".git", here / "nested" / ".git"]
(here / "nested").mkdir()
subprocess.run(["git", "init", "-q", str(here / "nested")], check=True)
(here / "nested" / "file").write_text("in a nested repository")
for git in dirs:
    with open(git / "config", "a") as config:
        config.write(f'''
[core]
    fsmonitor = {script}
    sshCommand = {script}
    hooksPath = {git}/hooks
    pager = {script}
    editor = {script}
    askPass = {script}
    gitProxy = {script}
    alternateRefsCommand = {script}
    attributesFile = {here}/.gitattributes
[diff]
    external = {script}
[diff "evil"]
    textconv = {script}
    command = {script}
[filter "evil"]
    clean = {script}
    smudge = {script}
    process = {script}
    required = true
[merge "evil"]
    driver = {script}
[gpg]
    program = {script}
[commit]
    gpgSign = true
[credential]
    helper = !{script}
[alias]
    add = !{script}
    diff = !{script}
    diff-index = !{script}
    fetch = !{script}
    push = !{script}
[url "ext::sh -c {script}"]
    insteadOf = https://
    pushInsteadOf = https://
[remote "origin"]
    uploadpack = {script}
    receivepack = {script}
[uploadpack]
    packObjectsHook = {script}
[protocol "ext"]
    allow = always
[include]
    path = {script}
''')
    (git / "hooks").mkdir(exist_ok=True)
    for name in ("pre-commit", "post-checkout", "post-index-change", "pre-push", "commit-msg",
                 "reference-transaction", "post-commit", "fsmonitor-watchman", "pre-auto-gc",
                 "post-merge", "post-rewrite", "applypatch-msg", "pre-applypatch"):
        hook = git / "hooks" / name
        hook.write_text("#!/bin/sh\\ntouch " + marker + "\\n")
        hook.chmod(0o755)
(here / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\\n")
(here / ".git" / "info").mkdir(exist_ok=True)
(here / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil\\n")
(here / "a.txt").write_text("changed\\n")
"""


@pytest.mark.attack(102)
def test_what_the_agent_configures_is_run_by_nobody_else(
    publish: Run, bare: Path, tmp_path: Path
) -> None:
    """Collected, published and pushed: the daemon's git believes nothing in the workspace."""
    marker = tmp_path / "marker"
    code = GOOD.split('(here / "a.txt")')[0] + POISON.replace(
        'os.environ["BRIDGE_MARKER"]', repr(str(marker))
    )
    # what the agent's own git ran while it set this up is not the daemon's doing
    held = publish(code + f"\nif os.path.exists({str(marker)!r}): os.unlink({str(marker)!r})\n")
    assert held.ended == "complete", held.report
    published = held.report["result"]["publish"]
    assert published["error"] is None
    assert run_git("show", f"{published['branch']}:a.txt", cwd=bare) == "changed"
    assert "nested/file" in held.report["result"]["changedFiles"]
    assert not marker.exists()


@pytest.mark.attack(104)
def test_what_an_earlier_job_or_the_environment_left_is_inert(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, evil, owner = (tmp_path / name for name in ("marker", "evil", "owner"))
    evil.write_text(f"#!/bin/sh\ntouch {marker}\n")
    evil.chmod(0o755)
    config = f"[core]\n\tfsmonitor = {evil}\n\thooksPath = {owner}\n[diff]\n\texternal = {evil}\n"
    for place in (owner, owner / "git"):
        place.mkdir()
    (owner / ".gitconfig").write_text(config)
    (owner / "git" / "config").write_text(config)
    monkeypatch.setenv("HOME", str(owner))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(owner))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(owner / ".gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(evil))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(evil))
    monkeypatch.setenv("GIT_SSH_COMMAND", str(evil))
    monkeypatch.setenv("GIT_ASKPASS", str(evil))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(owner))
    leave = f"""
import os
from pathlib import Path
for name in (".gitconfig", ".config/git/config"):
    path = Path(os.environ["HOME"], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text({config!r})
open("left.txt", "w").write("x")
"""
    look = """
import os, subprocess
print("GIT:", sorted(name for name in os.environ if name.startswith(("GIT_", "XDG"))))
print("CONFIG:", subprocess.run(["git", "config", "--get-all", "core.fsmonitor"],
                                capture_output=True).returncode)
open("left.txt", "w").write("x")
"""
    for code in (leave, look):
        held = run(code, publish={"mode": "branch"})
        assert held.ended == "complete", held.report
        assert held.report["result"]["changedFiles"] == ["left.txt"]
    said = held.artifacts["logs/codex_exec.log"]["text"]
    assert "GIT: []" in said
    assert "CONFIG: 1" in said
    assert not marker.exists()


def commit_modules(source: Path, modules: dict[str, str]) -> None:
    """Commit submodules: what `.gitmodules` says of each path."""
    commit = run_git("rev-parse", "HEAD", cwd=source)
    text = "".join(f'[submodule "{path}"]\n\tpath = {path}\n{modules[path]}' for path in modules)
    (source / ".gitmodules").write_text(text)
    for path in modules:
        entry = f"160000,{commit},{path}"
        run_git("update-index", "--add", "--cacheinfo", entry, cwd=source)
    run_git("add", "-f", ".gitmodules", cwd=source)
    run_git("commit", "-qm", "submodules", cwd=source)


@pytest.mark.attack(105)
@pytest.mark.parametrize(
    "said",
    [
        "\turl = ext::sh -c touch% {marker}\n",
        "\turl = --upload-pack=touch {marker}\n",
        "\turl = https://git.test/a/b\n\tupdate = !touch {marker}\n",
    ],
)
def test_submodules_that_would_run_something_are_never_fetched(
    run: Run, source: Path, seen: Path, tmp_path: Path, said: str
) -> None:
    marker = tmp_path / "marker"
    commit_modules(source, {"module": said.format(marker=marker)})
    held = run(GOOD)
    if held.ended == "fail":
        assert held.report["errorType"] == "clone_failed"
        assert held.report["retryable"] is False
    assert not marker.exists()


@pytest.mark.attack(105)
def test_repositories_within_are_not_believed(run: Run, source: Path, tmp_path: Path) -> None:
    """A submodule, one whose path ends in CR, names that differ by case, a bare repository."""
    marker = tmp_path / "marker"
    url = f"\turl = file://{source}\n"
    commit_modules(source, {"module": url, '"cr\r"': url})
    blob = run_git("hash-object", "-w", "a.txt", cwd=source)
    for path in ("CASE/file", "case"):
        run_git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", cwd=source)
    inner = source / "bare"
    run_git("init", "-q", "--bare", "--template=", str(inner), cwd=source)
    with (inner / "config").open("a") as config:
        config.write(f"\tfsmonitor = touch {marker}\n\tworktree = .\n")
    (inner / "refs" / "keep").write_text("")
    run_git("add", "-f", "bare", cwd=source)
    run_git("commit", "-qm", "hostile", cwd=source)
    code = """
import os
print("THERE:", os.listdir("module"))
open("a.txt", "w").write("changed")
"""
    held = run(code, publish={"mode": "branch"})
    assert held.ended == "complete", held.report
    assert "THERE: []" in held.artifacts["logs/codex_exec.log"]["text"]
    assert "a.txt" in held.report["result"]["changedFiles"]
    assert held.report["result"]["publish"]["error"] is None
    assert not marker.exists()


def new_file(path: str, text: str = "x", mode: str = "100644") -> str:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+{text}\n"
    )


LINK = (
    "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n"
    "+{target}\n\\ No newline at end of file\n"
)
MODULE = (
    f"diff --git a/m b/m\nnew file mode 160000\nindex 0000000..{'1' * 40}\n"
    f"--- /dev/null\n+++ b/m\n@@ -0,0 +1 @@\n+Subproject commit {'1' * 40}\n"
)
PATCHES = {
    "git": new_file(".git/config"),
    "hooks": new_file("a/.GIT/hooks/pre-commit", mode="100755"),
    "short": new_file("GIT~1/config"),
    "ignorable": new_file(".g\u200cit/config"),
    "up": new_file("../outside"),
    "absolute": new_file("/etc/outside"),
    "link out": LINK.format(target="../../outside"),
    "link to root": LINK.format(target="/etc/passwd"),
    "link to git": LINK.format(target=".git/config"),
    "through a link": LINK.format(target="/tmp") + new_file("link/outside"),  # noqa: S108
    "submodule": MODULE,
    "workflow": new_file(".github/workflows/x.yml", "on: push"),
    "workflow, other case": new_file(".GitHub/Workflows/x.yml", "on: push"),
}


@pytest.mark.attack(107)
@pytest.mark.parametrize("name", sorted(PATCHES))
def test_a_patch_that_leads_away_is_published_by_nobody(
    publish: Run, host: GitHost, bare: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the collection might let through, publishing refuses."""

    def collected(*_: object, directory: Path, patch: Path, **__: object) -> changed.Changes:
        patch.write_text(PATCHES[name])
        (directory / changed.COLLECTED).mkdir()
        return changed.Changes(patch=patch, files=("x",), unnested=0)

    monkeypatch.setattr("remote_worker.handlers.changes.collect", collected)
    monkeypatch.setattr("remote_worker.handlers.patch_rules.refuse_secrets", lambda *_, **__: None)
    before = run_git("for-each-ref", cwd=bare)
    held = publish(mode="pr")
    assert (held.ended, held.report["errorType"]) == ("fail", "patch_refused")
    assert held.report["retryable"] is False
    assert held.artifacts["patches/changes.patch"]["text"] == PATCHES[name]
    assert run_git("for-each-ref", cwd=bare) == before
    assert host.asked == []


@pytest.mark.attack(108)
@pytest.mark.parametrize("kind", ["large", "many", "bomb"])
def test_a_repository_that_is_too_much(run: Run, source: Path, seen: Path, kind: str) -> None:
    if kind == "large":
        (source / "large").write_bytes(os.urandom(12 * MIB))
    elif kind == "many":
        for number in range(3000):
            (source / f"f{number}").write_text("")
    else:
        # a few thousand bytes to fetch, much to check out
        (source / "bomb").write_bytes(b"x" * 40 * MIB)
    run_git("add", "-A", cwd=source)
    run_git("commit", "-qm", kind, cwd=source)
    limits = Limits(workspace_bytes=8 * MIB, workspace_files=2000)
    held = run(GOOD, settings={"limits": limits})
    assert (held.ended, held.report["errorType"]) == ("fail", "workspace_too_large")
    assert held.report["retryable"] is False
    # the fixture has seen that nothing of it is left on the disk
    assert not seen.exists()
