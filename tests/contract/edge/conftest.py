"""An edge on real stores, and callers whose every answer is compared with openapi.json."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from broker.ledger.models import Base
from broker.policy import Policy
from broker.reservations.keys import RATES
from broker.settings import QueueSettings, StoreSettings
from edge_api import assemble
from edge_api.services import EXTENSION, Services
from edge_api.settings import EdgeSettings
from edge_api.smorest import PREFIX
from tests.contract.edge.served import Served, StartProcess, start_edge
from tests.contract.edge.wire import answer_schema, wrongs

#: columns and keys that a refused call may write: who was seen, and when
IDLE_COLUMNS = {("credentials", "last_used_at")}
IDLE_KEYS = {"{db:}:seen", "{db:}:online"}
#: a refusal is written down
IDLE_TABLES = {"audit", "audit_head"}


@dataclass
class Caller:
    """Somebody with a credential, or without."""

    app: Flask
    headers: Mapping[str, str] = field(default_factory=dict)
    worker_id: str | None = None

    def get(self, path: str, **more: Any) -> TestResponse:
        """Ask for something below the prefix."""
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> TestResponse:
        """Post JSON below the prefix."""
        if body is not None:
            more["json"] = body
        return self.call("POST", path, **more)

    def call(self, method: str, path: str, **more: Any) -> TestResponse:
        """Make a call and check the shape of its answer."""
        headers = {**self.headers, **more.pop("headers", {})}
        client: FlaskClient = self.app.test_client()
        response = client.open(PREFIX + path, method=method, headers=headers, **more)
        check(self.app, method, response)
        return response

    # -- what workers do -------------------------------------------------------------------

    def claim(self, **more: Any) -> TestResponse:
        """Claim as this worker."""
        return self.post("/jobs/claim", {"workerId": self.worker_id, "leaseSeconds": 60, **more})

    def job(self, **more: Any) -> dict[str, Any]:
        """Claim a job that must be there."""
        job: dict[str, Any] = self.claim(**more).json["job"]
        assert job is not None
        return job

    def say(self, job_id: str, what: str, **more: Any) -> TestResponse:
        """Post to one of a job's routes as this worker."""
        return self.post(f"/jobs/{job_id}/{what}", {"workerId": self.worker_id, **more})


def check(app: Flask, method: str, response: TestResponse) -> None:
    """Compare an answer with the contract: its headers, its shape, its errors."""
    assert response.headers["X-Request-Id"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Content-Security-Policy" in response.headers
    assert response.status_code != 500, response.text
    if response.status_code >= 400 and method != "HEAD":
        detail = response.json["detail"]
        assert set(detail) <= {"code", "message", "errors"}
        assert detail["code"]
        assert detail["message"]
        assert len(response.data) <= 2048
    assert (response.status_code == 401) == ("WWW-Authenticate" in response.headers)
    assert (response.status_code in {429, 503}) == ("Retry-After" in response.headers)
    rule = response.request.path and _rule(app, method, response.request.path)
    if rule is not None and response.mimetype == "application/json" and method != "HEAD":
        schema = answer_schema(rule, method, response.status_code)
        assert list(wrongs(response.json, schema)) == []


def _rule(app: Flask, method: str, path: str) -> str | None:
    try:
        rule, _ = app.url_map.bind("localhost").match(path, method, return_rule=True)
    except HTTPException:
        return None
    return str(rule)


@dataclass
class Edge:
    """The edge under test, its services, and those who call it."""

    app: Flask

    @property
    def services(self) -> Services:
        """What it is made of."""
        made: Services = self.app.extensions[EXTENSION]
        return made

    def user(self, kind: str = "operator") -> Caller:
        """Give a caller with an operator's or a producer's token."""
        _, text = self.services.credentials.create(kind, now=self.services.clock.now())
        return Caller(self.app, {"Authorization": f"Bearer {text}"})

    def worker(self, name: str = "w1", **policy: Any) -> Caller:
        """Give a caller with a worker's token."""
        _, text = self.services.credentials.create(
            "worker", worker_id=name, policy=Policy(**policy), now=self.services.clock.now()
        )
        return Caller(self.app, {"Authorization": f"Bearer {text}"}, worker_id=name)

    def stranger(self) -> Caller:
        """Give a caller without a credential."""
        return Caller(self.app)

    def state(self) -> object:
        """Return all that a call may change: every row, every key, every file."""
        with self.services.queue.ledger.read() as conn:
            rows = {
                table.name: sorted(map(str, conn.execute(sa.select(*_columns(table)))))
                for table in Base.metadata.sorted_tables
                if table.name not in IDLE_TABLES
            }
        client = self.services.queue.reservations.client
        keys = sorted(
            key for key in client.keys("*") if key not in IDLE_KEYS and not key.startswith(RATES)
        )
        folder = self.services.settings.stores.artifacts_dir
        files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
        return rows, [(key, _value(client, key)) for key in keys], files


def _columns(table: sa.Table) -> list[sa.Column[Any]]:
    return [column for column in table.c if (table.name, column.name) not in IDLE_COLUMNS]


def _value(client: Any, key: str) -> object:
    match client.type(key):
        case "string":
            return client.get(key)
        case "hash":
            return sorted(client.hgetall(key).items())
        case "zset":
            return client.zrange(key, 0, -1, withscores=True)
        case "set":
            return sorted(client.smembers(key))
        case other:
            raise AssertionError(f"{key} is a {other}")


@pytest.fixture(scope="session")
def spare_apps() -> list[Flask]:
    """Keep apps that were put together for an earlier test: most tests take less time than that."""
    return []


MakeEdge = Callable[..., Edge]


@pytest.fixture
def make_edge(valkey_url: str, tmp_path: Path, spare_apps: list[Flask]) -> Iterator[MakeEdge]:
    """Make edges that share one set of stores."""
    made: list[Edge] = []

    def make(database_url: str, **settings: Any) -> Edge:
        queue = QueueSettings(**settings.pop("queue", {}))
        stores = StoreSettings(
            database_url=database_url,
            reservations_url=valkey_url,
            artifacts_dir=tmp_path / "artifacts",
            artifacts_url=settings.pop("artifacts_url", None),
            sqlite_synchronous="NORMAL",
        )
        app = spare_apps.pop() if spare_apps else assemble()
        whole = EdgeSettings(stores=stores, queue=queue, **settings)
        app.extensions[EXTENSION] = Services.connect(whole)
        made.append(Edge(app))
        return made[-1]

    yield make
    for edge in made:
        edge.services.close()
        spare_apps.append(edge.app)


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Give the address of a migrated SQLite ledger."""
    shutil.copy(migrated_sqlite, tmp_path / "ledger.sqlite3")
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


@pytest.fixture
def environment(sqlite_url: str, valkey_url: str, tmp_path: Path) -> dict[str, str]:
    """Give the environment of an edge that is a process."""
    return {
        "DRAWBRIDGE_DATABASE_URL": sqlite_url,
        "DRAWBRIDGE_RESERVATIONS_URL": valkey_url,
        "DRAWBRIDGE_ARTIFACTS_DIR": str(tmp_path / "artifacts"),
        "DRAWBRIDGE_SQLITE_SYNCHRONOUS": "NORMAL",
    }


@pytest.fixture
def start_served(
    process: StartProcess, environment: dict[str, str]
) -> Iterator[Callable[..., Served]]:
    """Start edges as processes, each with the options given."""
    made: list[Served] = []

    def start(*options: str) -> Served:
        made.append(start_edge(process, environment, *options))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def served(start_served: Callable[..., Served]) -> Served:
    """Give a running edge with few threads."""
    return start_served("--threads", "60")


@pytest.fixture
def edge(request: pytest.FixtureRequest, make_edge: MakeEdge) -> Edge:
    """Give an edge, on SQLite unless the test asks for PostgreSQL too."""
    if getattr(request, "param", "sqlite") == "postgresql":
        url: str = request.getfixturevalue("postgres_ledger_url")
    else:
        url = request.getfixturevalue("sqlite_url")
    return make_edge(url)


@pytest.fixture
def user(edge: Edge) -> Caller:
    """Give an operator."""
    return edge.user()


@pytest.fixture
def worker(edge: Edge) -> Caller:
    """Give a worker that may run anything."""
    return edge.worker()
