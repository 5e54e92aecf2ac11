"""The `codex_exec` job: a fresh clone, one `codex exec`, its log and its patch."""

import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from remote_worker import codex
from remote_worker.errors import JobFailed
from remote_worker.git import Git
from remote_worker.handlers import workspace as ws
from remote_worker.handlers.codex_events import Transcript
from remote_worker.handlers.codex_payload import CodexTask, parse_task
from remote_worker.handlers.context import Context, Outcome
from remote_worker.output import Log
from remote_worker.process import Command, TimeLimitExceeded, run
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
    if task.ref is not None:
        ws.check_ref(task.ref)
    if not allowed(task.repository, context.settings.allow_repository):
        raise JobFailed(
            f"this worker does not take {task.repository.canonical}"
            " (its owner decides with --allow-repository)",
            error_type="repository_not_allowed",
        )
    begun = time.monotonic()
    git = _git(context, task)
    context.step(f"cloning {task.repository.canonical} at {task.ref or 'its default branch'}")
    workspace = ws.prepare(
        git, task.repository, ref=task.ref, depth=task.depth, directory=context.directory
    )
    context.step(f"starting codex on {workspace.base_commit[:12]}")
    transcript = _run_codex(context, task, workspace)
    context.step("collecting the changes")
    changes = _collect(context, git, workspace)
    return _outcome(context, task, workspace, changes, transcript, seconds=time.monotonic() - begun)


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
        },
    )


def _models(context: Context, task: CodexTask) -> tuple[str | None, str | None]:
    """Return model and effort: the payload's, else the worker's, else Codex's own."""
    return task.model or context.settings.model, task.effort or context.settings.effort


def _run_codex(context: Context, task: CodexTask, workspace: ws.Workspace) -> Transcript:
    """Run the agent to its end."""
    instruction = context.directory / "instruction"
    instruction.write_text(task.instruction, encoding="utf-8")
    longest = context.settings.time_limit_s
    model, effort = _models(context, task)
    command = Command(
        argv=codex.exec_argv(context.settings, repo=workspace.repo, model=model, effort=effort),
        cwd=workspace.repo,
        environment=_environment(context),
        time_limit_s=min(task.time_limit_s or longest, longest),
        stdin=instruction,
    )
    transcript = Transcript(tell=context.events.append, root=workspace.repo)
    path = _path(context, LOG_NAME)
    with path.open("wb") as file:
        log = Log(file, redactor=context.redactor, limit=MAX_LOG, on_line=transcript.feed)
        try:
            code = run(command, sink=log, interrupt=context.interrupt)
        except TimeLimitExceeded as error:
            raise JobFailed(
                f"codex exec: {error}", error_type="time_limit_exceeded", files=[(LOG_NAME, path)]
            ) from None
        finally:
            log.close()
    if code != 0 or transcript.failure is not None:
        why = "" if transcript.failure is None else f": {transcript.failure}"
        raise JobFailed(
            f"codex exec ended with {code}{why}\n{log.tail}",
            error_type="codex_failed",
            files=[(LOG_NAME, path)],
        )
    return transcript


def _environment(context: Context) -> dict[str, str]:
    """Return the agent's environment, with a HOME that no earlier job has seen."""
    home, tmp = context.directory / "home", context.directory / "tmp"
    home.mkdir()
    tmp.mkdir()
    # Without a name git refuses the agent's commits.
    (home / ".gitconfig").write_text("[user]\n\tname = codex\n\temail = codex@localhost\n")
    job = context.job
    return {
        **codex.environment(context.settings, home=home, tmp=tmp),
        "BRIDGE_JOB_ID": job.id,
        "BRIDGE_ATTEMPT": str(job.attempt),
        **({} if job.fence is None else {"BRIDGE_FENCE": str(job.fence)}),
    }


def _collect(context: Context, git: Git, workspace: ws.Workspace) -> ws.Changes:
    """Write the patch; a run whose changes cannot be had has failed, and its log says more."""
    try:
        changes = ws.collect(
            git, workspace, directory=context.directory, patch=_path(context, PATCH_NAME)
        )
    except ws.CollectFailed as error:
        raise JobFailed(
            str(error),
            error_type="collect_failed",
            files=[(LOG_NAME, _path(context, LOG_NAME))],
        ) from None
    if changes.unnested:
        context.events.append(
            "warn", f"{changes.unnested} nested repositories were taken as plain files"
        )
    return changes


def _outcome(
    context: Context,
    task: CodexTask,
    workspace: ws.Workspace,
    changes: ws.Changes,
    transcript: Transcript,
    *,
    seconds: float,
) -> Outcome:
    """Say what was done; README.md documents the result's keys."""
    model, effort = _models(context, task)
    summary = _summary(task, workspace, changes, transcript, seconds=seconds)
    result = {
        "summary": summary,
        "patch": None,
        "log": None,
        "changedFiles": _first(changes.files),
        "changedFilesTotal": len(changes.files),
        "baseCommit": workspace.base_commit,
        "publish": {"mode": "none", "branch": None, "url": None, "error": None},
        "durationSeconds": round(seconds, 1),
        "model": model,
        "effort": effort,
        "exitCode": 0,
        "lastMessage": transcript.last_message,
        "usage": transcript.usage or None,
    }
    files = [(LOG_NAME, _path(context, LOG_NAME))]
    references = {"log": LOG_NAME}
    if changes.patch is not None:
        files.append((PATCH_NAME, changes.patch))
        references["patch"] = PATCH_NAME
    return Outcome(summary=summary, result=result, files=tuple(files), references=references)


def _first(files: Sequence[str]) -> list[str]:
    """Return as many names as a result may hold."""
    sizes = accumulate(len(name.encode(errors="replace")) for name in files[:_MAX_FILES])
    return [name for name, size in zip(files, sizes, strict=False) if size <= _MAX_FILES_BYTES]


def _summary(
    task: CodexTask,
    workspace: ws.Workspace,
    changes: ws.Changes,
    transcript: Transcript,
    *,
    seconds: float,
) -> str:
    """Return one line for people, and the agent's own last word."""
    count = len(changes.files)
    what = "nothing" if not count else "1 file" if count == 1 else f"{count} files"
    where = f"{task.repository.canonical} at {workspace.base_commit[:12]}"
    first = f"Changed {what} in {where} in {seconds:.0f} s"
    if transcript.last_message is None:
        return first
    return f"{first}: {transcript.last_message.strip()[:_MAX_WORDS]}"


def _path(context: Context, name: str) -> Path:
    """Return where the file of an artifact is written."""
    path = context.directory / name
    path.parent.mkdir(exist_ok=True)
    return path
