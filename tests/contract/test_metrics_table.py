"""deploy/METRICS.md says which figures there are: the same as the code."""

import re
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from broker import figures
from broker.bridge.gauges import Gauges
from broker.bridge.loops import Loop
from broker.clock import Clock
from broker.ledger.engine import Ledger
from broker.queue import JobQueue
from broker.records import NewJob
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from edge_api import figures as edge_figures

TABLE = Path(__file__).parents[2] / "deploy" / "METRICS.md"
ROW = re.compile(
    r"^\| `(drawbridge_\w+)` \| (\w+) \| ([\w, ]*?) ?\| ([\w, ]+) \| .+ \|$", re.MULTILINE
)


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = ROW.findall(TABLE.read_text())
    return {
        name: (kind, tuple(filter(None, re.split(r",\s*", labels.strip()))))
        for name, kind, labels, _ in rows
    }


def told(family: Metric, labels: tuple[str, ...]) -> tuple[str, tuple[str, tuple[str, ...]]]:
    name = family.name + ("_total" if family.type == "counter" else "")
    return name, (family.type, labels)


def test_the_table_is_what_the_code_counts(ledger: Ledger, reservations: Reservations) -> None:
    queue = JobQueue(
        ledger, reservations, clock=Clock(reservations.clock_ms), settings=QueueSettings()
    )
    queue.create(NewJob(task_id="a", queue="remote", type="t", created_by="me"))
    gauges = Gauges(
        ledger, reservations, clock=queue.clock, loops=lambda: [Loop("relay", lambda: 0.0)]
    )
    found = {}
    for family in gauges.collect():
        labels = {tuple(sample.labels) for sample in family.samples}
        by_pair = family.name.endswith("_jobs")
        assert len(labels) == 1 or by_pair, family.name
        found |= [told(family, labels.pop() if labels else ("queue", "type"))]
    for module in (figures, edge_figures):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                found |= [told(family, metric._labelnames)]
    assert documented() == found
    ours = {family.name for family in REGISTRY.collect() if family.name.startswith("drawbridge_")}
    assert ours <= {name.removesuffix("_total") for name in found}


def test_gauges_tell_what_lies_there(ledger: Ledger, reservations: Reservations) -> None:
    queue = JobQueue(
        ledger, reservations, clock=Clock(reservations.clock_ms), settings=QueueSettings()
    )
    for number in range(3):
        queue.create(NewJob(task_id=f"t{number}", queue="remote", type="t", created_by="me"))
    queue.seen("w1")
    gauges = Gauges(ledger, reservations, clock=queue.clock, loops=list)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in gauges.collect()
        for sample in family.samples
    }
    assert values["drawbridge_queued_jobs", "remote", "t"] == 3
    assert 0 <= values["drawbridge_queued_oldest_seconds", "remote", "t"] < 300
    assert values["drawbridge_outbox_rows",] > 0
    assert values["drawbridge_workers_online",] == 1
    assert values["drawbridge_beat_age_seconds",] == float("inf")
    assert values["drawbridge_store_reachable", "ledger"] == 1
    assert values["drawbridge_store_reachable", "reservations"] == 1
    # a second question within the time costs the ledger nothing, and gives the same
    queue.create(NewJob(task_id="t3", queue="remote", type="t", created_by="me"))
    (again,) = (f for f in gauges.collect() if f.name == "drawbridge_queued_jobs")
    assert [sample.value for sample in again.samples] == [3]


def test_a_store_that_is_away_is_told(ledger: Ledger) -> None:
    nowhere = Reservations.connect("redis://127.0.0.1:1/0")
    gauges = Gauges(ledger, nowhere, clock=Clock(nowhere.clock_ms), loops=list)
    families = {family.name: family for family in gauges.collect()}
    reachable = {s.labels["store"]: s.value for s in families["drawbridge_store_reachable"].samples}
    assert reachable == {"ledger": 1, "reservations": 0}
    assert "drawbridge_beat_age_seconds" not in families
