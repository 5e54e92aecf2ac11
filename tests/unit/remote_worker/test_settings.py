"""What a daemon refuses to be started with, and the way out it names."""

from pathlib import Path

import pytest

from remote_worker.errors import Misconfigured
from remote_worker.settings import Settings, check_url, read_token


@pytest.mark.parametrize(
    "url",
    [
        "https://edge.example",
        "https://edge.example:8443/",
        "http://127.0.0.1:8080",
        "http://localhost:8080",
        "http://[::1]:80",
    ],
)
def test_good_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://edge.example",
        "http://10.0.0.1",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "ftp://edge.example",
        "edge.example",
        "https://",
        "https://user:pw@edge.example",
        "https://edge.example?token=x",
        "https://edge.example#x",
        "",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(Misconfigured, match="https"):
        check_url(url)


def test_what_is_secret_of_the_passed_variables(tmp_path: Path) -> None:
    settings = Settings(
        url="https://edge.example",
        token_file=tmp_path,
        worker_id="w",
        work_dir=tmp_path,
        pass_environment={
            "HTTPS_PROXY": "http://user:hidden@proxy.example:3128",
            "NO_PROXY": "localhost",
            "SSL_CERT_DIR": "/etc/ssl/certs",
            "OPENAI_API_KEY": "key",
        },
    )
    assert settings.passed_secrets() == ["hidden", "key"]
    assert "key" not in repr(settings)


def test_a_token_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o600)
    assert read_token(path) == "secret"
    path.chmod(0o400)
    assert read_token(path) == "secret"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_token_that_others_may_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(mode)
    with pytest.raises(Misconfigured, match="chmod 600") as error:
        read_token(path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"\n", b"two words", b"two\nlines", b"\xff\xfe"])
def test_a_file_that_holds_no_token(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(Misconfigured, match=r"no .*token"):
        read_token(path)


def test_a_file_that_is_not_there_and_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="tokens create"):
        read_token(tmp_path / "absent")
