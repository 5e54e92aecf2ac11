"""The oracle: every invariant by its number, judged over the facts of one run.

It knows the promises (`reliability.md`) and how stores lie, and nothing of the code that keeps
them: neither it nor what it imports imports the product.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from tests.chaos import judging_ledger as ledger
from tests.chaos import judging_promises as promises
from tests.chaos import judging_stores as stores
from tests.chaos.facts import Facts
from tests.chaos.report import Violation

#: How an edge tells a holder that it holds nothing any more.
LOST: Final = frozenset({403, 404, 409})

Invariant = Callable[[Facts], Iterable[Violation]]

INVARIANTS: Final[Mapping[str, Invariant]] = MappingProxyType(
    {
        "I1": ledger.i1_every_message_is_one_row,
        "I2": ledger.i2_one_end_and_it_stays,
        "I3": ledger.i3_leases_are_granted_by_commits,
        "I4": promises.i4_stale_holders_change_nothing,
        "I5": promises.i5_what_was_promised_is_in_the_ledger,
        "I6": promises.i6_repeats_have_the_effect_of_one,
        "I7": ledger.i7_nothing_in_between,
        "I8": stores.i8_celery_sees_what_the_ledger_says,
        "I9": ledger.i9_attempts_are_bounded,
        "I10": promises.i10_losing_redis_costs_nothing,
        "I11": stores.i11_the_index_is_part_of_the_ledger,
        "I12": promises.i12_cancel_is_kept,
        "I13": ledger.i13_neither_early_nor_late_nor_to_strangers,
        "I14": ledger.i14_logs_have_no_gaps,
        "I15": stores.i15_files_are_whole,
        "I16": promises.i16_poison_is_rejected,
        "I17": ledger.i17_caps_hold,
        "I18": promises.i18_revoked_is_out,
        "I19": stores.i19_everything_ends,
        "I20": stores.i20_lapsed_leases_end_soon,
        "I21": stores.i21_the_outbox_drains,
        "I22": stores.i22_the_index_comes_back_fast,
        "I23": stores.i23_waiting_claims_wake,
        "I24": promises.i24_no_lease_ends_while_sql_is_away,
        "I25": promises.i25_heartbeats_come_through,
    }
)


def judge(facts: Facts) -> list[Violation]:
    """Return every promise that was not kept."""
    return [violation for look in INVARIANTS.values() for violation in look(facts)]


def figures(facts: Facts, found: Iterable[Violation]) -> dict[str, float]:
    """Count what the suite is judged by."""
    found = list(found)
    gone = {v.job for v in found if v.invariant == "I5" and "result is gone" in v.evidence}
    stale = [
        call
        for calls in facts.calls_on.values()
        for call in calls
        if call.status in LOST and _is_stale(facts, call.job or "", call.lease or "", call.asked_at)
    ]
    return {
        "lost": sum(v.invariant == "I1" and v.evidence.startswith("lost") for v in found),
        "doubled": sum(v.invariant == "I1" and v.evidence.startswith("doubled") for v in found),
        "double_terminal": sum(v.invariant == "I2" for v in found),
        "acknowledged_result_lost": len(gone),
        "stale_accepted": sum(v.invariant == "I4" for v in found),
        "stale_rejected": len(stale),
        "faults": len(facts.faults),
        "faults_in_flight": sum(fault.in_flight for fault in facts.faults),
    }


def _is_stale(facts: Facts, job_id: str, lease_id: str, at: float) -> bool:
    """Tell whether a lease had ended in the ledger when a call under it was made."""
    lease = facts.lease.get((job_id, lease_id))
    return lease is not None and lease.ended_at is not None and lease.ended_at < at
