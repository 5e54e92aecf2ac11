"""Jobs of one edge over HTTP: each route a method, and a job followed to its end."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import quote

import requests

from broker.client.calls import Calls, Sleep
from broker.client.errors import EdgeAway, EdgeRefused
from broker.client.shapes import (
    ENDED,
    Artifact,
    Attempt,
    Event,
    Job,
    RedriveItem,
    RemoteWorker,
    Standing,
    Why,
    given,
)

#: how long one question for events waits for one
_WAIT_S: Final = 20
#: how soon to ask again for a job that the bridge has not brought yet
_UNKNOWN_S: Final = 0.1
_CHUNK: Final = 256 * 1024


class Client:
    """One edge, asked with one operator's or producer's token; for one thread at a time."""

    def __init__(self, url: str, token: str, *, sleep: Sleep = time.sleep) -> None:
        """Take the edge's address, ``https://host[:port]``, and a token; asks nothing yet."""
        self._calls = Calls(url, token, sleep=sleep)
        self._sleep = sleep

    def __enter__(self) -> Self:
        """Be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of the connections; may be repeated."""
        self._calls.close()

    def submit(
        self,
        type_: str,
        payload: Mapping[str, Any],
        *,
        queue: str | None = None,
        priority: int = 0,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Create a job; with the same ``idempotency_key`` a repeat gives the same job."""
        body: dict[str, Any] = {"type": type_, "payload": dict(payload), "priority": priority}
        # a key in any case, so that a lost answer can be asked for again
        body["idempotencyKey"] = idempotency_key or str(uuid.uuid4())
        body |= given(queue=queue, maxAttempts=max_attempts)
        return cast(Job, self._calls.json("POST", "/jobs", body=body))

    def job(self, job_id: str) -> Job:
        """Look at a job."""
        return cast(Job, self._calls.json("GET", f"/jobs/{_part(job_id)}"))

    def jobs(
        self,
        *,
        status: str | None = None,
        type_: str | None = None,
        queue: str | None = None,
        worker: str | None = None,
        limit: int = 50,
    ) -> Iterator[Job]:
        """Yield at most ``limit`` jobs, newest first."""
        asked = given(status=status, type=type_, queue=queue, worker=worker)
        cursor: str | None = None
        while limit > 0:
            page = self._calls.json(
                "GET", "/jobs", params=asked | given(cursor=cursor) | {"limit": min(limit, 200)}
            )
            yield from page["items"]
            limit -= len(page["items"])
            cursor = page["nextCursor"]
            if cursor is None:
                return

    def attempts(self, job_id: str) -> list[Attempt]:
        """List a job's leases, oldest first."""
        return list(self._calls.json("GET", f"/jobs/{_part(job_id)}/attempts")["items"])

    def why(self, job_id: str) -> Why:
        """Ask what about a job, and for each live worker which rule, keeps it from running."""
        return cast(Why, self._calls.json("GET", f"/jobs/{_part(job_id)}/why"))

    def cancel(self, job_id: str, *, reason: str | None = None) -> Job:
        """Cancel a queued job, or ask a running one's worker to stop; a repeat changes nothing."""
        body = given(reason=reason)
        return cast(Job, self._calls.json("POST", f"/jobs/{_part(job_id)}/cancel", body=body))

    def redrive(self, ids: Sequence[str], *, dry_run: bool = False) -> list[RedriveItem]:
        """Bring failed and dead-lettered jobs back; needs an operator's token.

        A repeat finds them queued: their outcome is then ``not_dead``.
        """
        body = {"ids": list(ids), "dryRun": dry_run}
        return list(self._calls.json("POST", "/dead-letters/redrive", body=body)["items"])

    def workers(self, *, limit: int = 200) -> list[RemoteWorker]:
        """List workers, last seen first; needs an operator's token."""
        return list(self._calls.json("GET", "/workers", params={"limit": limit})["items"])

    def steer(self, worker_id: str, order: str, **body: Any) -> Standing:
        """Give a worker an order by the last word of its route; needs an operator's token."""
        path = f"/workers/{_part(worker_id)}/{order}"
        return cast(Standing, self._calls.json("POST", path, body=body))

    def events(
        self, job_id: str, *, after: int = 0, wait_s: int = 0, limit: int = 200
    ) -> list[Event]:
        """Read the log after a ``seq``, waiting up to ``wait_s`` (0-50) seconds for an entry."""
        asked = {"after": after, "waitSeconds": wait_s, "limit": limit}
        return list(self._calls.json("GET", f"/jobs/{_part(job_id)}/events", params=asked)["items"])

    def follow(
        self,
        job_id: str,
        *,
        after: int = 0,
        unknown_s: float = 0.0,
        wait_s: int = _WAIT_S,
        seen: Callable[[Job], object] = lambda _job: None,
    ) -> Iterator[Event]:
        """Yield a job's log as it grows, to its last entry.

        The job is looked at after each entry and every ``wait_s`` (0-50) seconds; ``seen`` is given
        it, with how far its worker says it is.

        A task just sent is no job until the bridge has brought it: ``unknown_s`` is how many
        seconds to look for it before ``EdgeRefused`` with ``job_not_found``.
        """
        while True:
            # the status first: what was logged before the end is then surely read
            job = self._known(job_id, unknown_s)
            seen(job)
            over = job["status"] in ENDED
            found = self.events(job_id, after=after, wait_s=0 if over else wait_s)
            yield from found
            if found:
                after = found[-1]["seq"]
            elif over:
                return
            unknown_s = 0.0

    def artifacts(self, job_id: str) -> list[Artifact]:
        """List a job's files."""
        asked = {"limit": 500}
        return list(
            self._calls.json("GET", f"/jobs/{_part(job_id)}/artifacts", params=asked)["items"]
        )

    def download(self, artifact: Artifact, to: Path) -> Path:
        """Write a file to the path ``to``, whole and verified or not at all.

        Raises:
            EdgeAway: what came is not what the digest says.
        """
        path = f"/jobs/{_part(artifact['jobId'])}/artifacts/{_part(artifact['id'])}/download"
        digest = hashlib.sha256()
        handle, draft = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name[:32]}.")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                self._calls.sent("GET", path, stream=True) as answer,
            ):
                for chunk in answer.iter_content(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            if f"sha256:{digest.hexdigest()}" != artifact["digest"]:
                raise EdgeAway(f"{artifact['name']} arrived damaged; try again")
            Path(draft).replace(to)
        except requests.RequestException as error:
            raise EdgeAway(f"{artifact['name']} was cut off: {error}") from None
        finally:
            with suppress(FileNotFoundError):
                Path(draft).unlink()
        return to

    def _known(self, job_id: str, unknown_s: float) -> Job:
        while True:
            try:
                return self.job(job_id)
            except EdgeRefused as refused:
                if refused.reason != "job_not_found" or unknown_s <= 0:
                    raise
            self._sleep(_UNKNOWN_S)
            unknown_s -= _UNKNOWN_S


def _part(text: str) -> str:
    """Make one segment of a path of what somebody typed."""
    return quote(text, safe="")
