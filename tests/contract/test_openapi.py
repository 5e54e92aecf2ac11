"""openapi.json is what the code says, and says what the contract does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_api import assemble, openapi
from tests.contract.edge.wire import FILE


def test_the_file_is_what_the_code_says() -> None:
    assert FILE.read_text() == openapi.text(), "run: make openapi"


def test_the_check_fails_when_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openapi, "FILE", tmp_path / "openapi.json")
    openapi.FILE.write_text("{}")
    stale = CliRunner().invoke(openapi.main, ["--check"])
    assert stale.exit_code == 1
    assert "make openapi" in stale.output
    assert CliRunner().invoke(openapi.main, []).exit_code == 0
    assert CliRunner().invoke(openapi.main, ["--check"]).exit_code == 0


def test_it_is_written_without_any_store() -> None:
    program = [sys.executable, "-m", "edge_api.openapi", "--check"]
    done = subprocess.run(program, check=False, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr


def test_every_route_is_described() -> None:
    document = json.loads(FILE.read_text())
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (method, rule.rule.replace("<string:", "{").replace(">", "}"))
        for rule in assemble().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert described == served


def test_every_operation_says_who_may_call_it_and_what_it_refuses() -> None:
    document = json.loads(FILE.read_text())
    schemes = document["components"]["securitySchemes"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            assert operation["summary"].endswith("."), (method, path)
            assert "default" not in operation["responses"]
            assert {"400", "503"} <= set(operation["responses"])
            named = [name for one in operation["security"] for name in one]
            assert set(named) <= set(schemes)
            assert bool(named) == (path not in {"/healthz", "/readyz"})
