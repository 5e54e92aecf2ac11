"""docker-compose.yml without containers: each of its command lines, against one another."""

import json
import os
import subprocess
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from celery import Celery

from tests.deployment import PATH, ROOT, SECRETS, Here, compose, program
from tests.processes import Process
from tests.services import Postgres, free_port, until

pytestmark = [
    pytest.mark.e2e, pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(300),
]  # fmt: skip
STANDIN = ROOT / "deploy" / "demo" / "standin_codex.py"
PORTS = ("postgres", "broker", "reservations", "edge", "nginx", "bridge_metrics", "edge_metrics")


@dataclass
class Deployed:
    """The services that run, and how to reach them."""

    here: Here
    ports: dict[str, int]
    processes: dict[str, Process]
    ca: str

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports['nginx']}"

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Ask nginx, as a stranger on the internet would."""
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, verify=self.ca, timeout=60, **more)

    def answers(self, path: str = "/healthz") -> bool:
        try:
            return self.call("GET", path).status_code == 200
        except requests.RequestException:
            return False


@pytest.fixture
def deployed(
    process: Callable[..., Process], postgres_server: Postgres, tmp_path: Path
) -> Deployed:
    """Run every service but Flower and the worker, in the order that the file gives them."""
    ports = {name: free_port() for name in PORTS}
    database = postgres_server.create_database()
    ports["postgres"] = postgres_server.port
    tls = tmp_path / "tls"
    script = ROOT / "deploy" / "nginx" / "try_tls.sh"
    program("openssl")
    subprocess.run([script, tls, "127.0.0.1"], check=True, env={"PATH": PATH})
    config = tmp_path / "nginx.conf"
    at = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    here = Here(
        tmp_path,
        {
            "@postgres:5432/drawbridge": f"@{at['postgres']}/{database.rpartition('/')[2]}",
            "broker:6379": at["broker"],
            "reservations:6379": at["reservations"],
            "edge:8080": at["edge"],
            "https://nginx:8443": f"https://{at['nginx']}",
            "listen 8443": f"listen {at['nginx']}",
            "/deploy/nginx/nginx.conf": str(config),
            "/deploy/": f"{ROOT}/deploy/",
            "/etc/drawbridge/tls": str(tls),
            "/etc/drawbridge/ca.pem": str(tls / "ca.pem"),
            "/run/secrets/worker_token": str(tmp_path / "worker.token"),
            "/var/lib/drawbridge": str(tmp_path / "data"),
            "/var/cache/nginx": str(tmp_path / "cache"),
            "/tmp/nginx.pid": str(tmp_path / "nginx.pid"),  # noqa: S108
            "/data": str(tmp_path / "broker"),
            "0.0.0.0": "127.0.0.1",  # noqa: S104
            "172.30.77.0/24": "127.0.0.1",
            "8080": str(ports["edge"]),
            "9101": str(ports["bridge_metrics"]),
            "9102": str(ports["edge_metrics"]),
        },
    )
    for folder in ("data", "cache", "broker"):
        (tmp_path / folder).mkdir()
    config.write_text(here.said((ROOT / "deploy" / "nginx" / "nginx.conf").read_text()))
    made = Deployed(here, ports, {}, str(tls / "ca.pem"))

    def start(service: str, *more: str, **environment: str) -> Process:
        argv = [*here.argv(service), *more]
        env = here.environment(service) | environment
        found = next(
            (str(p) for d in env["PATH"].split(os.pathsep) if (p := Path(d) / argv[0]).exists()),
            argv[0],
        )
        started = process([found, *argv[1:]], env=env, name=service, cwd=tmp_path)
        made.processes[service] = started
        return started

    start("broker", "--bind", "127.0.0.1", "--port", str(ports["broker"]))
    start("reservations", "--bind", "127.0.0.1", "--port", str(ports["reservations"]))
    assert start("migrate").wait(120) == 0
    name = database.rpartition("/")[2]
    place = {"PGHOST": "127.0.0.1", "PGPORT": str(ports["postgres"]), "PGDATABASE": name}
    assert start("grants", **place).wait(60) == 0, made.processes["grants"].output()
    for service in ("edge", "bridge", "beat"):
        start(service)
    # root's nginx would give its helpers to nobody, who may not enter a test's folder
    nginx = [program("nginx"), *here.argv("nginx")[1:]]
    nginx[-1] += " user root;" if os.geteuid() == 0 else ""
    checked = subprocess.run([*nginx[:3], "-t"], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    made.processes["nginx"] = process(nginx, name="nginx", cwd=tmp_path)
    edge = made.processes["edge"]
    edge.until(made.answers, 90, "the edge answers through nginx")
    until(lambda: "ready" in made.processes["bridge"].output(), 90, "the bridge is ready")
    return made


def token(deployed: Deployed, *words: str) -> str:
    env = os.environ | deployed.here.environment("bridge")
    argv = ["drawbridge", "tokens", "create", "--kind", *words]
    return subprocess.run(
        argv, check=True, capture_output=True, text=True, env=env, timeout=120
    ).stdout.strip()


def test_every_command_line_runs_and_a_task_goes_round(
    deployed: Deployed, process: Callable[..., Process], tmp_path: Path
) -> None:
    operator = {"Authorization": f"Bearer {token(deployed, 'operator')}"}
    file = Path(deployed.here.said("/run/secrets/worker_token"))
    file.touch(mode=0o600)
    file.write_text(token(deployed, "worker", "--worker-id", "worker-1"))
    worker = process(
        ["drawbridge-worker", *deployed.here.argv("worker")[1:]],
        env=deployed.here.environment("worker") | {"DRAWBRIDGE_CODEX": str(STANDIN)},
        name="worker",
    )

    def online() -> bool:
        items = deployed.call("GET", "/api/queue/workers", headers=operator).json()["items"]
        return [(one["workerId"], one["online"]) for one in items] == [("worker-1", True)]

    worker.until(online, 60, "the worker is online")
    broker = deployed.here.environment("bridge")
    with Celery(
        broker=broker["DRAWBRIDGE_BROKER_URL"], backend=broker["DRAWBRIDGE_RESULT_BACKEND"]
    ) as app:
        sent = app.send_task("no_such_type", queue="remote")
        with pytest.raises(Exception, match="no_such_type"):
            sent.get(timeout=60)
        sent.forget()
    job = deployed.call("GET", f"/api/queue/jobs/{sent.id}", headers=operator).json()
    assert (job["status"], job["claimedBy"]) == ("failed", "worker-1")

    # figures are inside, and not for those who come by nginx
    for name in ("bridge", "edge"):
        text = requests.get(
            f"http://127.0.0.1:{deployed.ports[f'{name}_metrics']}", timeout=30
        ).text
        assert 'drawbridge_transitions_total{queue="remote"' in text or name == "bridge"
        assert SECRETS["BROKER_PASSWORD"] not in text
    for path in ("/metrics", "/", "/api", "/nginx_status"):
        hidden = deployed.call("GET", path, headers=operator)
        assert (hidden.status_code, hidden.json()["detail"]["code"]) == (404, "not_found")

    # what nginx refuses by itself has the contract's body
    refused = deployed.call("POST", "/api/queue/jobs", data=b"x" * (3 << 20), headers=operator)
    assert (refused.status_code, refused.json()["detail"]["code"]) == (413, "too_large")
    assert deployed.call("GET", "/api/queue/jobs").status_code == 401
    assert refused.headers["Strict-Transport-Security"]

    deployed.processes["edge"].terminate(30)
    away = deployed.call("GET", "/healthz")
    assert (away.status_code, away.json()["detail"]["code"]) == (503, "unavailable")
    assert int(away.headers["Retry-After"]) > 0
    for one in ("bridge", "beat", "nginx"):
        assert deployed.processes[one].returncode is None, deployed.processes[one].tail()


def test_flower_asks_for_a_password(process: Callable[..., Process], tmp_path: Path) -> None:
    port, broker = free_port(), free_port()
    here = Here(
        tmp_path,
        {
            "broker:6379": f"127.0.0.1:{broker}",
            "5555": str(port),
            "0.0.0.0": "127.0.0.1",  # noqa: S104
            "/data": str(tmp_path),
        },
    )
    place = ("--bind", "127.0.0.1", "--port", str(broker))
    argv = here.argv("broker")
    env = here.environment("broker")
    process([str(tmp_path / "programs" / argv[0]), *argv[1:], *place], env=env, name="broker")
    url = here.environment("flower")["CELERY_BROKER_URL"]

    def up() -> bool:
        with redis.Redis.from_url(url) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

    until(up, 30, "the broker answers")
    assert urllib.parse.urlsplit(url).password == SECRETS["BROKER_PASSWORD"]
    flower = process(
        here.argv("flower"), env=os.environ | here.environment("flower"), name="flower"
    )

    def status(**more: Any) -> int | None:
        try:
            return requests.get(f"http://127.0.0.1:{port}/workers", timeout=10, **more).status_code
        except requests.RequestException:
            return None

    assert flower.until(status, 60, "Flower answers") == 401
    assert status(auth=("flower", SECRETS["FLOWER_PASSWORD"])) == 200


def test_strangers_and_workers_reach_no_store() -> None:
    services = compose()["services"]
    stores = {"postgres", "broker", "reservations"}
    reach = {name: set(service["networks"]) for name, service in services.items()}
    for name in ("nginx", "worker"):
        for store in stores:
            assert not reach[name] & reach[store]
    assert reach["worker"] == {"outer"}
    assert compose()["networks"]["inner"] == {"internal": True}
    assert {name for name in services if services[name].get("ports")} == {"nginx", "flower"}
    assert all(str(port).startswith("127.0.0.1:") for port in services["flower"]["ports"])


def test_each_service_holds_the_secrets_it_needs_and_no_more() -> None:
    held = {
        name: {which for which, value in SECRETS.items() if value in json.dumps(service)}
        for name, service in compose()["services"].items()
    }
    bucket = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert held == {
        "postgres": {"LEDGER_PASSWORD"},
        "broker": {"BROKER_PASSWORD"},
        "reservations": {"EDGE_REDIS_PASSWORD", "BRIDGE_REDIS_PASSWORD"},
        "migrate": {"LEDGER_PASSWORD"},
        "grants": {"LEDGER_PASSWORD", "EDGE_DB_PASSWORD"},
        "bridge": {"LEDGER_PASSWORD", "BRIDGE_REDIS_PASSWORD", "BROKER_PASSWORD"} | bucket,
        "beat": {"BROKER_PASSWORD"},
        "edge": {"EDGE_DB_PASSWORD", "EDGE_REDIS_PASSWORD"} | bucket,
        "nginx": set(),
        "flower": {"BROKER_PASSWORD", "FLOWER_PASSWORD"},
        "worker": set(),
    }
    told = {
        name
        for name, service in compose()["services"].items()
        if "DRAWBRIDGE_ARTIFACTS_URL" in service.get("environment", {})
    }
    assert told == {"bridge", "edge"}


def test_containers_are_hardened() -> None:
    for name, service in compose()["services"].items():
        if name == "postgres":
            continue  # its image starts as root and changes to its own user
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = dockerfile.split("\nFROM ")[3:]
    assert [stage.split()[2] for stage in stages] == ["edge", "bridge", "flower", "worker"]
    for stage in stages:
        assert "\nUSER 10001:10001\n" in stage
    asked = {
        service["build"]["target"]
        for service in compose()["services"].values()
        if "build" in service
    }
    assert asked == {"edge", "bridge", "flower", "worker"}


def test_the_example_names_every_variable() -> None:
    text = (ROOT / "deploy" / "compose.env.example").read_text()
    file = (ROOT / "docker-compose.yml").read_text()
    asked = {part.split("}")[0].split(":")[0] for part in file.split("${")[1:]}
    told = {line.split("=")[0] for line in text.splitlines() if "=" in line and line[0] != "#"}
    assert asked == told
