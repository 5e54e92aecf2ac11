"""Every Lua script: what its header says, whom it refuses, and which index a job comes into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from broker.errors import GenerationMoved
from broker.policy import Lane
from broker.reservations import scripts
from broker.reservations.keys import QueueKeys
from broker.reservations.scripts import LanesMoved, Scripts
from broker.reservations.shapes import BATCH, Placement
from broker.reservations.store import Reservations
from broker.states import Index
from tests.contract.scripts.kit import (
    CODEX,
    ECHO,
    START,
    STATES,
    Moment,
    Q,
    build,
    confirm,
    everything,
    hash_of,
    is_fake,
    opened,
    ready,
    renew,
    reserved,
    scheduled,
    take,
    where,
)

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
    "reserve": [1, "L2", "w", 1000, 1, "c", Q, "only", ECHO.key],
    "confirm": ["L", "reserved", 1000, 1000, "job1", 9, "{}"],
    "renew": ["job1", "L", "w", 1000, ""],
    "due": [10, 1000],
    "promote": ["c", Q, 10],
    "heads": [1, "c", Q, "but", ""],
    "publish": ["{db:remote}:gen", 9, "0:"],
    "fill": [1, CODEX.spec(), CODEX.key, 0, 1, "", 1, ready(9).member],
    "mend": [0, 9, ECHO.key],
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
    if name == "mend":
        store.client.delete(f"{keys.prefix}heads")
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
        lambda: store.mend(Q, at=0, limit=9),
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
