"""Whether a worker may be given a job, and which rule decides: what a claim does, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from broker.policy import Lane, Policy, merge


@dataclass(frozen=True, slots=True)
class Verdict:
    """A yes or no, the rule that decides it, and the rule in words."""

    allowed: bool
    rule: str
    message: str


YES = Verdict(allowed=True, rule="none", message="nothing keeps the job from this worker")


def judge(
    policy: Policy,
    lane: Lane,
    *,
    types: Iterable[str] | None = None,
    capabilities: Iterable[str] | None = None,
    held: int = 0,
) -> Verdict:
    """Judge a lane's jobs by a credential and by what its worker asks for and holds.

    Of several rules that say no the first counts: types, the worker's own types, queues,
    capabilities, repositories, and at last whether a place is free.
    """
    wanted = None if types is None else tuple(types)
    declared = tuple(capabilities or ())
    return next(_against(policy, lane, wanted, declared, held), YES)


def _against(
    policy: Policy, lane: Lane, wanted: tuple[str, ...] | None, declared: tuple[str, ...], held: int
) -> Iterator[Verdict]:
    """Name the rules that say no, the first one first."""
    if policy.types is not None and lane.type not in policy.types:
        yield _no("allowedJobTypes", "the credential allows", policy.types, lane.type)
    if wanted is not None and lane.type not in wanted:
        yield _no("types", "the worker asks for", wanted, lane.type)
    if policy.queues is not None and lane.queue not in policy.queues:
        yield _no("queues", "the credential allows", policy.queues, lane.queue)
    has = declared if policy.capabilities is None else policy.capabilities
    lacks = [one for one in lane.capabilities if one not in has]
    if lacks:
        yield _no("capabilities", "the worker has", has, ", ".join(lacks))
    if not merge(Policy(repositories=policy.repositories, capabilities=lane.capabilities)).allows(
        lane
    ):
        verdict = _no(
            "allowedRepositories",
            "the credential allows",
            policy.repositories,
            str(lane.repository),
        )
        if lane.repository is None:
            said = f"{verdict.message.partition(';')[0]} alone; the job has no repository"
            verdict = replace(verdict, message=said)
        yield verdict
    if policy.max_concurrency is not None and held >= policy.max_concurrency:
        message = f"the worker holds {held} jobs, the credential allows {policy.max_concurrency}"
        yield Verdict(allowed=False, rule="maxConcurrency", message=message)


def _no(rule: str, who: str, allowed: Iterable[str] | None, needed: str) -> Verdict:
    named = ", ".join(allowed or ()) or "nothing"
    return Verdict(allowed=False, rule=rule, message=f"{who} {named}; the job needs {needed}")
