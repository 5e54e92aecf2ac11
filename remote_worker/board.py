"""What the daemon does at this moment, for whoever looks: a terminal, a health check, a monitor."""

from dataclasses import dataclass

from remote_worker.clock import Clock, steady
from remote_worker.daemon import Daemon
from remote_worker.run import JobRun
from remote_worker.slots import State

#: without a heartbeat that renewed for so many intervals a job's lease is in danger
_MISSED_BEATS = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """One job at hand."""

    id: str
    type: str
    running_s: float
    said: str
    #: since the last heartbeat that renewed its lease; None before the first
    beat_s: float | None
    refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The daemon at one moment."""

    state: str
    slots: int
    jobs: tuple[JobLine, ...]
    endings: dict[str, int]
    claims: int
    #: since the edge last answered a claim or renewed a lease; None before the first
    heard_s: float | None
    deaf_s: float
    #: what is wrong, for people; empty when all is well
    troubles: tuple[str, ...]


class Board:
    """Looks at one daemon."""

    def __init__(self, daemon: Daemon, *, clock: Clock = steady) -> None:
        self._daemon = daemon
        self._clock = clock

    def look(self) -> Snapshot:
        """Return how things are."""
        slots, claiming = self._daemon.slots, self._daemon.claiming
        now = self._clock()
        jobs = tuple(self._line(run, now) for run in slots.running())
        held = slots.held and slots.state is State.RUNNING
        return Snapshot(
            state="held" if held else slots.state.name.lower(),
            slots=slots.limit,
            jobs=jobs,
            endings=dict(self._daemon.endings),
            claims=claiming.claims,
            heard_s=_least(
                None if claiming.answered is None else now - claiming.answered,
                *(job.beat_s for job in jobs),
            ),
            deaf_s=claiming.deaf_s(),
            troubles=tuple(self._troubles(jobs)),
        )

    def _troubles(self, jobs: tuple[JobLine, ...]) -> list[str]:
        """Name what keeps this worker from working."""
        troubles = []
        if self._daemon.claiming.deaf:
            silent = self._daemon.claiming.deaf_s()
            troubles.append(f"the edge has not answered a claim for {silent:.0f} s")
        most = _MISSED_BEATS * self._daemon.terms.interval_s
        for job in jobs:
            if job.refused:
                troubles.append(f"the edge refuses the heartbeats of job {job.id}")
            elif job.beat_s is not None and job.beat_s > most:
                troubles.append(f"no heartbeat of job {job.id} for {job.beat_s:.0f} s")
        return troubles

    @staticmethod
    def _line(run: JobRun, now: float) -> JobLine:
        """Return one job's line."""
        renewed = run.lease.renewed
        return JobLine(
            id=run.job.id,
            type=run.job.type,
            running_s=now - run.started,
            said=run.lease.said,
            beat_s=None if renewed is None else now - renewed,
            refused=run.lease.refused,
        )


def _least(*times_s: float | None) -> float | None:
    """Return the shortest time there is."""
    return min((one for one in times_s if one is not None), default=None)
