"""Signatures of our job types, for canvases; plain ``send_task`` says the same without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from broker.client.shapes import given

if TYPE_CHECKING:
    from celery import Celery
    from celery.canvas import Signature

TASK: Final = "codex_exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """What becomes of the patch: nothing more, a branch of the job's own, or a pull request."""

    mode: Literal["none", "branch", "pr"] = "branch"
    base_branch: str | None = None
    title: str | None = None
    body: str | None = None
    commit_message: str | None = None


def codex_exec(
    repository: str,
    instruction: str,
    *,
    ref: str | None = None,
    model: str | None = None,
    effort: str | None = None,
    time_limit_seconds: int | None = None,
    depth: int | None = None,
    workdir_mode: Literal["fresh_clone", "reuse"] | None = None,
    publish: Publish | None = None,
    max_attempts: int | None = None,
    required_capabilities: Sequence[str] = (),
    queue: str = "remote",
    immutable: bool = False,
    app: Celery | None = None,
) -> Signature:
    """Build a signature that runs Codex in a repository on a remote worker.

    Args:
        repository: ``owner/name``, a URL, or ``git@host:owner/name``.
        instruction: what Codex shall do, at most 256 KiB.
        ref: branch, tag or commit to start from; the repository's own default without it.
        time_limit_seconds: wall clock of the run, at most seven days.
        depth: commits of history to fetch; 0 is all of it.
        publish: what becomes of the patch; without it the patch is the product.
        max_attempts: 1 forbids a second try after a lost worker; three are usual.
        required_capabilities: names that the worker must have, such as ``gpu``.
        immutable: in a chain, do not take the earlier task's result as ``args``.
        app: whose signature it is; Celery's current app without it.
    """
    from celery import signature  # noqa: PLC0415  orchestrators have it, an operator's shell need not

    codex = given(model=model, effort=effort)
    payload = given(
        repository=repository,
        instruction=instruction,
        ref=ref,
        timeLimitSeconds=time_limit_seconds,
        depth=depth,
        workdirMode=workdir_mode,
        codex=codex or None,
        publish=None if publish is None else _camel(publish),
    )
    header = given(
        maxAttempts=max_attempts, requiredCapabilities=list(required_capabilities) or None
    )
    options: dict[str, Any] = {"queue": queue}
    if header:
        options["headers"] = {"drawbridge": header}
    return signature(TASK, kwargs=payload, options=options, immutable=immutable, app=app)


def _camel(publish: Publish) -> dict[str, Any]:
    names = {"base_branch": "baseBranch", "commit_message": "commitMessage"}
    return {names.get(k, k): v for k, v in asdict(publish).items() if v is not None}
