"""Actors in threads of which one runs at a time; a seed says which, and what befalls it.

An actor stops before and after every call on a store. There the schedule goes on with whoever the
seed names, and there a fault strikes: the process dies, or the call fails before or after its
effect. The same seed gives the same run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from random import Random


class Killed(BaseException):
    """The process this happened in is dead: nothing of it runs any more."""


class Ended(BaseException):
    """The run is over, whatever the actor was about to do."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How often a call on a store ends badly: in one of so many calls, or never when 0."""

    kill: int = 0
    fail: int = 0
    #: only where one of these begins the name of the call
    aim: tuple[str, ...] = ("",)


class Actor:
    """One line of work, with its own thread."""

    def __init__(self, schedule: Schedule, name: str, work: Callable[[], None]) -> None:
        #: held by whoever may not run
        self.turn = threading.Lock()
        self.turn.acquire()
        self._schedule = schedule
        self._work = work
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        self.turn.acquire()
        try:
            self._schedule.go_on()
            self._work()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001  the schedule raises it where the test sees it
            self._schedule.error = self._schedule.error or error
        finally:
            self._schedule.leave(self)


class Schedule:
    """Runs actors until all have ended."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.error: BaseException | None = None
        self.steps = 0
        #: faults by what struck where, e.g. "kill before ledger.write"
        self.struck: dict[str, int] = {}
        self._actors: list[Actor] = []
        self._current: Actor | None = None
        self._over = threading.Lock()

    def spawn(self, name: str, work: Callable[[], None]) -> None:
        """Add a line of work; it begins when its turn comes."""
        self._actors.append(Actor(self, name, work))

    def run(self) -> None:
        """Run all to their ends; an actor's error is raised here."""
        self._over.acquire()
        for actor in self._actors:
            actor.thread.start()
        self._give_turn()
        self._over.acquire()
        if self.error is not None:
            raise self.error

    def go_on(self) -> None:
        """Leave an actor that may not run any more."""
        if self.error is not None:
            raise Ended

    def pause(self) -> None:
        """Let somebody else run, if the seed says so."""
        actor = self._current
        # in the aftermath of a run there is nobody else
        if actor is None:
            return
        if self._give_turn() is not actor:
            actor.turn.acquire()
        self.go_on()

    def leave(self, actor: Actor) -> None:
        """Take an actor out that has ended, and let the others go on."""
        self._actors.remove(actor)
        if self._actors:
            self._current = None
            self._give_turn()
        else:
            self._current = None
            self._over.release()

    def _give_turn(self) -> Actor:
        before, after = self._current, self.random.choice(self._actors)
        self._current = after
        if after is not before:
            # from here on it runs, and what it does is its own
            after.turn.release()
        return after

    def step(self, name: str, when: str, error: type[Exception]) -> None:
        """Stop at one side of a call on a store, and perhaps go no further."""
        if self._current is None:
            return
        self.steps += 1
        self.pause()
        if not name.startswith(self.faults.aim):
            return
        for kind, one_in, fault in (
            ("kill", self.faults.kill, Killed),
            ("fail", self.faults.fail, error),
        ):
            if one_in and self.random.randrange(one_in) == 0:
                key = f"{kind} {when} {name}"
                self.struck[key] = self.struck.get(key, 0) + 1
                raise fault
