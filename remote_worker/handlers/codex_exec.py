"""The `codex_exec` job: a fresh clone, one `codex exec`, its log and its patch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from remote_worker import codex, credentials
from remote_worker.errors import Interruption, JobFailed
from remote_worker.git import Git, GitFailed
from remote_worker.handlers import changes as changed
from remote_worker.handlers import patch_rules
from remote_worker.handlers import publish as pub
from remote_worker.handlers import workspace as ws
from remote_worker.handlers.clone_cache import CloneCache
from remote_worker.handlers.codex_events import Transcript
from remote_worker.handlers.codex_payload import CodexTask, parse_task
from remote_worker.handlers.context import Context, Outcome
from remote_worker.handlers.publish_payload import Mode
from remote_worker.limits import TIMED_OUT, TOO_LARGE
from remote_worker.output import Log
from remote_worker.repository import allowed
from remote_worker.settings import WAY_OUT

LOG_NAME = "logs/codex_exec.log"
PATCH_NAME = "patches/changes.patch"

MAX_LOG = 50 * 1024 * 1024
#: A result holds 256 KiB; names beyond these are in the patch.
_MAX_FILES, _MAX_FILES_BYTES = 1000, 64 * 1024
_MAX_WORDS = 1000


def codex_exec(context: Context) -> Outcome:
    """Run one job."""
    task = parse_task(context.job.payload)
    for ref in (task.ref, task.publish.base_branch):
        if ref is not None:
            ws.check_ref(ref)
    if not allowed(task.repository, context.settings.allow_repository):
        raise JobFailed(
            f"this worker does not take {task.repository.canonical}"
            " (its owner decides with --allow-repository)",
            error_type="repository_not_allowed",
        )
    pub.check_possible(context, task.repository, task.publish)
    begun = time.monotonic()
    git = _git(context, task)
    context.step(f"cloning {task.repository.canonical} at {task.ref or 'its default branch'}")
    inside = _inside(context)
    workspace = ws.prepare(
        git, task.repository, ref=task.ref, depth=task.depth, directory=inside.directory,
        cache=CloneCache(context.settings.work_dir / "cache") if task.reuse else None,
    )  # fmt: skip
    pub.check_base(workspace, task.publish)
    context.step(f"starting codex on {workspace.base_commit[:12]}")
    transcript = _transcript(context, workspace)
    try:
        context.check_room()
        _run_codex(context, inside, task, workspace, transcript)
        context.check_room()
    except JobFailed as failure:
        full = failure.error_type == TOO_LARGE
        # past the hard limit nothing more is run for it
        over = failure.error_type == TIMED_OUT[Interruption.TIME_LIMIT]
        files = [_log_file(context)] if full or over else _kept(context, git, workspace)
        if full:
            ws.discard(workspace)
        raise failure.with_files(files) from None
    context.step("collecting the changes")
    changes = _collect(context, git, workspace)
    published = _publish(context, git, task, workspace, changes, transcript)
    run_of = _Run(task, workspace, changes, transcript, published, time.monotonic() - begun)
    return _outcome(context, run_of)


@dataclass(frozen=True, slots=True)
class _Run:
    """All that is known of a run that came to its end."""

    task: CodexTask
    workspace: ws.Workspace
    changes: changed.Changes
    transcript: Transcript
    published: pub.Published
    seconds: float


def _git(context: Context, task: CodexTask) -> Git:
    """Return the git of this job."""
    home = context.directory / "git-home"
    home.mkdir()
    passed = context.settings.pass_environment
    return Git(
        program=context.settings.git,
        home=home,
        interrupt=context.interrupt,
        allow_file=task.repository.is_local,
        environment={
            "PATH": context.settings.path,
            **{name: value for name, value in passed.items() if name in WAY_OUT},
            # git's own name for it: built on GnuTLS, it does not know the usual one.
            **({"GIT_SSL_CAINFO": bundle} if (bundle := passed.get("SSL_CERT_FILE")) else {}),
        },
        credential=credentials.of(context.settings),
        limits=context.settings.limits,
        workspace=context.directory,
    )


def _inside(context: Context) -> Context:
    """Return the same job as the agent may see it: what we write about it lies one level up."""
    directory = context.directory / "inside"
    directory.mkdir()
    return replace(context, directory=directory)


def _models(context: Context, task: CodexTask) -> tuple[str | None, str | None]:
    """Return model and effort: the payload's, else the worker's, else Codex's own."""
    return task.model or context.settings.model, task.effort or context.settings.effort


def _run_codex(
    context: Context,
    inside: Context,
    task: CodexTask,
    workspace: ws.Workspace,
    transcript: Transcript,
) -> None:
    """Run the agent to its end."""
    instruction = context.directory / "instruction"
    instruction.write_text(task.instruction, encoding="utf-8")
    model, effort = _models(context, task)
    path = _path(context, LOG_NAME)
    with path.open("wb") as file:
        log = Log(file, redactor=context.redactor, limit=MAX_LOG, on_line=transcript.feed)
        try:
            code = inside.run(
                codex.exec_argv(context.settings, repo=workspace.repo, model=model, effort=effort),
                sink=log,
                environment=_environment(inside),
                cwd=workspace.repo,
                stdin=instruction,
                time_limit_s=task.time_limit_s,
            )
        finally:
            log.close()
    if code != 0 or transcript.failure is not None:
        why = "" if transcript.failure is None else f": {transcript.failure}"
        raise JobFailed(f"codex exec ended with {code}{why}\n{log.tail}", error_type="codex_failed")


def _transcript(context: Context, workspace: ws.Workspace) -> Transcript:
    """Return what listens to the agent and passes on what it does."""

    def tell(level: str, message: str, payload: dict[str, object] | None) -> None:
        context.events.append(level, message, payload)
        context.progress(message)

    return Transcript(tell=tell, root=workspace.repo, clean=context.redactor.value)


def _environment(context: Context) -> dict[str, str]:
    """Return the agent's environment."""
    given = context.environment()
    # Without a name git refuses the agent's commits.
    (context.directory / "home" / ".gitconfig").write_text(
        "[user]\n\tname = codex\n\temail = codex@localhost\n"
    )
    home, tmp = context.directory / "home", context.directory / "tmp"
    return {**given, **codex.environment(context.settings, home=home, tmp=tmp)}


def _kept(context: Context, git: Git, workspace: ws.Workspace) -> list[tuple[str, Path]]:
    """Return the log, and the patch of what an agent had done when it had to end or failed."""
    files = [_log_file(context)]
    try:
        changes = _collect(context, git, workspace)
    except JobFailed as error:
        context.events.append("warn", f"its changes were not kept: {error}")
        return files
    return files if changes.patch is None else [*files, (PATCH_NAME, changes.patch)]


def _collect(context: Context, git: Git, workspace: ws.Workspace) -> changed.Changes:
    """Write the patch; a run whose changes cannot be had has failed, and its log says more."""
    # What the agent left is read as shut in as the agent was, with no credential at hand.
    git = replace(git, box=context.box, credential=None)
    try:
        changes = changed.collect(
            git, workspace, directory=context.directory, patch=_path(context, PATCH_NAME)
        )
        if changes.patch is not None:
            patch_rules.refuse_secrets(
                git, context.redactor, git_dir=context.directory / changed.COLLECTED,
                base_commit=workspace.base_commit,
            )  # fmt: skip
    except (changed.CollectFailed, GitFailed) as error:
        raise JobFailed(
            str(error), error_type="collect_failed", files=[_log_file(context)]
        ) from None
    except JobFailed as refused:
        raise refused.with_files([_log_file(context)]) from None
    if changes.unnested:
        context.events.append(
            "warn", f"{changes.unnested} nested repositories were taken as plain files"
        )
    return changes


def _publish(
    context: Context, git: Git, task: CodexTask, workspace: ws.Workspace, changes: changed.Changes,
    transcript: Transcript,
) -> pub.Published:  # fmt: skip
    """Publish what was changed, if that is the wish; a patch that may not be, stays an artifact."""
    if changes.patch is None or task.publish.mode is Mode.NONE:
        return pub.Published(mode=task.publish.mode)
    work = pub.Work(
        repository=task.repository,
        workspace=workspace,
        instruction=task.instruction,
        patch=changes.patch,
        last_message=transcript.last_message,
    )
    try:
        return pub.publish(context, git, task.publish, work)
    except JobFailed as refused:
        files = [_log_file(context), (PATCH_NAME, changes.patch)]
        raise refused.with_files(files) from None


def _outcome(context: Context, run_of: _Run) -> Outcome:
    """Say what was done; README.md documents the result's keys."""
    task, changes, transcript = run_of.task, run_of.changes, run_of.transcript
    model, effort = _models(context, task)
    summary = _summary(run_of)
    result = {
        "summary": summary,
        "patch": None,
        "log": None,
        "changedFiles": _first(changes.files),
        "changedFilesTotal": len(changes.files),
        "baseCommit": run_of.workspace.base_commit,
        "publish": run_of.published.as_result(),
        "durationSeconds": round(run_of.seconds, 1),
        "model": model,
        "effort": effort,
        "exitCode": 0,
        "lastMessage": transcript.last_message,
        "usage": transcript.usage or None,
    }
    files = [_log_file(context)]
    references = {"log": LOG_NAME}
    if changes.patch is not None:
        files.append((PATCH_NAME, changes.patch))
        references["patch"] = PATCH_NAME
    return Outcome(summary=summary, result=result, files=tuple(files), references=references)


def _first(files: Sequence[str]) -> list[str]:
    """Return as many names as a result may hold."""
    sizes = accumulate(len(name.encode(errors="replace")) for name in files[:_MAX_FILES])
    return [name for name, size in zip(files, sizes, strict=False) if size <= _MAX_FILES_BYTES]


def _summary(run_of: _Run) -> str:
    """Return one line for people, and the agent's own last word."""
    count = len(run_of.changes.files)
    what = "nothing" if not count else "1 file" if count == 1 else f"{count} files"
    where = f"{run_of.task.repository.canonical} at {run_of.workspace.base_commit[:12]}"
    first = f"Changed {what} in {where} in {run_of.seconds:.0f} s{_said_of(run_of.published)}"
    if not count and run_of.transcript.nothing_started:
        first += (
            f" (no command of the agent could even be started: {run_of.transcript.refusal};"
            " Codex's sandbox does not work on this worker, see `drawbridge-worker check`)"
        )
    last = run_of.transcript.last_message
    return first if last is None else f"{first}: {last.strip()[:_MAX_WORDS]}"


def _said_of(published: pub.Published) -> str:
    """Return what a summary says of publishing."""
    if published.error is not None:
        half = f"; pushed as {published.branch}, but" if published.branch else ","
        return f"{half} NOT published as {published.mode}: {published.error}"
    return f", published as {published.url or published.branch}" if published.branch else ""


def _log_file(context: Context) -> tuple[str, Path]:
    """Return the log as an artifact."""
    return LOG_NAME, _path(context, LOG_NAME)


def _path(context: Context, name: str) -> Path:
    """Return where the file of an artifact is written."""
    path = context.directory / name
    path.parent.mkdir(exist_ok=True)
    return path
