"""The edge's endpoints, one method each, each asked once; `client.py` asks again."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from remote_worker.artifacts import Artifact, MultipartBody, Part
from remote_worker.clock import Clock, steady
from remote_worker.errors import Unanswered
from remote_worker.job import (
    Beat,
    Event,
    Job,
    NotAJob,
    Standing,
    Welcome,
    parse_beat,
    parse_job,
    parse_standing,
    parse_welcome,
)
from remote_worker.settings import PREFIX
from remote_worker.transport import ANSWER_S, CONNECT_S, MAX_ANSWER, Token, Transport
from remote_worker.uploads import Upload, artifact_id, parse_upload

#: The edge answers an empty wait in time; beyond this the connection is taken for dead.
_WAIT_MARGIN_S = 10.0
_UPLOAD_S = 120.0
#: A job larger than this is no job. Of a claim the first is in the answer twice.
MAX_GRANT = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is talking."""

    worker_id: str
    instance_id: str
    version: str


class Wire:
    """One edge, spoken to by one worker; may be used by any number of threads."""

    def __init__(
        self,
        url: str,
        *,
        token: Token,
        identity: Identity,
        proxy: str | None = None,
        ca_file: Path | None = None,
        clock: Clock = steady,
    ) -> None:
        self._base = url.rstrip("/").removesuffix(PREFIX)
        self._who = identity
        self._transport = Transport(
            token=token, version=identity.version, proxy=proxy, ca_file=ca_file, clock=clock
        )

    def healthz(self) -> None:
        """Ask whether the edge is alive."""
        self._transport.ask("GET", self._base + "/healthz")

    def readyz(self) -> None:
        """Ask whether the edge can do its work."""
        self._transport.ask("GET", self._base + "/readyz")

    def hello(
        self, *, types: Sequence[str], capabilities: Sequence[str], concurrency: int
    ) -> Welcome:
        """Say who is here, and hear the edge's pace."""
        body = {
            "workerId": self._who.worker_id,
            "instanceId": self._who.instance_id,
            "version": self._who.version,
            "types": list(types),
            "capabilities": list(capabilities),
            "concurrency": concurrency,
            "system": platform.system(),
            "pid": os.getpid(),
        }
        return parse_welcome(self._post("/workers/hello", body))

    def bye(self, *, timeout_s: float) -> None:
        """Say that this daemon stops, so that its open claim is granted to nobody."""
        body = {"workerId": self._who.worker_id, "instanceId": self._who.instance_id}
        self._post("/workers/bye", body, connect_s=timeout_s, read_s=timeout_s)

    def on_cursor(self, heard: Callable[[int], None]) -> None:
        """Have every answer's word of how far the orders to this worker have got passed on."""
        self._transport.on_cursor = heard

    def control(self, *, cursor: int, wait_s: int) -> Standing:
        """Ask for orders newer than those known."""
        known = {"instanceId": self._who.instance_id, "cursor": cursor, "waitSeconds": wait_s}
        url = f"{self._base}{PREFIX}/workers/control?{urlencode(known)}"
        standing = parse_standing(self._transport.ask("GET", url, read_s=wait_s + _WAIT_MARGIN_S))
        if standing is None:
            raise Unanswered("the answer to a call for orders holds none that can be read")
        return standing

    def claim(
        self,
        *,
        key: str,
        types: Sequence[str],
        capabilities: Sequence[str],
        lease_s: int,
        wait_s: int,
        max_jobs: int,
    ) -> list[Job]:
        """Ask for jobs; the same key gets the same jobs again."""
        body = {
            "workerId": self._who.worker_id,
            "instanceId": self._who.instance_id,
            "leaseSeconds": lease_s,
            "allowedTypes": list(types) or None,
            "workerCapabilities": list(capabilities),
            "waitSeconds": wait_s,
            "maxJobs": max_jobs,
        }
        answer = self._post(
            "/jobs/claim", body, headers={"Idempotency-Key": key}, read_s=wait_s + _WAIT_MARGIN_S,
            most_bytes=(1 + max_jobs) * MAX_GRANT,
        )  # fmt: skip
        if "job" not in answer:
            raise Unanswered("the answer to a claim names no job and no absence of one")
        granted = answer.get("jobs")
        if not isinstance(granted, list):
            granted = [] if answer["job"] is None else [answer["job"]]
        try:
            return [parse_job(raw) for raw in granted]
        except NotAJob as error:
            raise Unanswered(f"the answer to a claim is no list of jobs: {error}") from None

    def heartbeat(
        self, job: Job, *, lease_s: int, progress: Mapping[str, object] | None, timeout_s: float
    ) -> Beat:
        """Renew a lease, and hear what the edge wants of its holder."""
        body = self._holder(job, leaseSeconds=lease_s)
        if progress is not None:
            body["progress"] = dict(progress)
        path = f"/jobs/{job.id}/heartbeat"
        return parse_beat(self._post(path, body, connect_s=timeout_s, read_s=timeout_s))

    def append(self, job: Job, events: Sequence[Event]) -> None:
        """Append events; those the edge has already add nothing."""
        batch = [
            {"workerSeq": e.seq, "level": e.level, "message": e.message, "payload": e.payload}
            for e in events
        ]
        self._post(f"/jobs/{job.id}/events", self._holder(job, events=batch))

    def upload(self, job: Job, artifact: Artifact) -> str:
        """Upload a file and return the artifact's id."""
        fields = {
            **{k: v for k, v in self._holder(job).items() if isinstance(v, str)},
            "name": artifact.name,
            "contentType": artifact.content_type,
            "digest": artifact.digest,
        }
        with artifact.path.open("rb") as file:
            body = MultipartBody(fields, file=file, size=artifact.size)
            return artifact_id(self._send(f"/jobs/{job.id}/artifacts/upload", body))

    def begin_upload(self, job: Job, artifact: Artifact) -> Upload:
        """Announce a file that comes in parts, and hear which of them are there."""
        body = self._holder(
            job,
            name=artifact.name,
            contentType=artifact.content_type,
            sizeBytes=artifact.size,
            digest=artifact.digest,
        )
        return parse_upload(self._post(f"/jobs/{job.id}/artifacts/uploads", body))

    def send_part(self, job: Job, upload: Upload, part: Part, *, digest: str) -> None:
        """Send a part; one that is there already changes nothing."""
        fields = {k: v for k, v in self._holder(job).items() if isinstance(v, str)}
        body = MultipartBody({**fields, "digest": digest}, file=part.again(), size=part.size)
        path = f"/jobs/{job.id}/artifacts/uploads/{upload.id}/parts/{part.number}"
        if self._send(path, body).get("digest") != digest:
            raise Unanswered("the answer to a part is about other bytes")

    def finish_upload(self, job: Job, upload: Upload) -> str:
        """Have the parts put together and return the artifact's id."""
        path = f"/jobs/{job.id}/artifacts/uploads/{upload.id}/complete"
        return artifact_id(self._post(path, self._holder(job), read_s=_UPLOAD_S))

    def complete(self, job: Job, *, summary: str, result: Mapping[str, object]) -> None:
        """Say that the work is done."""
        body = self._holder(job, resultSummary=summary, result=dict(result))
        self._post(f"/jobs/{job.id}/complete", body)

    def fail(self, job: Job, *, message: str, error_type: str, retryable: bool) -> None:
        """Say that it cannot be done, or not now."""
        body = self._holder(job, errorMessage=message, errorType=error_type, retryable=retryable)
        self._post(f"/jobs/{job.id}/fail", body)

    def release(self, job: Job, *, checkpoint: object = None) -> None:
        """Give the job back; the attempt does not count, and the next holder gets what is left."""
        left = {} if checkpoint is None else {"checkpoint": checkpoint}
        self._post(f"/jobs/{job.id}/release", self._holder(job, **left))

    def acknowledge_cancel(self, job: Job, *, message: str) -> None:
        """Say that a cancelled job has been stopped."""
        self._post(f"/jobs/{job.id}/cancel/ack", self._holder(job, message=message))

    def _holder(self, job: Job, **more: object) -> dict[str, object]:
        """Return a body that says who holds the job."""
        body: dict[str, object] = {"workerId": self._who.worker_id, **more}
        if job.lease_id is not None:
            body["leaseId"] = job.lease_id
        return body

    def _send(self, path: str, body: MultipartBody) -> Mapping[str, object]:
        """Post a form with a file under the prefix."""
        return self._transport.ask(
            "POST",
            f"{self._base}{PREFIX}{path}",
            data=body,
            headers={"Content-Type": body.content_type},
            read_s=_UPLOAD_S,
        )

    def _post(
        self,
        path: str,
        body: Mapping[str, object],
        *,
        headers: Mapping[str, str] | None = None,
        connect_s: float = CONNECT_S,
        read_s: float = ANSWER_S,
        most_bytes: int = MAX_ANSWER,
    ) -> Mapping[str, object]:
        """Post JSON under the prefix."""
        return self._transport.ask(
            "POST",
            f"{self._base}{PREFIX}{path}",
            data=json.dumps(body, allow_nan=False).encode(),
            headers={"Content-Type": "application/json", **(headers or {})},
            connect_s=connect_s,
            read_s=read_s,
            most_bytes=most_bytes,
        )
