"""When a job is offered again."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backoff import lease_lost_delay_s, retry_delay_s

JOB_IDS = st.uuids().map(str)
ATTEMPTS = st.integers(1, 1000)


@given(JOB_IDS, ATTEMPTS)
def test_the_delay_doubles_up_to_its_cap_within_its_jitter(job_id: str, attempt: int):
    middle = min(600.0, 15.0 * 2.0 ** min(attempt - 1, 50))
    assert 0.75 * middle <= retry_delay_s(job_id, attempt) <= 1.25 * middle


@given(JOB_IDS, ATTEMPTS)
def test_a_lost_lease_waits_half_a_minute(job_id: str, attempt: int):
    assert 22.5 <= lease_lost_delay_s(job_id, attempt) <= 37.5


@given(JOB_IDS, ATTEMPTS)
def test_the_same_attempt_waits_the_same(job_id: str, attempt: int):
    assert retry_delay_s(job_id, attempt) == retry_delay_s(job_id, attempt)
    assert lease_lost_delay_s(job_id, attempt) == lease_lost_delay_s(job_id, attempt)


def test_another_process_waits_the_same():
    job_id = "6f0c1b1e-5b0d-4c58-9f6f-8e1b7a0f2f11"
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from broker.backoff import retry_delay_s; print(repr(retry_delay_s({job_id!r}, 2)))",
        ],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "1"},
    )
    assert float(said.stdout) == retry_delay_s(job_id, 2)


@pytest.mark.parametrize("attempt", [1, 2, 7])
def test_many_jobs_that_fail_at_once_do_not_return_at_once(attempt: int):
    delays = sorted(retry_delay_s(str(uuid4()), attempt) for _ in range(1000))
    middle = min(600.0, 15.0 * 2 ** (attempt - 1))
    # a tenth of the range holds about a tenth of them
    tenth = sum(0.95 * middle <= delay < middle for delay in delays)
    assert 40 <= tenth <= 200
    assert delays[0] < 0.8 * middle
    assert delays[-1] > 1.2 * middle


def test_attempts_of_one_job_differ_in_their_jitter():
    job_id = str(uuid4())
    factors = {retry_delay_s(job_id, n) / min(600.0, 15.0 * 2 ** (n - 1)) for n in range(1, 20)}
    assert len(factors) == 19
