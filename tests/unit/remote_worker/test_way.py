"""The way to the edge: whose certificates count, and which proxy is taken."""

import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner

from remote_worker.cli import main
from remote_worker.options import _proxy
from tests import tls
from tests.unit.remote_worker.edge import WORKER, FakeEdge


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Give a file with a key and a certificate that only itself vouches for."""
    return tls.certificate(tmp_path / "edge.pem")


@pytest.fixture
def https(edge: FakeEdge, certificate: Path) -> str:
    """Give the edge's address behind its own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = edge._server
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return edge.url.replace("http:", "https:")


def test_a_certificate_counts_when_the_owner_names_it(
    https: str, certificate: Path, token_file: Path, tmp_path: Path, job_types: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(job_types))
    words = [
        "check", "--url", https, "--token-file", str(token_file), "--worker-id", WORKER,
        "--work-dir", str(tmp_path / "work"), "--types", "echo",
    ]  # fmt: skip
    strange = CliRunner().invoke(main, words)
    assert strange.exit_code == 3
    assert "SSLError" in strange.output
    named = CliRunner().invoke(main, [*words, "--ca-file", str(certificate)])
    assert named.exit_code == 0, named.output
    by_custom = CliRunner().invoke(main, words, env={"SSL_CERT_FILE": str(certificate)})
    assert by_custom.exit_code == 0, by_custom.output
    missing = CliRunner().invoke(main, [*words, "--ca-file", "/no/such.pem"])
    assert missing.exit_code == 2


@pytest.mark.parametrize(
    "url,given,environment,wanted",
    [
        ("https://edge.test", None, {}, None),
        ("https://edge.test", None, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://edge.test", None, {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://edge.test", None, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "edge.test"}, None),
        ("https://edge.test", "http://q:2", {"HTTPS_PROXY": "http://p:1"}, "http://q:2"),
        ("http://127.0.0.1:1", None, {"HTTPS_PROXY": "http://p:1"}, None),
    ],
)
def test_the_proxy_is_the_owners_word_or_the_environments(
    monkeypatch: pytest.MonkeyPatch, url: str, given: str | None, environment: dict[str, str],
    wanted: str | None,
) -> None:  # fmt: skip
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _proxy({"url": url, "proxy": given}) == wanted
