"""What a verdict says in words is what a claim does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import NotAuthorized
from broker.policy import Lane, Policy, merge
from broker.verdicts import judge

LANE = Lane("q", "echo", "github.com/org/repo", ("gpu",))
Words = tuple[str, ...] | None
SOME = st.none() | st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(tuple)
REPOSITORIES = st.none() | st.lists(
    st.sampled_from(["github.com/a/*", "github.com/a/b", "github.com/c/*"]), max_size=2
).map(tuple)


@pytest.mark.parametrize(
    "policy, asked, rule",
    [
        (Policy(), {}, "none"),
        (Policy(types=("other",)), {}, "allowedJobTypes"),
        (Policy(types=()), {}, "allowedJobTypes"),
        (Policy(), {"types": ["other"]}, "types"),
        (Policy(queues=("p",)), {}, "queues"),
        (Policy(capabilities=("cpu",)), {}, "capabilities"),
        (Policy(repositories=("github.com/other/*",)), {}, "allowedRepositories"),
        (Policy(repositories=()), {}, "allowedRepositories"),
        (Policy(max_concurrency=2), {"held": 2}, "maxConcurrency"),
        (Policy(max_concurrency=2), {"held": 1}, "none"),
        # the first of several, always the same one
        (Policy(types=(), queues=(), repositories=()), {"types": []}, "allowedJobTypes"),
    ],
)
def test_the_rule_that_decides(policy: Policy, asked: dict[str, object], rule: str):
    verdict = judge(policy, LANE, **{"capabilities": ["gpu"], **asked})
    assert (verdict.rule, verdict.allowed) == (rule, rule == "none")
    assert verdict.message


def test_a_job_without_a_repository_is_said_to_have_none():
    policy = Policy(repositories=("github.com/org/*",))
    assert judge(policy, Lane("q", "echo", None, ())).message == (
        "the credential allows github.com/org/* alone; the job has no repository"
    )


@given(SOME, REPOSITORIES, SOME, SOME, SOME, SOME, st.sampled_from("abc"), SOME, st.booleans())
def test_a_verdict_is_what_a_claim_would_see(
    types: Words, repositories: Words, capabilities: Words, queues: Words, wanted: Words,
    declared: Words, word: str, required: Words, named: bool,
):  # fmt: skip
    policy = Policy(types, repositories, capabilities, queues)
    lane = Lane(word, word, "github.com/a/b" if named else None, required or ())
    try:
        allows = merge(policy, allowed_types=wanted, worker_capabilities=declared).allows(lane)
    except NotAuthorized:
        allows = False
    assert judge(policy, lane, types=wanted, capabilities=declared).allowed is allows
