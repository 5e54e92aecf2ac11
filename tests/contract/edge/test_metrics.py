"""What an edge counts, and who may read it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.edge.conftest import Caller, Edge
from tests.contract.edge.test_server import COMMAND
from tests.processes import Process
from tests.services import free_port


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"drawbridge_{name}", labels) or 0.0


def test_calls_are_counted_by_template(edge: Edge, user: Caller, worker: Caller) -> None:
    job = "/api/queue/jobs/<string:job_id>"
    before = value("requests_total", method="GET", route=job, status="200")
    unknown = value("requests_total", method="-", route="-", status="404")
    refused = value("credentials_refused_total", route="/api/queue/jobs/claim")
    job_id = user.post("/jobs", {"type": "t"}).json["id"]
    assert user.get(f"/jobs/{job_id}").status_code == 200
    edge.app.test_client().open("/nope", method="BREW", headers=user.headers)
    edge.stranger().post("/jobs/claim", {})
    assert value("requests_total", method="GET", route=job, status="200") == before + 1
    assert value("request_seconds_count", method="GET", route=job) >= before + 1
    assert value("requests_total", method="-", route="-", status="404") == unknown + 1
    assert value("credentials_refused_total", route="/api/queue/jobs/claim") == refused + 1
    answer = edge.app.test_client().get("/metrics", headers=user.headers)
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    assert job_id not in answer.text
    assert "nope" not in answer.text
    assert "BREW" not in answer.text
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert "drawbridge_requests" in names


def test_claims_and_transitions_are_counted(user: Caller, worker: Caller) -> None:
    def moved(trigger: str) -> float:
        return value("transitions_total", queue="remote", type="counted", trigger=trigger)

    empty, granted = (value("claims_total", outcome=one) for one in ("empty", "granted"))
    assert worker.claim().json["job"] is None
    triggers = ("grant", "complete", "retry", "cancel")
    before = [moved(one) for one in triggers]
    for _ in range(3):
        user.post("/jobs", {"type": "counted"})
    done, again, stopped = (worker.job() for _ in range(3))
    worker.say(done["id"], "complete", leaseId=done["leaseId"])
    worker.say(done["id"], "complete", leaseId=done["leaseId"])  # a repeat is no transition
    worker.say(again["id"], "fail", errorMessage="x", retryable=True)
    user.post(f"/jobs/{stopped['id']}/cancel")
    worker.say(stopped["id"], "cancel/ack")
    assert [moved(one) for one in triggers] == [before[0] + 3] + [n + 1 for n in before[1:]]
    assert value("claims_total", outcome="empty") == empty + 1
    assert value("claims_total", outcome="granted") == granted + 3
    assert value("waiting_calls") == 0


@pytest.mark.slow
def test_a_port_of_its_own_needs_no_credential(
    process: Callable[..., Process], sqlite_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    env = {
        "DRAWBRIDGE_DATABASE_URL": sqlite_url,
        "DRAWBRIDGE_RESERVATIONS_URL": valkey_url,
        "DRAWBRIDGE_ARTIFACTS_DIR": str(tmp_path / "artifacts"),
    }
    argv = [COMMAND, "edge", "--port", "0", "--metrics-port", str(port), "--json"]
    started = process(argv, env=env, stdout_apart=True)
    url = json.loads(started.wait_for(r'^\{"url": ".*"\}$')[0])["url"]
    for _ in range(2):
        assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    counted = 'drawbridge_requests_total{method="GET",route="/healthz",status="200"} 2.0'
    assert counted in text.splitlines()
    assert requests.get(f"{url}/metrics", timeout=30).status_code == 401
