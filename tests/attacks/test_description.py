"""The edge against its own description: a cut of `make fuzz`, the same requests every time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.edge.served import Served
from tests.fuzz.run import ENVIRONMENT, fuzz, tokens


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Give an environment in which nobody is told to come back later."""
    return {**environment, **ENVIRONMENT}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_request_made_of_the_description_is_answered_otherwise(
    start_served: Callable[..., Served], environment: dict[str, str], tmp_path: Path
) -> None:
    served = start_served("--threads", "60")
    credentials = tokens(environment["DRAWBRIDGE_DATABASE_URL"])
    report = fuzz(
        f"http://127.0.0.1:{served.port}", credentials, tmp_path,
        "--phases", "fuzzing,stateful", "--max-examples", "4", "--generation-deterministic",
        # whether each refusal was right takes a person to tell, now and then: `make fuzz` asks
        "--exclude-checks", "positive_data_acceptance,negative_data_rejection",
    )  # fmt: skip
    assert not report.failed, report.text
    assert report.requests > 100
    assert '"action": "crash"' not in served.process.output()
