"""How a patch becomes a branch and a pull request, from a clone that no agent has ever seen."""

import re
from dataclasses import dataclass
from pathlib import Path

from remote_worker import credentials
from remote_worker.credentials import Credential
from remote_worker.errors import Interrupted, Interruption, JobFailed, WorkerError
from remote_worker.forge import Forge, ForgeFailed, PullRequest
from remote_worker.git import Git, GitFailed
from remote_worker.handlers import patch_rules
from remote_worker.handlers import workspace as ws
from remote_worker.handlers.context import Context
from remote_worker.handlers.publish_payload import Mode, Publish
from remote_worker.repository import Repository

#: What cannot be taken back is done only so soon after the edge said that the job is ours.
FRESH_S = 10.0
_PUSH_LIMIT_S = 600.0
_MAX_ERROR = 1000
_MAX_SUBJECT = 72
_MAX_WORDS = 4000
_AUTHOR = re.compile(r"(.*) <(.*)>")


class _NotPublished(WorkerError):
    """Publishing did not come about; the patch is there all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of the wish to publish."""

    mode: Mode
    branch: str | None = None
    url: str | None = None
    error: str | None = None

    def as_result(self) -> dict[str, object]:
        """Return it as the job's result has it."""
        return {
            "mode": self.mode.value, "branch": self.branch, "url": self.url, "error": self.error,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be published."""

    repository: Repository
    workspace: ws.Workspace
    instruction: str
    patch: Path
    last_message: str | None


def check_possible(context: Context, repository: Repository, wanted: Publish) -> None:
    """Fail before anything runs when this worker could not publish there afterwards."""
    if wanted.mode is Mode.NONE:
        return
    if repository.is_local:
        if wanted.mode is Mode.PR:
            raise _impossible("a repository on this machine has no pull requests")
        return
    credential = credentials.of(context.settings)
    if credential is None or credential.host != repository.host:
        raise _impossible(
            f"this worker has no credential for {repository.host}"
            " (its owner gives one with --git-token-file and --git-host)"
        )


def check_base(workspace: ws.Workspace, wanted: Publish) -> None:
    """Fail before anything runs when a pull request would not know where to go."""
    if wanted.mode is Mode.PR and wanted.base_branch is None and workspace.branch is None:
        raise JobFailed(
            "the job starts from a tag or a commit: publish.baseBranch says where its pull request"
            " goes",
            error_type="invalid_payload",
        )


def publish(context: Context, git: Git, wanted: Publish, work: Work) -> Published:
    """Publish a patch; what is dangerous fails the job, what just fails is told in the result."""
    branch = branch_of(context)
    pushed = False
    try:
        clone, commit = _commit(context, git, wanted, work)
        _push(context, git, work.repository, clone=clone, commit=commit, branch=branch)
        pushed = True
        url = _url(context, wanted, work, branch=branch)
    except (_NotPublished, GitFailed, ForgeFailed, OSError) as error:
        text = context.redactor.text(str(error)).strip()[:_MAX_ERROR]
        context.events.append("warn", f"not published: {text}")
        return Published(mode=wanted.mode, branch=branch if pushed else None, error=text)
    return Published(mode=wanted.mode, branch=branch, url=url)


def branch_of(context: Context) -> str:
    """Return the branch of this grant: no earlier or later holder of the job has its name."""
    return f"drawbridge/{context.job.id}-{context.job.fence or 0}"


def _commit(context: Context, git: Git, wanted: Publish, work: Work) -> tuple[Path, str]:
    """Apply the patch in a clean clone and return the clone and the commit."""
    clone, base = context.directory / "publish.git", work.workspace.base_commit
    here = f"--git-dir={clone}"
    # An agent without a sandbox could have made one for us.
    clone.mkdir()
    git.text("init", "--quiet", "--bare", "--template=", "--", str(clone), cwd=context.directory)
    ws.fetch(git, work.repository, base, depth=1, base=clone)
    git.text(here, "read-tree", base, cwd=clone)
    try:
        git.text(
            here, "-c", "core.protectHFS=true", "-c", "core.protectNTFS=true", "apply", "--cached",
            "--whitespace=nowarn", "--", str(work.patch), cwd=clone,
        )  # fmt: skip
    except GitFailed as error:
        raise JobFailed(f"the patch does not apply: {error}", error_type="patch_refused") from None
    patch_rules.refuse_dangers(
        git, git_dir=clone, base_commit=base, workflows_allowed=context.settings.allow_workflows
    )
    message = context.directory / "commit-message"
    message.write_text(_commit_message(context, wanted, work), encoding="utf-8")
    tree = git.text(here, "write-tree", cwd=clone).strip()
    commit = git.text(
        here, "commit-tree", tree, "-p", base, "-F", str(message), cwd=clone,
        environment=_identity(context.settings.git_author),
    ).strip()  # fmt: skip
    return clone, commit


def _push(
    context: Context, git: Git, repository: Repository, *, clone: Path, commit: str, branch: str
) -> None:
    """Push; a branch of our name is our own, from a push whose answer was lost."""
    own = f"refs/heads/{branch}"
    pattern = f"refs/heads/drawbridge/{context.job.id}-*"
    listing = git.text("ls-remote", "--", repository.url, pattern, cwd=clone, time_limit_s=120)
    rows = [line.split("\t", 1) for line in listing.splitlines()]
    there = {ref: commit for commit, ref in rows}
    earlier = sorted(ref.removeprefix("refs/heads/") for ref in there if ref != own)
    if earlier:
        context.events.append("warn", f"earlier attempts left {', '.join(earlier)[:500]} behind")
    _be_sure(context)
    context.step(f"pushing {branch}")
    git.text(
        f"--git-dir={clone}", "push", "--quiet", "--no-verify", "--recurse-submodules=no",
        f"--force-with-lease={own}:{there.get(own, '')}", "--", repository.url, f"{commit}:{own}",
        cwd=clone, time_limit_s=_PUSH_LIMIT_S,
    )  # fmt: skip


def _url(context: Context, wanted: Publish, work: Work, *, branch: str) -> str | None:
    """Return where people see it; opens the pull request if that was the wish."""
    repository = work.repository
    if wanted.mode is not Mode.PR:
        return None if repository.is_local else f"https://{repository.canonical}/tree/{branch}"
    credential = _credential(context)
    base = wanted.base_branch or work.workspace.branch or ""
    context.step(f"opening a pull request to {base}")
    wish = PullRequest(
        branch=branch,
        base=base,
        title=wanted.title or _subject(context, work),
        body=wanted.body or _body(context, work),
    )
    forge = Forge(context.settings, credential, repository)
    return forge.ensure(wish, may_open=lambda: _be_sure(context))


def _be_sure(context: Context) -> None:
    """Go on only when the edge said a moment ago that the job is ours."""
    sure = context.lease.confirm(max_age_s=FRESH_S)
    why = context.interrupt()
    if why is not None:
        raise Interrupted(why)
    if not sure:
        if context.lease.ended:
            raise Interrupted(Interruption.LEASE_LOST)
        raise _NotPublished("the edge did not confirm in time that the job is still ours")


def _credential(context: Context) -> Credential:
    """Return the credential `check_possible` has seen."""
    credential = credentials.of(context.settings)
    if credential is None:
        raise _NotPublished("this worker has no credential")
    return credential


def _identity(author: str) -> dict[str, str]:
    """Return who the commit is by."""
    match = _AUTHOR.fullmatch(author)
    name, address = match.groups() if match else (author, "")
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": address,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": address,
    }


def _commit_message(context: Context, wanted: Publish, work: Work) -> str:
    """Return the payload's message, or the default; either names the job."""
    text = wanted.commit_message or wanted.title or _subject(context, work)
    return f"{text.rstrip()}\n\nDrawbridge-Job: {context.job.id}\n"


def _subject(context: Context, work: Work) -> str:
    """Return the first line of the instruction, as far as a subject goes."""
    words = " ".join(context.redactor.text(work.instruction).strip().splitlines()[0].split())
    return words if len(words) <= _MAX_SUBJECT else words[: _MAX_SUBJECT - 1].rstrip() + "…"


def _body(context: Context, work: Work) -> str:
    """Return what a pull request says when the payload says nothing."""
    last = context.redactor.text(work.last_message or "").strip()[:_MAX_WORDS]
    made = f"Made by Drawbridge job `{context.job.id}` from {work.workspace.base_commit}."
    return f"{last}\n\n---\n{made}\n" if last else f"{made}\n"


def _impossible(text: str) -> JobFailed:
    """Return the failure of a wish this worker cannot fulfil."""
    return JobFailed(text, error_type="publish_not_possible")
