"""The edge on what deploy/ gives it: a Redis user and an SQL role that may little else."""

import hashlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from broker.clock import Clock
from broker.ledger.engine import Ledger
from broker.ledger.models import Base
from broker.policy import Policy
from broker.queue import JobQueue
from broker.records import ClaimRequest, Holder, NewJob
from broker.reservations.keys import SEEN, QueueKeys
from broker.reservations.server import Told
from broker.reservations.store import Reservations
from broker.settings import QueueSettings
from broker.upkeep import Upkeep
from tests.clusters import Cluster, Node
from tests.contract.edge.conftest import Edge, MakeEdge
from tests.contract.edge.test_auth import MAY, NOBODY
from tests.services import Valkey, postgres_binaries, valkey_binary

DEPLOY = Path(__file__).parents[3] / "deploy"
SECRET = "only-for-a-test"


def started(
    server: Valkey, *options: str, users: tuple[str, ...] = ("EDGE", "BRIDGE")
) -> list[str]:
    """Return the command line by which deploy/redis/start.sh starts a server."""
    place = ["--bind", "127.0.0.1", "--port", str(server.port), "--dir", str(server.folder)]
    passwords = [f"{who}_REDIS_PASSWORD={SECRET}" for who in users]
    env = ["env", f"REDIS_SERVER={valkey_binary()}", f"TMPDIR={server.folder}", *passwords]
    return [*env, str(DEPLOY / "redis" / "start.sh"), *place, *options]


class Guarded(Valkey):
    """A Valkey started by deploy/redis/start.sh."""

    name = "guarded"

    def argv(self) -> list[str]:
        return started(self)

    def client(self, user: str = "bridge") -> redis.Redis:
        return redis.Redis.from_url(self.as_user(user), decode_responses=True)

    def as_user(self, user: str) -> str:
        return f"redis://{user}:{SECRET}@127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    server = Guarded()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def as_edge(guarded: Guarded) -> Iterator[redis.Redis]:
    with guarded.client("edge") as client:
        yield client


@pytest.fixture
def valkey_url(guarded: Guarded) -> str:
    """Give edges of this module the reservations as their user sees them."""
    with guarded.client() as client:
        for key in client.scan_iter("*"):
            client.delete(key)
    return guarded.as_user("edge")


@pytest.fixture
def owner_url(postgres_ledger_url: str) -> str:
    """Give the ledger's address as its owner, once the edge's role is made."""
    plain = postgres_ledger_url.replace("+psycopg", "")
    psql = postgres_binaries() / "psql"
    for _ in range(2):  # the second changes nothing
        done = subprocess.run(
            [psql, plain, "-X", "-q", "-f", DEPLOY / "postgres" / "edge_role.sql"],
            check=False, capture_output=True, text=True,
            env=os.environ | {"EDGE_DB_PASSWORD": SECRET},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return plain


@pytest.fixture
def role_url(owner_url: str) -> str:
    return owner_url.replace("drawbridge@", f"drawbridge_edge:{SECRET}@")


@pytest.fixture
def narrow(make_edge: MakeEdge, role_url: str) -> Edge:
    return make_edge(role_url)


def test_the_edge_does_all_it_must(narrow: Edge) -> None:
    stores = narrow.services.settings.stores
    assert "drawbridge_edge:" in stores.database_url
    assert "//edge:" in stores.reservations_url
    operator, worker = narrow.user(), narrow.worker("w1")
    assert operator.get("/jobs").json["items"] == []
    assert narrow.app.test_client().get("/readyz").status_code == 200
    assert worker.post("/workers/hello", {"workerId": "w1"}).status_code == 200
    for _ in range(5):
        assert operator.post("/jobs", {"type": "t", "maxAttempts": 1}).status_code == 201
    jobs = worker.claim(maxJobs=5, waitSeconds=1).json["jobs"]
    assert len(jobs) == 5
    say = worker.say
    done, failed, back, cancelled, kept = (job["id"] for job in jobs)
    assert say(done, "heartbeat", leaseSeconds=60).status_code == 200
    assert say(done, "events", message="hello").status_code == 201
    form = {"workerId": "w1", "name": "a.txt", "file": (io.BytesIO(b"bytes"), "a.txt")}
    upload = worker.call("POST", f"/jobs/{done}/artifacts/upload", data=form)
    assert upload.status_code == 201
    assert say(done, "complete", result={"n": 1}).status_code == 200
    assert say(failed, "fail", errorMessage="x", retryable=True).json["status"] == "dead_letter"
    assert say(back, "release").json["status"] == "queued"
    assert operator.post(f"/jobs/{cancelled}/cancel").status_code == 200
    assert say(cancelled, "cancel/ack").json["status"] == "cancelled"
    items = [{"jobId": kept, "leaseId": jobs[4]["leaseId"]}]
    both = worker.post("/jobs/complete", {"workerId": "w1", "items": items})
    assert both.status_code == 200, both.text
    assert operator.post("/dead-letters/redrive", {"ids": [failed]}).json["redriven"] == 1
    for path in ("", "/events", "/attempts", "/artifacts"):
        assert operator.get(f"/jobs/{done}{path}").status_code == 200
    with operator.get(f"/jobs/{done}/artifacts/{upload.json['id']}/download") as download:
        assert download.data == b"bytes"
    assert operator.get("/workers").json["items"][0]["workerId"] == "w1"
    token = operator.post("/workers/tokens", {"workerId": "w2"}).json["workerToken"]["id"]
    assert operator.post(f"/workers/tokens/{token}/revoke").json["isActive"] is False
    # an index that is lost is built anew by the edge that meets it
    client = narrow.services.queue.reservations.client
    client.delete("{db:remote}:gen")
    assert worker.claim().json["job"] is not None


def test_no_route_meets_a_closed_door(narrow: Edge) -> None:
    callers = {
        "operator": narrow.user(),
        "producer": narrow.user("producer"),
        "worker": narrow.worker(),
        "nobody": narrow.stranger(),
    }
    client = narrow.app.test_client()
    for (method, rule), kinds in MAY.items():
        path = re.sub(r"<string:\w+>", NOBODY, rule)
        for kind in kinds:
            answer = client.open(path, method=method, headers=callers[kind].headers)
            assert answer.status_code < 500, (method, rule, kind, answer.text)


def test_waiting_claims_hear_of_new_jobs(narrow: Edge, guarded: Guarded, valkey_url: str) -> None:
    reservations = Reservations.connect(valkey_url)
    wakes = reservations.wakes(timeout_s=0.2)
    assert next(wakes) is None  # subscribed
    narrow.user().post("/jobs", {"type": "t"})
    assert next(wake for wake in wakes if wake is not None)[0] == "remote"
    with guarded.client("bridge") as bridge:
        assert bridge.publish("{db:other}:wake", '{"queue": "other", "lane": "l", "n": 1}') == 1
    assert next(wake for wake in wakes if wake is not None) == ("other", "l", 1)
    wakes.close()
    reservations.close()


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("SHUTDOWN",),
        ("ACL", "LIST"), ("SCAN", "0"), ("MONITOR",), ("LATENCY", "RESET"),
        ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", "1"), ("REPLICAOF", "NO", "ONE"),
        ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"), ("EVAL", "return 1", "0"), ("INFO",),
        ("SAVE",), ("SWAPDB", "0", "1"), ("MIGRATE", "h", "1", "k", "0", "1"),
        ("LRANGE", "celery", "0", "-1"), ("LPUSH", "remote", "x"), ("LRANGE", "{db:x}", "0", "1"),
        ("GET", "celery-task-meta-x"), ("SET", "other", "x"), ("DEL", "remote"),
        ("PUBLISH", "celeryev/task", "x"), ("PSUBSCRIBE", "*"), ("SUBSCRIBE", "/0.celeryev/x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_redis_user_may_nothing_else(as_edge: redis.Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        as_edge.execute_command(*command)


def test_a_script_reaches_no_other_key(as_edge: redis.Redis) -> None:
    sha: Any = as_edge.script_load("return redis.call('LRANGE', 'celery', 0, -1)")
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)acl|permission"):
        as_edge.evalsha(sha, 0)


def test_nobody_comes_in_without_a_password(guarded: Guarded) -> None:
    for url in (guarded.url, guarded.url.replace("//", "//edge:wrong@")):
        with (
            redis.Redis.from_url(url) as client,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            client.get(SEEN)


def test_the_file_holds_no_password(guarded: Guarded) -> None:
    (acl,) = guarded.folder.glob("tmp.*")
    text = acl.read_text()
    assert SECRET not in text
    assert text.count(hashlib.sha256(SECRET.encode()).hexdigest()) == 2


def test_the_bridge_user_may_not_flush(guarded: Guarded) -> None:
    with guarded.client() as client:
        assert client.info("server")["run_id"]
        for command in (("FLUSHALL",), ("CONFIG", "SET", "maxmemory", "1"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


class GuardedNode(Node):
    """A node of a cluster that is started by it."""

    def argv(self) -> list[str]:
        return started(self, *self.cluster_options, users=("EDGE", "BRIDGE", "ADMIN"))

    @property
    def url(self) -> str:
        return f"redis://admin:{SECRET}@127.0.0.1:{self.port}/0"


def test_the_same_users_do_it_all_on_a_cluster(migrated_sqlite: Path, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'ledger.db')}")
    with Cluster(GuardedNode) as cluster:
        cluster.add_replica(cluster.masters[0])
        edge, bridge = (
            JobQueue(ledger, store, clock=Clock(store.clock_ms), settings=QueueSettings())
            for store in (
                Reservations.connect(cluster.url.replace("//", f"//{user}:{SECRET}@"))
                for user in ("edge", "bridge")
            )
        )
        job = edge.create(NewJob(task_id="t", queue="remote", type="t", created_by="me"))
        bridge.reservations.client.delete(QueueKeys("remote").pointer)
        assert Upkeep(bridge).reconcile()["rebuilt"] == 1
        store = edge.reservations
        [held] = edge.claim(ClaimRequest(worker_id="w", policy=Policy(), lease_seconds=60))
        assert held.id == job.id
        holder = Holder(worker_id="w", lease_id=held.lease_id)
        edge.heartbeat(job.id, holder, lease_seconds=60)
        assert store.progress("remote", {job.id: holder.lease_id or ""}) == {}
        edge.complete(job.id, holder, result=1)
        store.revoke("id")
        assert store.is_revoked("id")
        store.tell("w", Told(3, drain=True))
        assert store.mark_seen("w", 1) == Told(3, drain=True)
        assert list(store.last_seen(limit=9)) == ["w"]
        assert next(store.wakes(timeout_s=0.1)) is None
        for generation in (1, 2):
            bridge.reservations.sweep_generations("remote", generation)
        for mine in (edge, bridge):
            client: Any = mine.reservations.client
            for word in ("FLUSHALL", "CLUSTER RESET", "CLUSTER FAILOVER"):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*word.split(), target_nodes=client.get_primaries()[0])
            mine.reservations.close()
    ledger.close()


PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
FORBIDDEN = [
    "SELECT * FROM outbox",
    "SELECT * FROM audit",
    "UPDATE audit SET actor = 'x'",
    "DELETE FROM audit_head",
    "UPDATE outbox SET done_at = now()",
    "DELETE FROM jobs",
    "DELETE FROM events",
    "UPDATE events SET message = 'x'",
    "UPDATE artifacts SET digest = 'x'",
    "DELETE FROM credentials",
    "DELETE FROM bridge_state",
    "INSERT INTO bridge_state (id, job_seq, last_created_at) VALUES (2, 0, now())",
    "UPDATE alembic_version SET version_num = 'x'",
    "TRUNCATE jobs CASCADE",
    "DROP TABLE jobs",
    "ALTER TABLE jobs ADD COLUMN x text",
    "CREATE TABLE mine (x text)",
    "CREATE ROLE other",
    "ALTER ROLE drawbridge_edge SUPERUSER",
    "COPY jobs TO '/tmp/x'",
    "COPY jobs FROM PROGRAM 'id'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "SET ROLE drawbridge",
]


@pytest.fixture
def connection(role_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(role_url, autocommit=True) as connection:
        yield connection


def test_the_sql_role_may_nothing_else(connection: psycopg.Connection[Any]) -> None:
    assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    for statement in FORBIDDEN:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)  # type: ignore[call-overload]


def test_no_row_is_ever_removed_and_no_record_rewritten(
    connection: psycopg.Connection[Any],
) -> None:
    def may(table: str, what: str) -> bool:
        asked = "SELECT has_table_privilege('drawbridge_edge', %s, %s)"
        return connection.execute(asked, (table, what)).fetchone() == (True,)

    for table in Base.metadata.tables:
        allowed = {what for what in PRIVILEGES if may(table, what)}
        assert not allowed & {"DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"}, table
        if table in {"events", "artifacts", "outbox", "audit"}:
            assert "UPDATE" not in allowed, table
    assert not may("outbox", "SELECT")
    assert not may("audit", "SELECT")
    assert may("jobs", "UPDATE")


def test_every_table_is_thought_of() -> None:
    text = (DEPLOY / "postgres" / "edge_role.sql").read_text()
    forgotten = [
        name for name in Base.metadata.tables if name not in text.replace(",", " ").split()
    ]
    assert forgotten == [], "say in deploy/postgres/edge_role.sql what the edge may do with them"
