"""Branches and pull requests, with real git over real https at a host that knows one token."""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from remote_worker.handlers import patch_rules
from tests.githost import GIT_TOKEN, HOST, GitHost
from tests.unit.remote_worker.conftest import GOOD, Run, run_git
from tests.unit.remote_worker.edge import FakeEdge, Held, refusal

#: The agent looks for the token wherever it could lie in the open.
SNOOP = """
import subprocess, sys
from pathlib import Path
here = Path(sys.argv[sys.argv.index("--cd") + 1])
words = [Path("/proc/self/environ").read_bytes()]
for one in Path("/proc").glob("[0-9]*"):
    for name in ("environ", "cmdline"):
        try:
            words.append((one / name).read_bytes())
        except OSError:
            pass
for one in here.parent.rglob("*"):
    if one.is_file() and not one.is_symlink():
        words.append(one.read_bytes())
token = "ghp_" + "t0ken" * 8
(here / "seen.txt").write_text(str(any(token.encode() in word for word in words)) + chr(10))
"""


@pytest.fixture
def host(tmp_path: Path, template: Path) -> Iterator[GitHost]:
    root = tmp_path / "host"
    (root / "Org").mkdir(parents=True)
    run_git("clone", "-q", "--bare", str(template), str(root / "Org" / "Repo.git"), cwd=tmp_path)
    with GitHost(root) as running:
        yield running


@pytest.fixture
def bare(host: GitHost) -> Path:
    return host.root / "Org" / "Repo.git"


@pytest.fixture
def git_token(tmp_path: Path) -> Path:
    path = tmp_path / "it's a git token"
    path.write_text(GIT_TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def publish(run: Run, host: GitHost, git_token: Path) -> Run:
    """Run a job on the private repository of the host."""

    def call(code: str = GOOD, *, mode: str = "branch", **more: Any) -> Held:
        given = {
            "allow_repository": (f"{HOST}/*",),
            "git_token_file": git_token,
            "git_host": HOST,
            "pass_environment": host.way,
        }
        settings = given | more.pop("settings", {})
        wanted = {"mode": mode} | more.pop("publish", {})
        repository = more.pop("repository", f"https://{HOST}/Org/Repo")
        return run(code, settings=settings, repository=repository, publish=wanted, **more)

    return call


def branch_of(held: Held) -> str:
    return f"drawbridge/{held.job['id']}-7"


def told(held: Held) -> dict[str, Any]:
    published: dict[str, Any] = held.report["result"]["publish"]
    return published


def test_a_branch_from_a_private_repository(publish: Run, host: GitHost, bare: Path) -> None:
    held = publish(ref="feature/x", publish={"commitMessage": "Fix it\n\nBecause."})
    assert held.ended == "complete"
    branch = branch_of(held)
    url = f"https://{HOST}/Org/Repo/tree/{branch}"
    assert told(held) == {"mode": "branch", "branch": branch, "url": url, "error": None}
    assert f"published as {url}" in held.report["resultSummary"]
    assert run_git("rev-parse", f"{branch}^", cwd=bare) == run_git(
        "rev-parse", "feature/x", cwd=bare
    )
    message = run_git("log", "-1", "--format=%B|%an|%ae|%cn", branch, cwd=bare)
    job = held.job["id"]
    assert message == (
        f"Fix it\n\nBecause.\n\nDrawbridge-Job: {job}\n|Drawbridge|drawbridge@localhost|Drawbridge"
    )
    assert run_git("show", f"{branch}:a.txt", cwd=bare) == "changed"
    changed = run_git("diff", "--name-only", "feature/x", branch, cwd=bare).split()
    assert changed == held.report["result"]["changedFiles"] == ["a.txt", "new.txt"]
    assert held.artifacts["patches/changes.patch"]["text"]
    assert host.asked == []
    assert f"pushing {branch}" in held.messages


def test_the_agent_finds_the_token_nowhere_in_the_open(publish: Run, bare: Path) -> None:
    held = publish(SNOOP)
    assert run_git("show", f"{branch_of(held)}:seen.txt", cwd=bare) == "False"


def test_a_pull_request_with_the_words_of_the_payload(publish: Run, host: GitHost) -> None:
    words = {"title": "A title", "body": "A body", "baseBranch": "feature/x"}
    held = publish(mode="pr", publish=words, ref="v1")
    branch = branch_of(held)
    url = f"https://{HOST}/Org/Repo/pulls/1"
    assert told(held) == {"mode": "pr", "branch": branch, "url": url, "error": None}
    looked, opened = host.asked
    assert looked.method == "GET"
    assert parse_qs(urlsplit(looked.path).query) == {
        "head": [f"Org:{branch}"], "base": ["feature/x"], "state": ["open"],
    }  # fmt: skip
    assert (opened.method, opened.path) == ("POST", "/api/v3/repos/Org/Repo/pulls")
    assert opened.body == {
        "title": "A title",
        "head": branch,
        "base": "feature/x",
        "body": "A body",
    }


def test_a_pull_request_without_words(publish: Run, host: GitHost, bare: Path) -> None:
    held = publish(mode="pr", instruction="\n  Greet  everyone by name.\nAnd more.")
    body = host.asked[-1].body
    assert body["title"] == "Greet everyone by name."
    assert body["base"] == "main"
    base = run_git("rev-parse", "main", cwd=bare)
    made = f"Made by Drawbridge job `{held.job['id']}` from {base}."
    assert body["body"] == f"All [redacted] done.\n\n---\n{made}\n"
    subject = run_git("log", "-1", "--format=%s", branch_of(held), cwd=bare)
    assert subject == "Greet everyone by name."


@pytest.mark.parametrize("trouble", ["POST lost", "GET 502"])
def test_a_lost_answer_opens_no_second_pull_request(
    publish: Run, host: GitHost, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr("remote_worker.forge.time.sleep", lambda _: None)
    host.trouble = [trouble]
    held = publish(mode="pr")
    assert told(held)["url"] == f"https://{HOST}/Org/Repo/pulls/1"
    assert len(host.pulls) == 1


def test_a_repeat_finds_its_own_branch_and_pull_request(
    publish: Run, host: GitHost, bare: Path, edge: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(mode="pr")
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(first.job["id"]))
    monkeypatch.setattr(edge, "jobs", {})
    again = publish(GOOD.replace("changed", "again"), mode="pr")
    assert branch_of(again) == branch_of(first)
    assert told(again) == told(first)
    assert len(host.pulls) == 1
    assert run_git("show", f"{branch_of(again)}:a.txt", cwd=bare) == "again"


def test_what_an_earlier_attempt_left_is_told_and_left(publish: Run, bare: Path) -> None:
    # whatever job comes, it had an earlier holder
    code = GOOD + (
        "import subprocess\n"
        f"subprocess.run(['git', '-C', {str(bare)!r}, 'branch',"
        " 'drawbridge/' + os.environ['BRIDGE_JOB_ID'] + '-6', 'main'], check=True)\n"
    )
    held = publish(code)
    old = branch_of(held).removesuffix("-7") + "-6"
    assert f"earlier attempts left {old} behind" in held.messages
    assert run_git("rev-parse", old, cwd=bare) == run_git("rev-parse", "main", cwd=bare)
    assert told(held)["error"] is None


def test_nothing_changed_publishes_nothing(publish: Run, host: GitHost, bare: Path) -> None:
    held = publish("import sys; sys.stdin.read()", mode="pr")
    assert told(held) == {"mode": "pr", "branch": None, "url": None, "error": None}
    assert host.asked == []
    assert "drawbridge" not in run_git("branch", "-a", cwd=bare)


def test_a_push_that_is_refused_keeps_the_patch_and_the_success(publish: Run, bare: Path) -> None:
    hook = bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho protected >&2\nexit 1\n")
    hook.chmod(0o755)
    held = publish(mode="pr")
    assert held.ended == "complete"
    assert told(held)["branch"] is None
    assert "pre-receive hook declined" in told(held)["error"]
    assert "NOT published as pr: git push" in held.report["resultSummary"]
    assert "changed" in held.artifacts["patches/changes.patch"]["text"]


def test_a_forge_that_refuses_leaves_the_branch(
    publish: Run, host: GitHost, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.forge.time.sleep", lambda _: None)
    host.trouble = ["GET 502"] * 3
    held = publish(mode="pr")
    branch = branch_of(held)
    assert told(held) == {
        "mode": "pr", "branch": branch, "url": None, "error": "the forge answered 502 without JSON",
    }  # fmt: skip
    assert f"pushed as {branch}, but NOT published as pr" in held.report["resultSummary"]
    assert run_git("rev-parse", branch, cwd=bare)


@pytest.mark.parametrize(
    "mode,change,said",
    [
        ("branch", {"git_token_file": None}, "no credential for git.test"),
        ("pr", {"git_host": "other.test"}, "no credential for git.test"),
    ],
)
def test_what_cannot_be_published_afterwards_is_not_begun(
    publish: Run, host: GitHost, seen: Path, mode: str, change: dict[str, object], said: str
) -> None:
    held = publish(mode=mode, settings=change)
    assert held.report["errorType"] == "publish_not_possible"
    assert said in held.report["errorMessage"]
    assert not seen.exists()
    assert host.known == host.strangers == []


def test_a_pull_request_must_know_where_it_goes(publish: Run, seen: Path) -> None:
    held = publish(mode="pr", ref="v1")
    assert held.report["errorType"] == "invalid_payload"
    assert "baseBranch" in held.report["errorMessage"]
    assert not seen.exists()


def test_the_token_goes_to_its_own_host_alone(publish: Run, host: GitHost) -> None:
    held = publish(mode="none", settings={"git_host": "other.test"})
    assert held.report["errorType"] == "clone_failed"
    assert held.report["retryable"] is False
    assert host.known == []
    assert host.strangers


def test_a_wrong_token_is_no_credential(publish: Run, git_token: Path) -> None:
    git_token.write_text("wrong\n")
    held = publish(mode="none")
    assert held.report["errorType"] == "clone_failed"


def test_without_a_fresh_word_of_the_edge_nothing_is_pushed(
    publish: Run, edge: FakeEdge, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.lease._CONFIRM_PAUSE_S", 0.0)
    monkeypatch.setattr("remote_worker.handlers.publish.FRESH_S", 0.0)
    held = publish()
    assert held.ended == "complete"
    assert "did not confirm" in told(held)["error"]
    assert "drawbridge" not in run_git("branch", "-a", cwd=bare)
    assert held.artifacts["patches/changes.patch"]


def test_a_lost_lease_publishes_nothing(
    publish: Run, edge: FakeEdge, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_worker.handlers.publish.FRESH_S", 0.0)

    def lose(*_: object, **__: object) -> bool:
        edge.instead("/heartbeat", refusal(409, "job_ownership_mismatch"), times=99)
        return True

    monkeypatch.setattr("remote_worker.handlers.publish.patch_rules.refuse_dangers", lose)
    held = publish()
    assert held.ended is None
    assert "drawbridge" not in run_git("branch", "-a", cwd=bare)


def test_a_repository_on_this_machine_gets_its_branch(run: Run, source: Path) -> None:
    held = run(GOOD, publish={"mode": "branch"})
    assert told(held) == {
        "mode": "branch", "branch": branch_of(held), "url": None, "error": None,
    }  # fmt: skip
    assert run_git("show", f"{branch_of(held)}:new.txt", cwd=source) == "new"


DANGERS = {
    "a link out": 'os.symlink("../../etc/passwd", here / "link")',
    "a workflow": '(here / ".github/workflows").mkdir(parents=True);'
    ' (here / ".github/workflows/x.yml").write_text("on: push")',
}


@pytest.mark.parametrize("danger", ["a link out", "a workflow"])
def test_a_dangerous_patch_fails_the_job_and_is_kept(publish: Run, bare: Path, danger: str) -> None:
    held = publish(GOOD + DANGERS[danger] + "\n")
    assert held.report["errorType"] == "patch_refused"
    assert held.report["retryable"] is False
    assert set(held.artifacts) == {"logs/codex_exec.log", "patches/changes.patch"}
    assert "drawbridge" not in run_git("branch", "-a", cwd=bare)


def test_workflows_where_the_owner_lets_them(publish: Run, bare: Path) -> None:
    held = publish(GOOD + DANGERS["a workflow"] + "\n", settings={"allow_workflows": True})
    shown = run_git("show", f"{branch_of(held)}:.github/workflows/x.yml", cwd=bare)
    assert shown == "on: push"


def test_a_submodule_stays_what_it_was(run: Run, source: Path) -> None:
    commit = run_git("rev-parse", "HEAD", cwd=source)
    entry = f"160000,{commit},module"
    run_git("update-index", "--add", "--cacheinfo", entry, cwd=source)
    run_git("commit", "-qm", "module", cwd=source)
    held = run(GOOD + 'os.rmdir(here / "module")\n', publish={"mode": "branch"})
    tree = run_git("ls-tree", branch_of(held), "module", cwd=source)
    assert tree == f"160000 commit {commit}\tmodule"


@pytest.mark.parametrize(
    "head,path,why",
    [
        ("100644 100644", ".git/config", "git's own"),
        ("100644 100644", "a/.GIT/hooks/x", "git's own"),
        ("100644 100644", "a/.git /x", "git's own"),
        ("100644 100644", "a/.g\u200cit/x", "git's own"),
        ("100644 100644", "GIT~1/x", "git's own"),
        ("100644 100644", ".git::$INDEX_ALLOCATION/x", "git's own"),
        ("000000 100644", "../x", "out of"),
        ("000000 100644", "a/../../x", "out of"),
        ("000000 100644", "/etc/x", "out of"),
        ("000000 160000", "module", "submodule"),
        ("160000 000000", "module", "submodule"),
        ("100644 000000", ".github/workflows/x.yml", "by itself"),
        ("100644 100644", ".GitHub/Workflows/x.yml", "by itself"),
        ("000000 120000", ".github/workflows", "by itself"),
        ("040000 120000", ".github", "by itself"),
        ("100644 100644", "digit~1/a.gitignore", None),
        ("100644 100644", ".github/dependabot.yml", None),
    ],
)
def test_the_rules_of_paths(head: str, path: str, why: str | None) -> None:
    [change] = patch_rules._changes(f":{head} {'0' * 40} {'1' * 40} M\0{path}\0")
    said = patch_rules._danger(change, workflows_allowed=False)
    assert said is None if why is None else why in (said or "")


@pytest.mark.parametrize(
    "path,target,fine",
    [
        ("a/b/link", "../../c", True),
        ("a/b/link", "../../../c", False),
        ("link", "a/../..", False),
        ("link", "a/b/../..", False),
        ("link", "./../..a/x", False),
        ("a/link", "../.b/c", True),
        ("link", "/", False),
        ("link", "a/.Git/x", False),
        ("link", "x" * 5000, False),
    ],
)
def test_the_rules_of_links(path: str, target: str, fine: bool) -> None:
    assert (patch_rules._leads_away(path, target) is None) is fine


SECRETS = {
    "text": '(here / "s.txt").write_text("x = ghp_" + "Zz9" * 12)',
    "binary": '(here / "s.bin").write_bytes(b"\\0\\1ghp_" + b"Zz9" * 12 + b"\\0")',
    "a name": '(here / ("ghp_" + "Zz9" * 12)).write_text("x")',
    "the name of nothing": '(here / ("ghp_" + "Zz9" * 12)).touch()',
    "the worker's own": '(here / "s.txt").write_text("%(token)s")',
    "one long line": '(here / "s.txt").write_text("x" * 3000000 + "ghp_" + "Zz9" * 12)',
}


@pytest.mark.parametrize("where", SECRETS)
def test_a_secret_in_the_patch_goes_nowhere(run: Run, source: Path, where: str) -> None:
    mode = "branch" if where == "text" else "none"
    held = run(GOOD + SECRETS[where] + "\n", publish={"mode": mode})
    assert held.report["errorType"] == "secret_in_patch"
    assert "Zz9Zz9" not in json.dumps(held.report)
    assert list(held.artifacts) == ["logs/codex_exec.log"]
    assert "drawbridge" not in run_git("branch", "-a", cwd=source)


def test_a_secret_that_was_there_before_is_no_ones_news(run: Run, source: Path) -> None:
    (source / "a.txt").write_text("ghp_" + "Zz9" * 12 + "\none\n")
    run_git("commit", "-qam", "fixture", cwd=source)
    held = run('f = open("a.txt", "a"); f.write("more" + chr(10))')
    assert held.ended == "complete"
    held = run('open("a.txt", "w").write("clean" + chr(10))')
    assert held.ended == "complete"


def test_the_owners_gh_in_the_token_files_place(
    publish: Run, bare: Path, host: GitHost, tmp_path: Path
) -> None:
    gh = tmp_path / "gh"
    gh.write_text(
        f"""#!{sys.executable} -IS
import os, sys
assert os.environ["HOME"] == {str(tmp_path)!r}
match sys.argv[1:]:
    case ["auth", "token", "--hostname", {HOST!r}]:
        print({GIT_TOKEN!r})
    case ["auth", "git-credential", "get"]:
        assert "host={HOST}" in sys.stdin.read()
        print("username=x-access-token")
        print("password=" + {GIT_TOKEN!r})
    case ["auth", "git-credential", "store" | "erase"]:
        pass
    case other:
        sys.exit(f"what is {{other}}?")
"""
    )
    gh.chmod(0o755)
    login = {"git_token_file": None, "use_gh": True, "gh": str(gh), "owner_home": tmp_path}
    held = publish(mode="pr", settings=login)
    assert told(held)["url"] == f"https://{HOST}/Org/Repo/pulls/1", told(held)
    assert run_git("rev-parse", branch_of(held), cwd=bare)
