"""An issuer's keys over TLS, from a real server: only from whom its certificate names."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_api.jwks import IssuerUnavailable, Keys, fetch_keys
from tests.attacks.issuer import Issuer, make

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ServeTls = Callable[..., Issuer]


class Authority:
    """One that signs certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        made = self._builder(self.name, self.key, until=NOW + DAY)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.file = folder / "ca.pem"
        signed = made.sign(self.key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def server(self, host: str, *, until: datetime) -> ssl.SSLContext:
        """Return what a server of that name speaks TLS with."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        made = self._builder(subject, key, until=until)
        named = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = made.add_extension(named, critical=False).sign(self.key, hashes.SHA256())
        file = self.folder / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, until: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 9 * DAY)
            .not_valid_after(until)
        )


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> ServeTls:
    """Start an issuer that speaks TLS; its authority's certificate is ``ca.pem``."""
    authority = Authority(tmp_path)

    def start(host: str = "localhost", *, until: datetime = NOW + DAY) -> Issuer:
        issuer = Issuer(keys=[make("one", "EdDSA").jwk()])
        request.addfinalizer(issuer.stop)
        # whoever does not trust us hangs up
        issuer.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        context = authority.server(host, until=until)
        issuer.server.socket = context.wrap_socket(
            issuer.server.socket, server_side=True, do_handshake_on_connect=False
        )
        issuer.url = f"https://localhost:{issuer.server.server_address[1]}/keys"
        return issuer

    return start


def test_keys_of_whom_the_system_trusts(
    serve: ServeTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    issuer = serve()
    assert Keys(issuer.url).get("one", "EdDSA").key_id == "one"
    assert issuer.asked == 1


@pytest.mark.attack(31)
@pytest.mark.parametrize("wrong", ["authority", "host", "address", "expired"])
def test_keys_of_somebody_else(
    serve: ServeTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong != "authority":
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    issuer = serve(
        "elsewhere.example" if wrong == "host" else "localhost",
        until=NOW - DAY if wrong == "expired" else NOW + DAY,
    )
    url = issuer.url
    if wrong == "address":
        url = url.replace("localhost", "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        fetch_keys(url)
    with pytest.raises(IssuerUnavailable):
        Keys(url).get("one", "EdDSA")
    assert issuer.asked == 0
