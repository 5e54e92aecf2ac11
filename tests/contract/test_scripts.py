"""Every Lua script, on a fake Redis and on a real Valkey: what its header says is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from broker.errors import GenerationMoved, ReservationsUnavailable
from broker.policy import Lane
from broker.reservations import scripts
from broker.reservations.keys import QueueKeys
from broker.reservations.scripts import LanesMoved, Scripts
from broker.reservations.store import (
    BATCH,
    EXPIRING_AGAIN_MS,
    GRANT_HOLD_MS,
    Due,
    Placement,
    Renewed,
    Reservations,
)
from broker.states import Index
from tests.services import Valkey

Q: Final = "remote"
ECHO: Final = Lane(Q, "echo", None, ())
CODEX: Final = Lane(Q, "codex_exec", "github.com/org/repo", ("gpu",))
START: Final = 1_800_000_000_000


class Moment:
    """The server's clock, set by the test; milliseconds."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def moment() -> Moment:
    return Moment()


def is_fake(client: redis.Redis) -> bool:
    return "fake" in type(client).__module__.lower()


def opened(client: redis.Redis, moment: Moment | None) -> Reservations:
    """Open the reservations as another process would."""
    return Reservations(client, shebang=not is_fake(client), now_ms=moment)


def build(store: Reservations, generation: int = 1) -> None:
    """Publish an empty generation."""
    assert store.start_building(Q, f"token{generation}")
    store.publish(Q, generation, f"token{generation}", {})


@pytest.fixture
def store(reservations_redis: redis.Redis, moment: Moment) -> Reservations:
    """Give reservations with an empty index, on a fake and on a real server."""
    made = opened(reservations_redis, moment)
    build(made)
    return made


def ready(number: int, *, version: int = 1, lane: Lane = ECHO, priority: int = 0) -> Placement:
    """Say that a job may be claimed."""
    return Placement(
        id=f"job{number}", index=Index.READY, at_ms=0, version=version, lane=lane,
        member=f"{number:016d}:job{number}", priority=priority,
    )  # fmt: skip


def scheduled(number: int, at_ms: int, *, version: int = 1, lane: Lane = ECHO) -> Placement:
    """Say that a job may be claimed later."""
    return replace(ready(number, version=version, lane=lane), index=Index.SCHEDULED, at_ms=at_ms)


def reserved(
    number: int, at_ms: int, *, lease: str = "L", worker: str = "w", version: int = 2, **more: Any
) -> Placement:
    """Say that a worker holds a job."""
    held: dict[str, Any] = {
        "index": Index.RESERVED, "at_ms": at_ms, "lease_id": lease, "worker_id": worker,
        "lease_ms": 60_000, "json": f'{{"job": {number}}}',
    }  # fmt: skip
    return replace(ready(number, version=version), **held | more)


def everything(store: Reservations) -> dict[str, Any]:
    """Read all keys of the server."""
    client = store.client
    readers: dict[str, Callable[[str], Any]] = {
        "string": client.get, "hash": client.hgetall, "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }  # fmt: skip
    return {key: readers[client.type(key)](key) for key in sorted(client.keys("*"))}


def where(store: Reservations, number: int) -> dict[Index, float]:
    """Name the indexes a job lies in, with its score; by the hash nobody is led."""
    prefix = f"{{db:{Q}}}:g{store.generation(Q)}:"
    found = {
        index: store.client.zscore(prefix + index, f"job{number}")
        for index in (Index.SCHEDULED, Index.GRANTING, Index.RESERVED)
    }
    for key in store.client.keys(f"{prefix}lane:*"):
        score = store.client.zscore(key, f"{number:016d}:job{number}")
        if score is not None:
            found[Index.READY] = score
    return {index: score for index, score in found.items() if score is not None}


def hash_of(store: Reservations, number: int) -> dict[str, str]:
    return store.client.hgetall(f"{{db:{Q}}}:g{store.generation(Q)}:job:job{number}")


def take(store: Reservations, lease: str = "L", worker: str = "w", **more: Any) -> tuple[str, ...]:
    """Reserve whatever there is."""
    return store.reserve(Q, lambda _: True, lease_id=lease, worker_id=worker, **more).ids


def confirm(store: Reservations, *numbers: int, lease: str = "L", **more: Any) -> int:
    values: dict[str, Any] = {"index": Index.RESERVED, "hold_ms": 60_000, "lease_ms": 60_000}
    jobs = [(f"job{n}", 2, f'{{"job": {n}}}') for n in numbers]
    return store.confirm(Q, jobs, lease_id=lease, **values | more)


def renew(store: Reservations, number: int, **more: Any) -> Renewed | None:
    values: dict[str, Any] = {"lease_id": "L", "worker_id": "w", "lease_ms": 60_000}
    return store.renew(Q, f"job{number}", **values | more)


@pytest.fixture
def heard(store: Reservations) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """Give the wake-ups since the last look: lane and number."""
    pubsub = store.client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(QueueKeys(Q).channel)
    # the answer to the subscription; what is published after it, is heard
    pubsub.get_message(timeout=5)

    def messages() -> list[tuple[str, int]]:
        store.client.publish(QueueKeys(Q).channel, "end")
        found: list[tuple[str, int]] = []
        while True:
            message = pubsub.get_message(timeout=5)
            assert message is not None
            if message["data"] == "end":
                return found
            told = json.loads(message["data"])
            assert told["queue"] == Q
            found.append((told["lane"], told["n"]))

    yield messages
    pubsub.close()


# -- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scripts.NAMES)
def test_a_script_says_what_it_takes_and_gives(name: str):
    header = scripts.source(name).partition("\nlocal index_key")[2]
    body = header[header.index("-- " + name) :]
    for heading in ("KEYS", "ARGV", "Returns", "Raises", "Again"):
        assert re.search(rf"^-- {heading}\b", body, re.MULTILINE), heading
    assert body.startswith(f"-- {name}: ")


def test_only_shrinking_scripts_may_run_out_of_memory():
    allowed = {n for n in scripts.NAMES if scripts.source(n).startswith("#!lua flags=allow-oom\n")}
    assert allowed == {"drop", "confirm", "renew", "due", "publish"}
    for name in set(scripts.NAMES) - allowed:
        assert scripts.source(name).startswith("#!lua\n")
    assert not any(scripts.source(n, shebang=False).startswith("#!") for n in scripts.NAMES)


# -- GEN and LANES ----------------------------------------------------------------------------

#: enough arguments for each script to do its work
ARGS: Final[dict[str, list[Any]]] = {
    "admit": ["c", Q, 1, *ready(9).args()],
    "drop": ["job1", 99],
    "reserve": [1, "L2", "w", 1000, 1, "c", Q, ECHO.key],
    "confirm": ["L", "reserved", 1000, 1000, "job1", 9, "{}"],
    "renew": ["job1", "L", "w", 1000],
    "due": [10, 1000],
    "promote": ["c", Q, 10],
    "heads": [1, "c", Q, ECHO.key],
    "publish": ["{db:remote}:gen", 9, "0:"],
}


def test_every_script_is_called_here():
    assert set(ARGS) == set(scripts.NAMES)


@pytest.mark.parametrize("name", scripts.NAMES)
@pytest.mark.parametrize("lost", ["rebuilt", "flushed", "newer"])
def test_another_generation_is_refused_and_nothing_changed(
    store: Reservations, moment: Moment, name: str, lost: str
):
    store.admit(Q, [ready(0), reserved(1, START - 1), scheduled(2, START - 1)])
    pointer = QueueKeys(Q).pointer
    if lost == "flushed":
        store.client.delete(pointer)
    elif lost == "rebuilt":
        store.client.set(pointer, 2)
    else:
        store.client.set(pointer, 11)  # begins like ours
    before = everything(store)
    caller = Scripts(store.client, shebang=not is_fake(store.client))
    keys = QueueKeys(Q, 1)
    with pytest.raises(GenerationMoved):
        caller.call(name, keys.script_keys, [1, keys.prefix, moment(), *ARGS[name]])
    assert everything(store) == before


@pytest.mark.parametrize("name", scripts.NAMES)
def test_every_script_runs_with_such_arguments(store: Reservations, moment: Moment, name: str):
    store.admit(Q, [ready(0), reserved(1, START - 1), scheduled(2, START - 1)])
    caller = Scripts(store.client, shebang=not is_fake(store.client))
    keys = QueueKeys(Q, 1)
    before = everything(store)
    caller.call(name, keys.script_keys, [1, keys.prefix, moment(), *ARGS[name]])
    assert everything(store) != before


def test_a_caller_of_an_old_generation_is_led_to_the_new_one(store: Reservations, moment: Moment):
    other = opened(store.client, moment)
    assert take(other) == ()
    build(store, 2)
    store.admit(Q, [ready(1)])
    assert take(other) == ("job1",)


def test_without_an_index_every_call_says_so(store: Reservations):
    store.client.flushall()
    for call in (
        lambda: store.admit(Q, [ready(1)]),
        lambda: store.drop(Q, [("job1", 1)]),
        lambda: take(store),
        lambda: store.head(Q, lambda _: True),
        lambda: confirm(store, 1),
        lambda: renew(store, 1),
        lambda: store.due(Q, limit=1),
        lambda: store.promote(Q, limit=1),
    ):
        with pytest.raises(GenerationMoved):
            call()
    assert store.client.keys("*") == []


@pytest.mark.parametrize("name", ["reserve", "heads"])
def test_a_lane_table_that_has_grown_is_refused_and_nothing_changed(
    store: Reservations, moment: Moment, name: str
):
    store.admit(Q, [ready(1), scheduled(2, START - 1, lane=CODEX)])
    before = everything(store)
    caller = Scripts(store.client, shebang=not is_fake(store.client))
    keys = QueueKeys(Q, 1)
    with pytest.raises(LanesMoved):
        caller.call(name, keys.script_keys, [1, keys.prefix, moment(), *ARGS[name]])
    assert everything(store) == before


def test_a_lane_that_another_process_made_is_learnt(store: Reservations, moment: Moment):
    other = opened(store.client, moment)
    assert take(other) == ()
    store.admit(Q, [ready(1, lane=CODEX)])
    assert other.head(Q, lambda lane: lane == CODEX) == (0, ready(1).member)
    assert take(other) == ("job1",)
    store.admit(Q, [ready(2, lane=Lane(Q, "third", None, ()))])
    assert take(other, limit=2) == ("job2",)
    assert other.lane(Q, CODEX.key) == CODEX


def test_a_lane_is_learnt_across_a_rebuild(store: Reservations, moment: Moment):
    other = opened(store.client, moment)
    assert other.lane(Q, CODEX.key) is None
    build(store, 2)
    store.admit(Q, [ready(1, lane=CODEX)])
    assert other.lane(Q, CODEX.key) == CODEX
    assert other.lane(Q, "f" * 16) is None


def test_a_call_after_the_scripts_were_flushed_runs_all_the_same(store: Reservations):
    calls: tuple[Callable[[], Any], ...] = (
        lambda: store.admit(Q, [ready(1), scheduled(2, START - 1)]),
        lambda: store.promote(Q, limit=9),
        lambda: store.head(Q, lambda _: True),
        lambda: take(store),
        lambda: confirm(store, 1),
        lambda: renew(store, 1),
        lambda: store.due(Q, limit=9),
        lambda: store.drop(Q, [("job1", 9)]),
    )
    for call in calls:
        store.client.script_flush()
        assert call()
    store.client.script_flush()
    build(store, 2)


# -- admit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "placement, index, score",
    [
        (ready(1), Index.READY, 0),
        (ready(1, priority=7), Index.READY, -7),
        (ready(1, priority=-(2**31)), Index.READY, 2**31),
        (scheduled(1, START + 5), Index.SCHEDULED, START + 5),
        (scheduled(1, START - 5), Index.SCHEDULED, START - 5),
        (reserved(1, START + 9), Index.RESERVED, START + 9),
        (reserved(1, START + 9, index=Index.GRANTING), Index.GRANTING, START + 9),
    ],
)
def test_admit_puts_a_job_into_one_index(
    store: Reservations, placement: Placement, index: Index, score: float
):
    assert store.admit(Q, [placement]) == 1
    assert where(store, 1) == {index: score}
    before = everything(store)
    assert store.admit(Q, [placement]) == 0, "Again: nothing changes"
    assert everything(store) == before


STATES: Final = [
    ready(1),
    ready(1, lane=CODEX, priority=3),
    scheduled(1, START + 5),
    reserved(1, START + 9, lease="L1"),
    reserved(1, START + 9, lease="L2", worker="v"),
    reserved(1, START + 9, index=Index.GRANTING),
]


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_admit_follows_the_newer_version_and_no_older_one(
    store: Reservations, old: Placement, new: Placement
):
    store.admit(Q, [replace(old, version=5)])
    before = everything(store)
    assert store.admit(Q, [replace(new, version=4)]) == 0
    assert store.admit(Q, [replace(new, version=4)], force=True) == 0
    assert store.admit(Q, [replace(new, version=5)]) == 0
    assert everything(store) == before
    store.admit(Q, [replace(new, version=6)])
    assert len(where(store, 1)) == 1
    assert hash_of(store, 1)["ver"] == "6"
    same_lease = old.lease_id != "" and old.lease_id == new.lease_id
    assert list(where(store, 1)) == [old.index if same_lease else new.index]
    held = new.index in {Index.RESERVED, Index.GRANTING}
    assert ("json" in hash_of(store, 1)) is held
    assert hash_of(store, 1).get("worker", "") == new.worker_id


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_admit_by_force_follows_the_same_version_too(
    store: Reservations, old: Placement, new: Placement
):
    store.admit(Q, [replace(old, version=5)])
    assert store.admit(Q, [replace(new, version=5)], force=True) == 1
    score = {Index.READY: -new.priority}.get(new.index, new.at_ms)
    assert where(store, 1) == {new.index: score}


def test_admit_keeps_the_deadline_of_a_lease_that_goes_on(store: Reservations):
    store.admit(Q, [reserved(1, START + 9)])
    assert store.admit(Q, [reserved(1, START + 99, version=3, cancel="[1]")]) == 0
    assert where(store, 1) == {Index.RESERVED: START + 9}
    renewed = renew(store, 1)
    assert renewed is not None
    assert renewed.cancel == "[1]"


def test_admit_by_force_ends_the_doubt_about_a_lease(store: Reservations):
    store.admit(Q, [reserved(1, START - 1)])
    assert store.due(Q, limit=9)[1]
    assert renew(store, 1) is None
    store.admit(Q, [reserved(1, START + 60_000)], force=True)
    assert renew(store, 1) is not None


def test_admit_brings_back_what_lies_in_no_index(store: Reservations):
    store.admit(Q, [ready(1)])
    store.client.delete(f"{{db:{Q}}}:g1:lane:{ECHO.key}")
    assert where(store, 1) == {}
    assert store.admit(Q, [ready(1)]) == 1
    assert where(store, 1) == {Index.READY: 0}


def test_admit_wakes_for_each_lane_that_got_jobs(store: Reservations, heard: Any):
    store.admit(
        Q, [ready(1), ready(2), ready(3, lane=CODEX), scheduled(4, START + 5), reserved(5, START)]
    )
    assert sorted(heard()) == sorted([(ECHO.key, 2), (CODEX.key, 1)])
    store.admit(Q, [ready(1)])
    assert heard() == []


def test_admit_takes_any_number_of_jobs(store: Reservations):
    many = [ready(number) for number in range(BATCH * 2 + 1)]
    assert store.admit(Q, many) == len(many)
    assert store.admit(Q, many) == 0
    assert store.drop(Q, [(job.id, 1) for job in many]) == len(many)
    assert store.admit(Q, []) == 0


# -- drop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", STATES)
def test_drop_forgets_all_of_a_job(store: Reservations, old: Placement):
    empty = everything(store)
    store.admit(Q, [replace(old, version=5)])
    assert store.drop(Q, [("job1", 4)]) == 0, "what the ledger has moved on since stays"
    assert len(where(store, 1)) == 1
    assert store.drop(Q, [("job1", 5)]) == 1
    lanes = {key for key in everything(store) if "lanes" in key}
    assert everything(store).keys() == empty.keys() | lanes
    assert store.drop(Q, [("job1", 5)]) == 0


def test_drop_cleans_up_what_has_no_version(store: Reservations):
    store.admit(Q, [ready(1)])
    store.client.delete(f"{{db:{Q}}}:g1:job:job1")
    assert take(store) == ("job1",)
    assert store.drop(Q, [("job1", 1)]) == 0
    assert where(store, 1) == {}
    assert hash_of(store, 1) == {}


def test_forget_drops_whatever_the_version(store: Reservations):
    store.admit(Q, [ready(1, version=2**52)])
    store.forget(Q, ["job1", "job2"])
    assert where(store, 1) == {}


# -- reserve and heads ------------------------------------------------------------------------


def test_reserve_takes_the_best_of_all_lanes(store: Reservations):
    third = Lane(Q, "third", None, ())
    store.admit(
        Q,
        [
            ready(1), ready(2, lane=CODEX, priority=5), ready(3, priority=5), ready(4, lane=third),
            ready(5, priority=-1), ready(6, lane=third, priority=2**31 - 1),
        ],
    )  # fmt: skip
    assert store.head(Q, lambda _: True) == (-(2**31 - 1), ready(6).member)
    assert take(store) == ("job6",)
    assert take(store, limit=3) == ("job2", "job3", "job1")
    assert take(store, limit=9) == ("job4", "job5")
    assert take(store) == ()
    assert store.head(Q, lambda _: True) is None


def test_reserve_looks_only_at_lanes_it_was_given(store: Reservations):
    store.admit(Q, [ready(1, priority=9), ready(2, lane=CODEX)])
    only = store.reserve(Q, CODEX.__eq__, lease_id="L", worker_id="w", limit=5)
    assert only.ids == ("job2",)
    assert store.reserve(Q, lambda _: False, lease_id="L", worker_id="w", limit=5).ids == ()
    assert store.head(Q, lambda _: False) is None


def test_reserve_holds_for_as_long_as_the_ledger_may_take(store: Reservations, moment: Moment):
    store.admit(Q, [ready(1)])
    held = store.reserve(Q, lambda _: True, lease_id="L", worker_id="w")
    assert (held.now_ms, held.overdue, held.ids) == (START, 0, ("job1",))
    assert where(store, 1) == {Index.GRANTING: START + GRANT_HOLD_MS}
    assert renew(store, 1) is None, "not confirmed: only the ledger can say"
    moment.now += GRANT_HOLD_MS
    assert store.reserve(Q, lambda _: True, lease_id="M", worker_id="w").overdue == 1


def test_reserve_again_holds_another(store: Reservations):
    store.admit(Q, [ready(1), ready(2)])
    assert take(store) == ("job1",)
    assert take(store) == ("job2",)


def test_reserve_counts_what_is_overdue(store: Reservations, moment: Moment):
    late = reserved(3, START, index=Index.GRANTING)
    store.admit(Q, [reserved(1, START), reserved(2, START + 1), late])
    assert store.reserve(Q, lambda _: True, lease_id="L", worker_id="w").overdue == 2
    moment.now += 1
    assert store.reserve(Q, lambda _: True, lease_id="L", worker_id="w").overdue == 3


@pytest.mark.parametrize("call", ["reserve", "heads"])
def test_a_look_at_the_lanes_makes_due_jobs_ready(
    store: Reservations, moment: Moment, heard: Any, call: str
):
    store.admit(Q, [scheduled(1, START + 5), scheduled(2, START + 6, lane=CODEX)])
    look = (lambda: take(store)) if call == "reserve" else (lambda: store.head(Q, lambda _: True))
    assert not look()
    moment.now += 5
    assert look()
    assert list(where(store, 2)) == [Index.SCHEDULED]
    assert heard() == [(ECHO.key, 1)]


def test_heads_holds_nothing(store: Reservations):
    store.admit(Q, [ready(1), ready(2, lane=CODEX, priority=1)])
    before = everything(store)
    for _ in range(2):
        assert store.head(Q, lambda _: True) == (-1, ready(2).member)
    assert everything(store) == before


# -- confirm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [Index.GRANTING, Index.RESERVED])
def test_confirm_gives_a_grant_its_deadline(store: Reservations, moment: Moment, index: Index):
    store.admit(Q, [ready(1)])
    take(store)
    assert confirm(store, 1, index=index, hold_ms=30_000) == 1
    assert where(store, 1) == {index: START + 30_000}
    assert hash_of(store, 1)["ver"] == "2"
    moment.now += 10
    assert confirm(store, 1, index=index, hold_ms=30_000) == 1
    again = START + 30_000 + (10 if index is Index.GRANTING else 0)
    assert where(store, 1) == {index: again}
    renewed = renew(store, 1)
    assert renewed is not None
    assert renewed.job == '{"job": 1}'


def test_confirm_of_what_another_claim_holds_changes_nothing(store: Reservations):
    store.admit(Q, [ready(1), ready(2)])
    take(store, lease="other")
    before = everything(store)
    assert confirm(store, 1, 2, 3) == 0
    assert everything(store) == before


def test_confirm_of_a_batch_confirms_what_is_still_held(store: Reservations):
    store.admit(Q, [ready(1), ready(2), ready(3)])
    take(store, limit=3)
    store.drop(Q, [("job2", 9)])
    assert confirm(store, 1, 2, 3) == 2
    assert [list(where(store, n)) for n in (1, 2, 3)] == [[Index.RESERVED], [], [Index.RESERVED]]


def test_confirm_leaves_what_was_taken_up_and_what_the_ledger_said_since(
    store: Reservations, moment: Moment
):
    store.admit(Q, [ready(1)])
    take(store)
    # reconcile was faster, the worker has sent a heartbeat, and an operator asks it to stop
    store.admit(Q, [reserved(1, START, version=2)])
    moment.now += 5
    assert renew(store, 1) is not None
    store.admit(Q, [reserved(1, START, version=3, cancel='["now"]', json="newer")])
    assert confirm(store, 1, index=Index.GRANTING, hold_ms=1000) == 1
    assert where(store, 1) == {Index.RESERVED: START + 5 + 60_000}
    assert renew(store, 1) == Renewed(START + 5 + 60_000, "newer", '["now"]')


def test_confirm_keeps_what_no_lua_number_could(store: Reservations):
    store.admit(Q, [ready(1)])
    take(store)
    text = json.dumps({"n": 2**63, "empty": [], "nul": "\0", "f": 0.1, "u": "\ud800 é"})
    store.confirm(Q, [("job1", 2, text)], lease_id="L", index=Index.RESERVED, hold_ms=1, lease_ms=1)
    renewed = renew(store, 1)
    assert renewed is not None
    assert renewed.job == text


# -- renew ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [Index.GRANTING, Index.RESERVED])
def test_renew_extends_and_takes_up(store: Reservations, moment: Moment, index: Index):
    store.admit(Q, [reserved(1, START + 1000, index=index)])
    moment.now += 10
    assert renew(store, 1) == Renewed(START + 60_010, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 60_010}
    moment.now += 10
    assert renew(store, 1, lease_ms=15_000) == Renewed(START + 15_020, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 15_020}


def test_renew_without_a_time_only_takes_up(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(1, START + 1000, index=Index.GRANTING, lease_ms=90_000)])
    moment.now += 10
    assert renew(store, 1, lease_ms=None) == Renewed(START + 90_010, '{"job": 1}', "")
    moment.now += 10
    assert renew(store, 1, lease_ms=None) == Renewed(START + 90_010, '{"job": 1}', "")
    assert where(store, 1) == {Index.RESERVED: START + 90_010}


@pytest.mark.parametrize(
    "who",
    [
        {"worker_id": "v"},
        {"lease_id": "M"},
        {"worker_id": "v", "lease_id": None},
        {"worker_id": "", "lease_id": None},
    ],
)
def test_renew_by_another_is_for_the_ledger_to_answer(store: Reservations, who: dict[str, Any]):
    store.admit(Q, [reserved(1, START + 1000)])
    before = everything(store)
    assert renew(store, 1, **who) is None
    assert everything(store) == before


def test_renew_without_a_lease_id_goes_by_the_worker(store: Reservations):
    store.admit(Q, [reserved(1, START + 1000)])
    assert renew(store, 1, lease_id=None) is not None


@pytest.mark.parametrize("placement", [None, ready(1), scheduled(1, START)])
def test_renew_of_what_nobody_holds_is_for_the_ledger(
    store: Reservations, placement: Placement | None
):
    if placement is not None:
        store.admit(Q, [placement])
    before = everything(store)
    assert renew(store, 1) is None
    assert renew(store, 1, worker_id="", lease_id=None) is None
    assert everything(store) == before


def test_renew_of_what_lies_in_no_index_is_for_the_ledger(store: Reservations):
    store.admit(Q, [reserved(1, START + 1000)])
    store.client.delete(f"{{db:{Q}}}:g1:reserved")
    assert renew(store, 1) is None
    assert where(store, 1) == {}


# -- due --------------------------------------------------------------------------------------


def test_due_names_what_is_past_its_deadline_and_nothing_else(store: Reservations):
    store.admit(
        Q,
        [
            reserved(1, START, lease="L1"),
            reserved(2, START + 1, lease="L2"),
            reserved(3, START - 1, lease="L3", index=Index.GRANTING),
            ready(4),
            scheduled(5, START - 1),
        ],
    )
    now_ms, due = store.due(Q, limit=9)
    assert now_ms == START
    assert due == [
        Due("job3", "L3", Index.GRANTING),
        Due("job1", "L1", Index.RESERVED),
    ]


def test_due_flags_so_that_a_heartbeat_asks_the_ledger(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(1, START)])
    assert len(store.due(Q, limit=9)[1]) == 1
    assert renew(store, 1) is None
    assert renew(store, 1, lease_ms=None) is None
    assert store.due(Q, limit=9)[1] == [], "another sweep is at it"
    moment.now += EXPIRING_AGAIN_MS
    assert len(store.due(Q, limit=9)[1]) == 1, "Again: names what is overdue by then"


def test_due_is_bounded_and_oldest_first(store: Reservations, moment: Moment):
    store.admit(Q, [reserved(number, START - number) for number in range(5)])
    assert [one.id for one in store.due(Q, limit=2)[1]] == ["job4", "job3"]
    assert [one.id for one in store.due(Q, limit=9)[1]] == ["job2", "job1", "job0"]


def test_due_names_and_removes_what_has_no_hash(store: Reservations):
    store.admit(Q, [reserved(1, START), reserved(2, START, index=Index.GRANTING)])
    for number in (1, 2):
        store.client.delete(f"{{db:{Q}}}:g1:job:job{number}")
    assert {(one.id, one.lease_id) for one in store.due(Q, limit=9)[1]} == {
        ("job1", ""), ("job2", ""),
    }  # fmt: skip
    assert where(store, 1) == where(store, 2) == {}


# -- promote ----------------------------------------------------------------------------------


def test_promote_makes_due_jobs_ready_and_wakes(store: Reservations, moment: Moment, heard: Any):
    store.admit(Q, [scheduled(n, START + n) for n in range(1, 5)])
    store.admit(Q, [scheduled(9, START + 1, lane=CODEX)])
    assert store.promote(Q, limit=9) == 0
    moment.now += 3
    assert store.promote(Q, limit=3) == 3
    assert store.promote(Q, limit=9) == 1
    assert store.promote(Q, limit=9) == 0
    told = heard()
    assert sum(n for lane, n in told if lane == ECHO.key) == 3
    assert sum(n for lane, n in told if lane == CODEX.key) == 1
    assert take(store, limit=9) == ("job1", "job2", "job3", "job9")


def test_promote_removes_what_has_no_hash(store: Reservations):
    store.admit(Q, [scheduled(1, START)])
    store.client.delete(f"{{db:{Q}}}:g1:job:job1")
    assert store.promote(Q, limit=9) == 1
    assert where(store, 1) == {}


# -- rebuild ----------------------------------------------------------------------------------


def test_one_builds_at_a_time(store: Reservations, moment: Moment):
    other = opened(store.client, moment)
    assert store.start_building(Q, "mine")
    assert not other.start_building(Q, "theirs")
    other.stop_building(Q, "theirs")
    assert not other.start_building(Q, "theirs")
    store.stop_building(Q, "mine")
    assert other.start_building(Q, "theirs")


def test_a_generation_is_read_by_nobody_until_it_is_published(store: Reservations):
    store.admit(Q, [ready(1)])
    assert store.start_building(Q, "t")
    store.build(Q, 2, "t", [ready(1), ready(2)])
    assert take(store, limit=9) == ("job1",)
    store.publish(Q, 2, "t", {ECHO.key: 2}, mark_ms=START)
    assert store.generation(Q) == 2
    assert take(store, limit=9) == ("job1", "job2")
    with pytest.raises(GenerationMoved):
        store.publish(Q, 2, "t", {})


def test_who_lost_the_duty_to_build_publishes_nothing(store: Reservations):
    assert store.start_building(Q, "slow")
    store.build(Q, 2, "slow", [ready(1)])
    store.client.delete(QueueKeys(Q).building)
    assert store.start_building(Q, "fast")
    with pytest.raises(GenerationMoved):
        store.build(Q, 2, "slow", [ready(2)])
    with pytest.raises(GenerationMoved):
        store.publish(Q, 2, "slow", {})
    assert store.generation(Q) == 1
    store.build(Q, 3, "fast", [ready(3)])
    store.publish(Q, 3, "fast", {})
    assert take(store, limit=9) == ("job3",)


def test_only_older_generations_are_swept(store: Reservations):
    store.admit(Q, [ready(1)])
    build(store, 2)
    store.admit(Q, [ready(1)])
    assert store.start_building(Q, "t")
    store.build(Q, 10, "t", [ready(1)])
    kept = {key for key in everything(store) if ":g1:" not in key}
    assert store.sweep_generations(Q, 2) > 0
    assert set(everything(store)) == kept
    assert store.sweep_generations(Q, 2) == 0
    assert store.sweep_generations("remot", 99) == 0, "another queue's keys are not ours"


def test_the_mark_says_up_to_when_an_index_is_whole(store: Reservations):
    assert store.mark(Q) == 0
    store.set_mark(Q, START)
    assert store.mark(Q) == START
    build(store, 2)
    assert store.mark(Q) == 0
    store.client.flushall()
    assert store.mark(Q) is None
    store.set_mark(Q, START)
    assert store.client.keys("*") == []


def test_an_index_that_another_server_wrote_counts_as_lost(
    start_valkey: Callable[..., Valkey],
):
    server = start_valkey("--appendonly", "yes", "--appendfsync", "always")
    with server.client() as client:
        first = opened(client, None)
        build(first)
        first.set_mark(Q, START)
    server.kill()
    server.start()
    with server.client() as client:
        second = opened(client, None)
        assert second.generation(Q) == 1, "the keys are all there"
        assert second.mark(Q) is None


# -- the server's own clock -------------------------------------------------------------------


def test_without_a_test_the_clock_is_the_servers(reservations_redis: redis.Redis):
    store = opened(reservations_redis, None)
    build(store)
    store.admit(Q, [ready(1)])
    before = store.clock_ms()
    held = store.reserve(Q, lambda _: True, lease_id="L", worker_id="w")
    assert before - 1 <= held.now_ms <= store.clock_ms()
    deadline = where(store, 1)[Index.GRANTING]
    assert deadline == held.now_ms + GRANT_HOLD_MS


# -- what a real server alone can show --------------------------------------------------------


def calls_of(client: redis.Redis, call: Callable[[], Any]) -> int:
    """Count the commands that a call runs on the server, those of its scripts too."""
    client.config_resetstat()
    call()
    stats = client.info("commandstats")
    ours = {"cmdstat_info", "cmdstat_config|resetstat"}
    return sum(stat["calls"] for name, stat in stats.items() if name not in ours)


@pytest.fixture
def real(valkey_url: str, moment: Moment) -> Iterator[Reservations]:
    """Give reservations on a real server only."""
    made = Reservations(Reservations.connect(valkey_url).client, now_ms=moment)
    build(made)
    yield made
    made.close()


def test_a_claim_costs_the_same_whatever_is_queued(real: Reservations):
    real.admit(Q, [ready(n) for n in range(10)])
    take(real)
    few = calls_of(real.client, lambda: take(real))
    real.admit(Q, [ready(n) for n in range(10, 20_000)])
    many = calls_of(real.client, lambda: take(real))
    assert many == few


def test_a_claim_costs_a_look_at_each_lane_that_it_may_see(real: Reservations):
    def lanes(first: int, last: int) -> list[Placement]:
        return [ready(n, lane=Lane(Q, f"t{n}", None, ())) for n in range(first, last)]

    real.admit(Q, lanes(0, 2))
    take(real)
    two = calls_of(real.client, lambda: take(real))
    real.admit(Q, lanes(2, 500))
    real.head(Q, lambda _: True)
    all_of_them = calls_of(real.client, lambda: take(real))
    assert all_of_them - two == 498

    def narrow() -> None:
        real.reserve(Q, lambda lane: lane.type in {"t7", "t8"}, lease_id="L", worker_id="w")

    assert calls_of(real.client, narrow) == two


GROWING: Final[dict[str, Callable[[Reservations], Any]]] = {
    "admit": lambda store: store.admit(Q, [ready(50)]),
    "reserve": take,
    "heads": lambda store: store.head(Q, lambda _: True),
    "promote": lambda store: store.promote(Q, limit=9),
}
SHRINKING: Final[dict[str, Callable[[Reservations], Any]]] = {
    "renew": lambda store: renew(store, 2),
    "confirm": lambda store: confirm(store, 1),
    "due": lambda store: store.due(Q, limit=9)[1],
    "drop": lambda store: store.drop(Q, [("job3", 9)]),
}


def test_full_memory_refuses_what_grows_as_a_whole_and_lets_the_rest_run(
    start_valkey: Callable[..., Valkey], moment: Moment
):
    with start_valkey().client() as client:
        store = Reservations(client, now_ms=moment)
        build(store)
        store.admit(Q, [ready(1), ready(9)])
        take(store)
        store.admit(Q, [reserved(2, START + 9), reserved(3, START), scheduled(4, START)])
        assert store.start_building(Q, "t")
        client.config_set("maxmemory", "1")
        before = everything(store)
        for name, call in GROWING.items():
            with pytest.raises(ReservationsUnavailable, match="maxmemory"):
                call(store)
            assert everything(store) == before, name
        for plain in (
            lambda: store.mark_seen("w", 1),
            lambda: store.revoke("id"),
            lambda: store.set_mark(Q, 1),
            lambda: store.start_building(Q, "u"),
        ):
            with pytest.raises(ReservationsUnavailable):
                plain()
        for name, call in SHRINKING.items():
            assert call(store), name
        store.publish(Q, 2, "t", {})
        assert store.generation(Q) == 2
        client.config_set("maxmemory", "0")
        store.admit(Q, [ready(1)])
        assert take(store) == ("job1",)


def test_a_replica_refuses_and_says_so(start_valkey: Callable[..., Valkey], moment: Moment):
    primary = start_valkey()
    with start_valkey().client() as client:
        store = Reservations(client, now_ms=moment)
        build(store)
        store.admit(Q, [ready(1)])
        client.replicaof("127.0.0.1", str(primary.port))
        for call in (
            lambda: take(store),
            lambda: store.mark_seen("w", 1),
            lambda: store.start_building(Q, "t"),
        ):
            with pytest.raises(ReservationsUnavailable):
                call()


# -- any order of news ------------------------------------------------------------------------

PLACES = st.sampled_from(["ready", "scheduled", "reserved", "ended"])
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("reserve"), st.integers(0, 2), st.just(False)),
    st.tuples(st.just("confirm"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("renew"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("sweep"), st.integers(1, 70_000), st.just(False)),
    st.tuples(st.just("promote"), st.just(0), st.just(False)),
)


def truth(kind: str, version: int, now: int) -> Placement | None:
    """Say where the ledger sees the job at a version; None when it has ended."""
    if kind == "ended":
        return None
    if kind == "reserved":
        return reserved(1, now + 60_000, lease=f"L{version}", version=version)
    if kind == "scheduled":
        return scheduled(1, now + 30_000, version=version)
    return ready(1, version=version)


class News:
    """What a ledger says of one job, version by version, reaching the index in any order."""

    def __init__(self, store: Reservations, moment: Moment, kinds: list[str]) -> None:
        self.store = store
        self.moment = moment
        self.kinds = kinds
        #: what the ledger has committed so far
        self.version = 1

    def put(self, version: int, *, force: bool = False) -> None:
        """Tell the index what the ledger said at a version, as ``Indexer`` does."""
        placement = truth(self.kinds[version - 1], version, self.moment.now)
        if placement is None:
            self.store.drop(Q, [("job1", version)])
        else:
            self.store.admit(Q, [placement], force=force)

    def sweep(self) -> None:
        """Ask about what is overdue, and put it where the ledger has it."""
        for one in self.store.due(Q, limit=9)[1]:
            assert one.id == "job1"
            self.put(self.version, force=True)

    def step(self, what: str, number: int, *, flag: bool) -> None:
        """Do one thing, late or twice or by a claim that dies after it."""
        known = min(number + 1, len(self.kinds))
        lease = f"L{known}"
        if what == "put":
            # an older one is late; a newer one is what the ledger has just committed
            self.version = max(self.version, known)
            self.put(known, force=flag)
        elif what == "reserve":
            take(self.store, lease=f"claim{number}", worker=f"w{number}")
        elif what == "confirm":
            index = Index.GRANTING if flag else Index.RESERVED
            confirm(self.store, 1, lease=lease, index=index, hold_ms=30_000)
        elif what == "renew":
            renew(self.store, 1, lease_id=lease, lease_ms=None if flag else 60_000)
        elif what == "promote":
            self.store.promote(Q, limit=9)
        else:
            self.moment.now += number
            self.sweep()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(kinds=st.lists(PLACES, min_size=1, max_size=6), steps=st.lists(STEPS, max_size=25))
def test_whatever_came_before_one_sweep_and_one_look_put_it_right(
    store: Reservations, moment: Moment, kinds: list[str], steps: list[tuple[str, int, bool]]
):
    """News of one job arrive late, twice and in any order, between claims that die midway."""
    store.client.flushall()
    build(store, 1)
    store._known.clear()
    news = News(store, moment, kinds)
    news.put(1)
    for what, number, flag in steps:
        news.step(what, number, flag=flag)
        assert len(where(store, 1)) <= 1, "never in two indexes"
    event(f"before: {list(where(store, 1))}")
    # what reconcile sees, then what a sweep ends, then what reconcile sees of that
    news.put(news.version)
    moment.now += 61_000
    news.sweep()
    news.put(news.version)
    kind = kinds[news.version - 1]
    if kind == "scheduled":
        store.promote(Q, limit=9)
        moment.now += 31_000
        store.promote(Q, limit=9)
    expected = {"ended": [], "reserved": [Index.RESERVED]}.get(kind, [Index.READY])
    assert list(where(store, 1)) == expected
    if kind == "reserved":
        assert hash_of(store, 1)["lease"] == f"L{news.version}"


def test_a_thousand_names_of_lanes_do_not_meet():
    keys = {Lane(Q, str(uuid4()), None, ()).key for _ in range(1000)}
    assert len(keys) == 1000
