"""The command ``drawbridge doctor``: well, and with each thing that can be wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from broker import cli
from broker.bridge.app import make_app
from broker.bridge.runtime import BEAT_MS, Bridge, Settings
from broker.clock import Clock, to_ms
from broker.commands.findings import Level, age
from broker.commands.ledger_checks import offset
from broker.commands.redis_checks import _version, place
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.ledger.jobs import jobs
from broker.ledger.outbox import outbox
from broker.policy import Policy
from broker.queue import JobQueue
from broker.reservations.keys import BEAT, SEEN, QueueKeys, owner
from broker.reservations.store import Reservations
from broker.settings import BridgeSettings, QueueSettings, StoreSettings
from broker.upkeep import Upkeep
from tests.clusters import Cluster
from tests.contract.test_queue import claim, new
from tests.services import Valkey, free_port


@dataclass
class Patient:
    """A ledger and reservations in good health: a job waits, a bridge has just passed."""

    database_url: str
    reservations_url: str
    queue: JobQueue

    @property
    def client(self) -> Any:
        """Redis itself."""
        return self.queue.reservations.client

    def doctor(self, *words: str, **env: str) -> Result:
        """Run the command."""
        settings = {
            "DRAWBRIDGE_DATABASE_URL": self.database_url,
            "DRAWBRIDGE_RESERVATIONS_URL": self.reservations_url,
            **env,
        }
        result = CliRunner(env=settings).invoke(cli.drawbridge, ["doctor", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    def problems(self, *words: str, **env: str) -> dict[str, str]:
        """Return the problems by check, and what is said of them."""
        result = self.doctor("--json", *words, **env)
        said = json.loads(result.output)
        bad = {one["check"]: one for one in said["checks"] if one["status"] == "problem"}
        assert said["ok"] == (not bad)
        assert result.exit_code == (1 if bad else 0)
        assert all(one["wayOut"] for one in bad.values())
        return {name: f"{one['message']} {one['wayOut']}" for name, one in bad.items()}


@pytest.fixture
def patient(ledger_url: str, valkey_url: str) -> Iterator[Patient]:
    """Give stores in good health, on each of the databases."""
    ledger = Ledger(ledger_url, synchronous="NORMAL")
    reservations = Reservations.connect(valkey_url)
    clock = Clock(reservations.clock_ms)
    queue = JobQueue(ledger, reservations, clock=clock, settings=QueueSettings())
    queue.create(new())
    Upkeep(queue).reconcile()
    reservations.client.set(owner("fleet"), "bridge", px=60_000)
    reservations.client.set(BEAT, to_ms(datetime.now(UTC)))
    yield Patient(ledger_url, valkey_url, queue)
    reservations.close()
    ledger.close()


def test_all_is_well(patient: Patient, start_valkey: Callable[..., Valkey]) -> None:
    unknown = json.loads(patient.doctor("--json").output)
    assert unknown["ok"]
    assert {one["check"] for one in unknown["checks"] if one["status"] == "skipped"} == {
        "confirms", "ordinary workers",
    }  # fmt: skip
    broker = start_valkey()
    words = ("--broker-url", broker.url, "--result-backend", "rpc://")
    said = patient.doctor(*words)
    assert said.exit_code == 0
    assert {line.split()[0] for line in said.output.splitlines()} == {"ok"}
    asked = json.loads(patient.doctor("--json", *words, "--queue", "a", "--queue", "b").output)
    found = {one["check"]: one["message"] for one in asked["checks"]}
    assert "a bridged queue (a, b)" in found["ordinary workers"]
    assert set(found) == {
        "ledger", "ledger clock", "reservations", "reservations clock", "eviction", "version",
        "artifacts", "celery broker", "result backend", "outbox", "parked", "credentials", "bridge",
        "beat", "maintenance", "expiry", "waiting", "confirms", "ordinary workers",
    }  # fmt: skip


def test_it_changes_nothing(patient: Patient) -> None:
    before = sorted(patient.client.scan_iter("*"))
    job = patient.queue.catalog.page()[0]
    patient.doctor()
    assert sorted(patient.client.scan_iter("*")) == before
    assert patient.queue.catalog.page()[0] == job


def test_a_ledger_without_tables(patient: Patient, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    found = patient.problems(DRAWBRIDGE_DATABASE_URL=url)
    assert set(found) == {"ledger"}
    assert "drawbridge migrate" in found["ledger"]


def test_a_ledger_that_is_away_and_its_password(patient: Patient) -> None:
    url = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db"
    result = patient.doctor(DRAWBRIDGE_DATABASE_URL=url)
    assert result.exit_code == 1
    assert "s3cret" not in result.output
    assert "DRAWBRIDGE_DATABASE_URL" in result.output
    assert "PROBLEM" in result.output


def test_reservations_that_are_away_and_their_password(patient: Patient) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    found = patient.problems(DRAWBRIDGE_RESERVATIONS_URL=url)
    assert set(found) == {"reservations"}
    assert "s3cret" not in patient.doctor(DRAWBRIDGE_RESERVATIONS_URL=url).output


def test_a_server_that_drops_keys(patient: Patient, start_valkey: Callable[..., Valkey]) -> None:
    bad = start_valkey("--maxmemory-policy", "allkeys-lru")
    found = patient.problems(DRAWBRIDGE_RESERVATIONS_URL=bad.url)
    assert "noeviction" in found["eviction"]
    # and it is empty: nobody has built the index, no bridge owns anything
    assert set(found) == {"eviction", "bridge", "maintenance"}


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_every_node_of_a_cluster_is_looked_at(patient: Patient, valkey_cluster: Cluster) -> None:
    away = valkey_cluster.masters[-1]
    for node in valkey_cluster.masters:  # a test before this one may have left word of its bridge
        node.ask("FLUSHALL")
    assert set(patient.problems(DRAWBRIDGE_RESERVATIONS_URL=valkey_cluster.url)) == {
        "bridge", "maintenance",
    }  # fmt: skip
    shared = patient.problems(
        DRAWBRIDGE_RESERVATIONS_URL=valkey_cluster.url, DRAWBRIDGE_BROKER_URL=away.url
    )
    assert "celery broker" in shared
    try:
        away.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        found = patient.problems(DRAWBRIDGE_RESERVATIONS_URL=valkey_cluster.url)
        assert f":{away.port}: maxmemory-policy is allkeys-lru" in found["eviction"]
    finally:
        away.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_cluster_that_is_not_whole(patient: Patient) -> None:
    with Cluster(masters=2) as cluster:
        slot = cluster.masters[0].ask("CLUSTER", "KEYSLOT", SEEN) ^ 1
        for node in cluster.masters:
            node.ask("CLUSTER", "DELSLOTS", slot)
        found = patient.problems(DRAWBRIDGE_RESERVATIONS_URL=cluster.url)
        assert "no node holds 1 of its slots" in found["reservations"]
        cluster.masters[1].kill()
        found = patient.problems(DRAWBRIDGE_RESERVATIONS_URL=cluster.url)
        assert f":{cluster.masters[1].port}" in found["reservations"]


def test_a_bucket_that_is_away(patient: Patient) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    away = {
        "DRAWBRIDGE_ARTIFACTS_URL": f"s3://bucket/x?endpoint={endpoint}",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "not-to-be-said",
    }  # fmt: skip
    found = patient.problems(**away)
    assert set(found) == {"artifacts"}
    assert endpoint in found["artifacts"]
    assert "not-to-be-said" not in patient.doctor(**away).output


def test_a_server_shared_with_celery(patient: Patient) -> None:
    other = patient.reservations_url.removesuffix("/0") + "/3"
    found = patient.problems("--broker-url", other)
    assert set(found) == {"celery broker"}
    assert set(patient.problems(DRAWBRIDGE_RESULT_BACKEND=other)) == {"result backend"}
    away = f"redis://127.0.0.1:{free_port()}/0"
    assert set(patient.problems(DRAWBRIDGE_BROKER_URL=away)) == {"celery broker"}
    by_hand = json.loads(patient.doctor("--json", "--result-backend", "sentinel://h").output)
    [said] = [one for one in by_hand["checks"] if one["check"] == "result backend"]
    assert said["status"] == "skipped"
    assert "run_id" in said["message"]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_rabbitmqs_confirms_are_asked_of_the_orchestrators_app(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"amqp://me:s3cret@127.0.0.1:{free_port()}//"
    (tmp_path / "shop.py").write_text(
        "from celery import Celery\n"
        f"hasty = Celery('hasty', broker={away!r})\n"
        f"careful = Celery('careful', broker={away!r})\n"
        "careful.conf.broker_transport_options = {'confirm_publish': True}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def said(*words: str) -> dict[str, dict[str, str]]:
        result = patient.doctor("--json", *words)
        assert "s3cret" not in result.output
        return {one["check"]: one for one in json.loads(result.output)["checks"]}

    assert said("-A", "shop:careful")["confirms"]["status"] == "ok"
    hasty = said("-A", "shop:hasty")["confirms"]
    assert hasty["status"] == "problem"
    assert "confirm_publish" in hasty["wayOut"]
    # nobody knows who sends
    unknown = said("--broker-url", away)
    assert unknown["confirms"]["status"] == "notice"
    assert "-A" in unknown["confirms"]["wayOut"]
    assert unknown["ordinary workers"]["status"] == "problem"
    result = patient.doctor("-A", "shop:nobody")
    assert (result.exit_code, "cannot be imported" in result.output) == (1, True)


def test_a_user_that_may_not_ask_is_told_so(patient: Patient) -> None:
    patient.client.acl_setuser(
        "edge", enabled=True, passwords=["+pw"], keys=["{db:*"], channels=["{db:*"],
        categories=["+@all", "-@dangerous"],
    )  # fmt: skip
    try:
        url = patient.reservations_url.replace("://", "://edge:pw@")
        result = patient.doctor("--json", DRAWBRIDGE_RESERVATIONS_URL=url)
    finally:
        patient.client.acl_deluser("edge")
    said = {one["check"]: one["status"] for one in json.loads(result.output)["checks"]}
    assert (said["reservations"], said["eviction"]) == ("ok", "skipped")


def test_no_bridge(patient: Patient) -> None:
    patient.client.delete(owner("fleet"))
    assert set(patient.problems()) == {"bridge"}


def test_no_beat_is_no_problem(patient: Patient) -> None:
    patient.client.delete(BEAT)
    said = patient.doctor()
    assert said.exit_code == 0
    assert [line.split()[:2] for line in said.output.splitlines() if "NOTE" in line] == [
        ["NOTE", "beat"]
    ]


def test_a_nudge_of_beat_is_noted(patient: Patient, tmp_path: Path) -> None:
    patient.client.delete(BEAT)
    told = BridgeSettings(broker_url="memory://", result_backend="cache+memory://")
    stores = StoreSettings(
        database_url=patient.database_url,
        reservations_url=patient.reservations_url,
        artifacts_dir=tmp_path / "artifacts",
    )
    settings = Settings(bridge=told, stores=stores, queue=QueueSettings())
    bridge = Bridge(make_app(told), settings)
    try:
        bridge.work("release_due_retries")
        assert patient.client.get(BEAT) is None
        bridge.nudged("release_due_retries")
        assert 0 < patient.client.pttl(BEAT) <= BEAT_MS
    finally:
        bridge.reservations.close()
        bridge.ledger.close()


def test_maintenance_that_stopped(patient: Patient) -> None:
    long_ago = to_ms(datetime.now(UTC)) - 90_000
    patient.queue.reservations.set_mark("remote", long_ago)
    found = patient.problems()
    assert set(found) == {"maintenance"}
    assert "drawbridge bridge" in found["maintenance"]
    patient.client.delete(QueueKeys("remote").pointer)
    assert "lost" in patient.problems()["maintenance"]


def test_work_that_no_worker_may_take(patient: Patient) -> None:
    def says() -> str:
        checks = json.loads(patient.doctor("--json").output)["checks"]
        (one,) = [one for one in checks if one["check"] == "waiting"]
        assert one["status"] == ("ok" if one["wayOut"] is None else "notice")
        return str(one["message"])

    assert says().startswith("What waits longer than a minute has a worker")
    long_ago = datetime.now(UTC) - timedelta(minutes=7)
    with patient.queue.ledger.write() as conn:
        conn.execute(sa.update(jobs).values(created_at=long_ago))
    assert "type 'echo' on queue 'remote', since 7 min: no worker was seen" in says()
    patient.queue.seen("w1")
    assert "1 live, kept out by credential" in says()
    Credentials(patient.queue.ledger).create("worker", worker_id="w1", now=datetime.now(UTC))
    assert says().startswith("What waits longer than a minute has a worker")


def test_a_lease_that_nobody_ends(patient: Patient) -> None:
    [job] = claim(patient.queue)
    assert patient.problems() == {}
    generation = patient.queue.reservations.generation("remote")
    assert generation is not None
    late = to_ms(datetime.now(UTC)) - 60_000
    patient.client.zadd(QueueKeys("remote", generation).prefix + "reserved", {job.id: late})
    assert set(patient.problems()) == {"expiry"}


def test_what_celery_is_not_told(patient: Patient) -> None:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    with patient.queue.ledger.write() as conn:
        conn.execute(outbox.update().values(created_at=long_ago))
    found = patient.problems()
    assert set(found) == {"outbox"}
    assert "5 min" in found["outbox"]
    with patient.queue.ledger.write() as conn:
        seq = conn.scalar(sa.select(sa.func.min(outbox.c.seq)))
        conn.execute(outbox.update().values(done_at=long_ago))
        conn.execute(
            outbox.update()
            .where(outbox.c.seq == seq)
            .values(done_at=None, parked_at=long_ago, last_error="EncodeError: no")
        )
    found = patient.problems()
    assert set(found) == {"parked"}
    assert "EncodeError: no" in found["parked"]


def test_tokens_without_bounds_are_listed(patient: Patient) -> None:
    now = datetime.now(UTC)
    made = Credentials(patient.queue.ledger)
    made.create("operator", now=now)
    bound = Policy(types=("codex_exec",), repositories=("Org/*",))
    made.create("worker", worker_id="bound", policy=bound, now=now)
    free, _ = made.create("worker", worker_id="free", now=now)
    made.create("worker", worker_id="half", policy=Policy(types=("codex_exec",)), now=now)
    gone, _ = made.create("worker", worker_id="gone", now=now)
    made.revoke(gone.id, now=now)
    result = patient.doctor("--json")
    assert result.exit_code == 0
    [said] = [one for one in json.loads(result.output)["checks"] if one["check"] == "credentials"]
    assert said["status"] == "notice"
    assert said["message"].startswith("2 of 3 ")
    assert f"free ({free.id}: any type, any repository)" in said["message"]
    assert "half" in said["message"]
    assert "bound" not in said["message"]
    assert "gone" not in said["message"]


@pytest.mark.parametrize(
    "said,level", [("6.2.14", Level.PROBLEM), ("7.0.0", Level.OK), ("8", Level.OK)]
)
def test_a_server_of_old_is_refused(said: str, level: Level) -> None:
    assert _version({"redis_version": said}).level is level


@pytest.mark.parametrize("apart_s,level", [(0.0, Level.OK), (-1.5, Level.OK), (5, Level.PROBLEM)])
def test_clocks_may_be_a_little_apart(apart_s: float, level: Level) -> None:
    now = datetime.now(UTC).timestamp()
    assert offset("clock", now + apart_s, now).level is level


def test_names_of_servers_hold_no_secret() -> None:
    assert place("redis://u:p@h:6379/1?x=y") == "redis://h:6379/1"
    assert place("amqps://u:p@h/v") == "amqps://h/v"
    assert (age(1.25), age(3600)) == ("1.2 s", "60 min")
