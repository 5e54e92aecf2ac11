"""What the routes of one job share: its id in the path, and who speaks of it as its holder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from broker.errors import ArtifactNotFound, JobNotFound
from broker.records import Holder, Job
from edge_api.auth import principal

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_PART_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


def job_id_of(text: str) -> str:
    """Return a job id out of a path; whatever cannot be one is the id of no job."""
    if not _UUID.fullmatch(text):
        raise JobNotFound
    return text


def artifact_id_of(text: str) -> str:
    """Return an artifact id out of a path."""
    if not _UUID.fullmatch(text):
        raise ArtifactNotFound
    return text


def upload_id_of(text: str) -> str:
    """Return an upload's id out of a path."""
    if not _UUID.fullmatch(text):
        raise ArtifactNotFound("This lease has no such upload")
    return text


def part_number_of(text: str) -> int:
    """Return the number of a part out of a path; whatever cannot be one is no part's."""
    return int(text) if _PART_NUMBER.fullmatch(text) else 0


def holder_of(args: Mapping[str, Any]) -> Holder:
    """Return who holds the job, by the credential's word and the lease id given."""
    return Holder(worker_id=principal().worker, lease_id=args["lease_id"])


def own(job: Job, holder: Holder) -> Job:
    """Return a job as its holder may see it, who by now may be another one."""
    held = job.claimed_by == holder.worker_id and holder.lease_id in {None, job.lease_id}
    return job if held else shown(job)


def shown(job: Job) -> Job:
    """Return a job as users may see it: lease id and checkpoint are its holder's alone."""
    return replace(job, lease_id=None, checkpoint=None)
