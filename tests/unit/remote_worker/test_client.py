"""What is asked again, how often, and after how long."""

import pytest

from remote_worker.client import Client, wait_s
from remote_worker.errors import LeaseLost, Refused, Unanswered
from remote_worker.job import Event, Job
from tests.unit.remote_worker.edge import Answer, FakeEdge, error_page, refusal


def claim(client: Client, give_up: object = lambda: False) -> list[Job]:
    return client.claim(
        types=["codex_exec"], capabilities=[], lease_s=60, wait_s=0, max_jobs=1,
        give_up=give_up,  # type: ignore[arg-type]
    )  # fmt: skip


def test_waits_grow_to_a_ceiling_and_never_undercut_what_was_asked() -> None:
    def highest(_low: float, high: float) -> float:
        return high

    assert [wait_s(n, retry_after_s=0, draw=highest) for n in (1, 2, 3, 7, 50)] == [
        0.5, 1, 2, 30, 30,
    ]  # fmt: skip
    assert wait_s(1, retry_after_s=9, draw=highest) == 9
    assert wait_s(1, retry_after_s=0, draw=lambda low, _high: low) == 0


def test_a_claim_is_asked_until_answered_under_one_key(
    client: Client, edge: FakeEdge, waits: list[float]
) -> None:
    edge.offer()
    edge.instead("/claim", Answer(cut=True))
    edge.instead("/claim", error_page(200))
    edge.instead("/claim", Answer(503, b"", (("Retry-After", "5"),)))
    assert len(claim(client)) == 1
    keys = {call.headers["Idempotency-Key"] for call in edge.asked("/claim")}
    assert len(keys) == 1
    assert len(edge.asked("/claim")) == 4
    assert waits == [0.5, 1, 5]


def test_two_claims_have_two_keys(client: Client, edge: FakeEdge) -> None:
    claim(client)
    claim(client)
    assert len({call.headers["Idempotency-Key"] for call in edge.asked("/claim")}) == 2


def test_a_claim_is_given_up_when_the_daemon_ends(client: Client, edge: FakeEdge) -> None:
    edge.instead("/claim", error_page(502), times=99)
    with pytest.raises(Unanswered):
        claim(client, give_up=lambda: len(edge.asked("/claim")) >= 3)
    assert len(edge.asked("/claim")) == 3


def test_a_refusal_is_not_asked_again(client: Client, edge: FakeEdge) -> None:
    edge.instead("/claim", refusal(401, "worker_auth_failed"))
    with pytest.raises(Refused):
        claim(client)
    assert len(edge.asked("/claim")) == 1


@pytest.mark.parametrize("status", [403, 404, 409, 410])
def test_no_on_our_own_job_means_it_is_ours_no_more(
    client: Client, edge: FakeEdge, status: int
) -> None:
    edge.offer()
    [job] = claim(client)
    edge.instead("/complete", refusal(status, "job_ownership_mismatch"))
    with pytest.raises(LeaseLost):
        client.complete(job, summary="", result={}, give_up=lambda: False)


def test_a_lost_reply_to_a_report_is_asked_for_again(client: Client, edge: FakeEdge) -> None:
    edge.offer()
    [job] = claim(client)
    edge.instead("/fail", error_page(504))
    client.fail(job, message="m", error_type="t", retryable=True, give_up=lambda: False)
    assert len(edge.asked("/fail")) == 2
    assert edge.jobs[job.id].report["retryable"] is True


def test_events_are_tried_a_few_times_only(client: Client, edge: FakeEdge) -> None:
    edge.offer()
    [job] = claim(client)
    edge.instead("/events", error_page(502), times=99)
    with pytest.raises(Unanswered):
        client.append(job, [Event(seq=1, level="info", message="m")])
    assert len(edge.asked("/events")) == 3


@pytest.mark.parametrize("no", [refusal(404, "not_found"), refusal(405, "method_not_allowed")])
def test_an_edge_without_release_gets_a_retryable_failure(
    client: Client, edge: FakeEdge, no: Answer
) -> None:
    held = edge.offer()
    [job] = claim(client)
    edge.instead("/release", no)
    client.release(job, give_up=lambda: False)
    assert held.ended == "fail"
    assert held.report["retryable"] is True


def test_releasing_a_job_that_is_gone_fails_nothing(client: Client, edge: FakeEdge) -> None:
    edge.offer()
    [job] = claim(client)
    edge.instead("/release", refusal(404, "job_not_found"))
    with pytest.raises(LeaseLost):
        client.release(job, give_up=lambda: False)
    assert edge.asked("/fail") == []
