"""Why a job waits, as its owner is told."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker import cli
from tests.contract.edge.conftest import Caller, Edge


def why(user: Caller, job_id: str) -> dict[str, str]:
    answer = user.get(f"/jobs/{job_id}/why")
    assert answer.status_code == 200
    return {one["workerId"]: one["rule"] for one in answer.json["workers"]}


def test_each_live_worker_is_named_with_the_rule(edge: Edge, user: Caller) -> None:
    payload = {"repository": "Org/Repo", "requiredCapabilities": ["gpu"]}
    job = user.post("/jobs", {"type": "codex_exec", "payload": payload}).json
    answer = user.get(f"/jobs/{job['id']}/why").json
    assert (answer["status"], [one["code"] for one in answer["reasons"]]) == (
        "queued",
        ["no_worker"],
    )
    for name, policy in {
        "types": {"types": ("echo",)},
        "queues": {"queues": ("other",)},
        "repository": {"capabilities": ("gpu",), "repositories": ("other/*",)},
        "bare": {},
        "fits": {"capabilities": ("gpu",), "repositories": ("org/*",)},
    }.items():
        worker = edge.worker(name, **policy)
        body = {"workerId": name, "types": ["codex_exec"], "capabilities": ["cpu"]}
        assert worker.post("/workers/hello", body).status_code == 200
    edge.services.queue.seen("stranger")
    before = edge.state()
    assert why(user, job["id"]) == {
        "types": "allowedJobTypes", "queues": "queues", "repository": "allowedRepositories",
        "bare": "capabilities", "fits": "none", "stranger": "credential",
    }  # fmt: skip
    assert edge.state() == before
    user.post("/workers/fits/pause", {"queue": "remote"})
    assert why(user, job["id"])["fits"] == "paused"
    user.post("/workers/fits/unpause", {"queue": "remote"})
    assert why(user, job["id"])["fits"] == "none"
    assert user.post("/workers/fits/drain").status_code == 200
    assert why(user, job["id"])["fits"] == "drain"
    (token,) = [one for one in edge.services.credentials.list() if one.worker_id == "types"]
    edge.services.credentials.revoke(token.id, now=edge.services.clock.now())
    assert why(user, job["id"])["types"] == "credential"


def test_a_worker_without_a_free_place(edge: Edge, user: Caller) -> None:
    first, second = (user.post("/jobs", {"type": "t"}).json["id"] for _ in range(2))
    worker = edge.worker("w1", max_concurrency=1)
    assert worker.job()["id"] == first
    assert why(user, second) == {"w1": "maxConcurrency"}
    answer = user.get(f"/jobs/{first}/why").json
    assert [one["code"] for one in answer["reasons"]] == ["running"]
    worker.say(first, "fail", errorMessage="x", retryable=True, retryAfterSeconds=600)
    answer = user.get(f"/jobs/{first}/why").json
    assert [one["code"] for one in answer["reasons"]] == ["scheduled"]
    assert answer["nextAttemptAt"] is not None
    user.post(f"/jobs/{second}/cancel")
    answer = user.get(f"/jobs/{second}/why").json
    assert [one["code"] for one in answer["reasons"]] == ["ended"]
    assert answer["workers"] == []


@pytest.mark.parametrize("name", ["nope", "00000000-0000-4000-8000-000000000000", "..%2f"])
def test_what_is_no_job(user: Caller, name: str) -> None:
    answer = user.get(f"/jobs/{name}/why")
    assert answer.status_code == 404


def test_the_command_says_it_beforehand(edge: Edge, sqlite_url: str) -> None:
    edge.worker("w1", types=("echo",), repositories=("github.com/org/*",))

    def ask(*words: str) -> tuple[int, str]:
        env = {"DRAWBRIDGE_DATABASE_URL": sqlite_url}
        base = ["policy", "test", "--worker", "w1", "--json"]
        result = CliRunner(env=env).invoke(cli.drawbridge, [*base, *words])
        return result.exit_code, json.loads(result.stdout)["rule"] if result.stdout else ""

    assert ask("--type", "echo", "--repository", "Org/Repo") == (0, "none")
    assert ask("--type", "echo", "--repository", "Other/Repo") == (1, "allowedRepositories")
    assert ask("--type", "other") == (1, "allowedJobTypes")
    assert ask("--type", "echo") == (1, "allowedRepositories")
    assert ask("--type", "echo", "--repository", "Org/Repo", "--require", "gpu") == (
        1, "capabilities",
    )  # fmt: skip
    assert ask("--type", "echo", "--repository", "ext::sh -c x") == (1, "")
    assert ask("--type", "echo", "--worker", "nobody") == (1, "credential")


def test_the_command_knows_who_comes_with_a_jwt(
    edge: Edge, sqlite_url: str, tmp_path: Path
) -> None:
    config = tmp_path / "oidc.toml"
    config.write_text(
        '[[issuer]]\nname = "ci"\nissuer = "https://i"\naudience = "a"\n'
        'jwks_url = "https://i/keys"\nalgorithms = ["EdDSA"]\n'
        '[[issuer.rule]]\nclaims = { sub = "x" }\nkind = "worker"\nworker_id = "w1"\n'
        'types = ["built"]\n'
    )
    edge.worker("w1", types=("echo",))

    def ask(job_type: str, **more: str) -> tuple[int, str | None]:
        env = {"DRAWBRIDGE_DATABASE_URL": sqlite_url, **more}
        words = ["policy", "test", "--worker", "w1", "--type", job_type, "--json"]
        result = CliRunner(env=env).invoke(cli.drawbridge, words)
        return result.exit_code, json.loads(result.stdout)["tokenId"] if result.stdout else ""

    believed = {"DRAWBRIDGE_OIDC_CONFIG": str(config)}
    assert ask("built")[0] == 1
    assert ask("built", **believed) == (0, "ci")
    assert ask("echo", **believed)[0] == 0
    assert ask("other", **believed)[0] == 1
    config.write_text("[[issuer]]")
    assert ask("built", **believed) == (1, "")
