"""When the edge is asked again: the calls of `wire.py` with one retry policy.

The heartbeat is not here. Its next tick is its retry, and a late one is worth nothing.
"""

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from remote_worker.artifacts import Artifact, Part
from remote_worker.clock import Clock, steady
from remote_worker.errors import LeaseLost, Refused, Unanswered
from remote_worker.job import Event, Job, Welcome
from remote_worker.uploads import PARTS_ABOVE, Upload
from remote_worker.wire import Wire

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What the edge says of a job that is not ours (any more). 410 for an edge that forgets.
_NOT_OURS = frozenset({403, 404, 409, 410})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_HURRIED_S = 0.5
_HELLO_TRIES = 3
_EVENT_TRIES = 3
_UPLOAD_TRIES = 3
#: an upload, or the very route, that the edge does not know
_NO_UPLOAD = frozenset({"artifact_not_found", "not_found", "method_not_allowed"})
_ASK_ANEW = frozenset({"artifact_not_found", "invalid_queue_payload"})
#: whoever stops does not wait long for an answer to goodbye
_BYE_S = 2.0

#: Asked before every further try: has it lost its point?
GiveUp = Callable[[], bool]


def wait_s(tries: int, *, retry_after_s: float, draw: Callable[[float, float], float]) -> float:
    """Return how long to wait after so many tries: spread out, never less than was asked for."""
    ceiling = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries - 1, 16))
    return max(retry_after_s, draw(0, ceiling))


def _sleep(seconds: float, hurry: threading.Event) -> None:
    """Wait, or only a moment when somebody waits for the end of us."""
    if hurry.wait(seconds):
        time.sleep(min(seconds, _HURRIED_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Time and chance, so that tests have neither."""

    sleep: Callable[[float, threading.Event], None] = _sleep
    draw: Callable[[float, float], float] = random.uniform
    clock: Clock = steady


class Client:
    """The edge, asked until it answers."""

    def __init__(self, wire: Wire, *, pace: Pace | None = None) -> None:
        self.wire = wire
        self._pace = pace or Pace()
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Cut every wait short from now on: the daemon is being stopped."""
        self._hurry.set()

    def pause_s(self, tries: int, error: Unanswered | None = None) -> float:
        """Return how long to wait after so many tries in a row."""
        after = 0.0 if error is None else error.retry_after_s
        return wait_s(tries, retry_after_s=after, draw=self._pace.draw)

    def hello(
        self, *, types: Sequence[str], capabilities: Sequence[str], concurrency: int
    ) -> Welcome:
        """Say who is here."""
        return self._ask(
            lambda: self.wire.hello(
                types=types, capabilities=capabilities, concurrency=concurrency
            ),
            tries=_HELLO_TRIES,
        )

    def claim(
        self,
        *,
        types: Sequence[str],
        capabilities: Sequence[str],
        lease_s: int,
        wait_s: int,
        max_jobs: int,
        give_up: GiveUp,
    ) -> list[Job]:
        """Ask for jobs until an answer comes: one key, so a lost answer is given again.

        Raises Unanswered when the daemon gave up in between.
        """
        key = str(uuid.uuid4())
        return self._ask(
            lambda: self.wire.claim(
                key=key,
                types=types,
                capabilities=capabilities,
                lease_s=lease_s,
                wait_s=wait_s,
                max_jobs=max_jobs,
            ),
            give_up=give_up,
        )

    def append(self, job: Job, events: Sequence[Event]) -> None:
        """Append events, with a few tries: nobody waits long for a line of a log."""
        self._own(lambda: self.wire.append(job, events), tries=_EVENT_TRIES)

    def upload(self, job: Job, artifact: Artifact, *, give_up: GiveUp) -> str:
        """Upload a file, a large one in parts, and return the artifact's id."""
        if artifact.size > PARTS_ABOVE:
            try:
                return self._upload_parts(job, artifact, give_up=give_up)
            except Refused as no:
                if no.status not in (404, 405):
                    raise
                log.info("the edge takes no parts", extra={"action": "upload", "job_id": job.id})
        return self._own(lambda: self.wire.upload(job, artifact), give_up=give_up)

    def _upload_parts(self, job: Job, artifact: Artifact, *, give_up: GiveUp) -> str:
        """Send what the edge lacks of a file; who was cut off begins where it was."""
        asking_anew = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_upload_forgotten),
            stop=tenacity.stop_after_attempt(_UPLOAD_TRIES),
            reraise=True,
        )
        return asking_anew(lambda: self._fill_upload(job, artifact, give_up=give_up))

    def _fill_upload(self, job: Job, artifact: Artifact, *, give_up: GiveUp) -> str:
        """Ask what is there, send the rest, and have it put together."""
        upload = self._mine(lambda: self.wire.begin_upload(job, artifact), give_up)
        if upload.artifact_id is not None:
            return upload.artifact_id
        for number in upload.missing(artifact.size):
            self._send_part(job, artifact, upload, number, give_up=give_up)
        return self._mine(lambda: self.wire.finish_upload(job, upload), give_up)

    def _send_part(
        self, job: Job, artifact: Artifact, upload: Upload, number: int, *, give_up: GiveUp
    ) -> None:
        with Part(artifact, number=number, part_bytes=upload.part_bytes) as part:
            digest = part.digest()
            self._mine(lambda: self.wire.send_part(job, upload, part, digest=digest), give_up)

    def _mine(self, call: Callable[[], T], give_up: GiveUp) -> T:
        """Ask about an upload of ours; one that is unknown is no lost lease."""
        try:
            return self._ask(call, give_up=give_up)
        except Refused as no:
            if no.status in _NOT_OURS and no.code not in _NO_UPLOAD:
                raise LeaseLost(str(no)) from no
            raise

    def complete(
        self, job: Job, *, summary: str, result: Mapping[str, object], give_up: GiveUp
    ) -> None:
        """Say that the work is done."""
        self._own(lambda: self.wire.complete(job, summary=summary, result=result), give_up=give_up)

    def fail(
        self, job: Job, *, message: str, error_type: str, retryable: bool, give_up: GiveUp
    ) -> None:
        """Say that it cannot be done."""
        self._own(
            lambda: self.wire.fail(
                job, message=message, error_type=error_type, retryable=retryable
            ),
            give_up=give_up,
        )

    def bye(self) -> None:
        """Say goodbye once; an edge that does not listen lets the open claim lapse."""
        try:
            self.wire.bye(timeout_s=_BYE_S)
        except (Refused, Unanswered) as error:
            log.info("goodbye unheard: %s", error, extra={"action": "bye"})

    def release(self, job: Job, *, checkpoint: object = None, give_up: GiveUp) -> None:
        """Give the job back; at an edge without that route fail it for another try."""

        def ask() -> None:
            try:
                self.wire.release(job, checkpoint=checkpoint)
            except Refused as no:
                if no.status not in (404, 405) or no.code == "job_not_found":
                    raise
                self.wire.fail(
                    job,
                    message="the worker was stopped",
                    error_type="worker_stopped",
                    retryable=True,
                )

        self._own(ask, give_up=give_up)

    def acknowledge_cancel(self, job: Job, *, message: str, give_up: GiveUp) -> None:
        """Say that a cancelled job has been stopped."""
        self._own(lambda: self.wire.acknowledge_cancel(job, message=message), give_up=give_up)

    def _own(
        self, call: Callable[[], T], *, give_up: GiveUp = lambda: False, tries: int | None = None
    ) -> T:
        """Ask about a job of ours; LeaseLost when it no longer is."""
        try:
            return self._ask(call, give_up=give_up, tries=tries)
        except Refused as no:
            if no.status in _NOT_OURS:
                raise LeaseLost(str(no)) from no
            raise

    def _ask(
        self, call: Callable[[], T], *, give_up: GiveUp = lambda: False, tries: int | None = None
    ) -> T:
        """Ask until there is an answer, the tries are used up or it has lost its point."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            wait=self._wait,
            stop=lambda state: give_up() or (tries is not None and state.attempt_number >= tries),
            sleep=lambda seconds: self._pace.sleep(seconds, self._hurry),
            before_sleep=_note,
            reraise=True,
        )
        return retrying(call)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Return the pause after a try that got no answer."""
        error = state.outcome.exception() if state.outcome else None
        after = error.retry_after_s if isinstance(error, Unanswered) else 0.0
        return wait_s(state.attempt_number, retry_after_s=after, draw=self._pace.draw)


def _upload_forgotten(error: BaseException) -> bool:
    """Tell whether the edge forgot an upload, or lost parts of it."""
    return isinstance(error, Refused) and error.code in _ASK_ANEW


def _note(state: tenacity.RetryCallState) -> None:
    """Log that a call is repeated."""
    error = state.outcome.exception() if state.outcome else None
    log.info("asking again: %s", error, extra={"action": "retry", "tries": state.attempt_number})
