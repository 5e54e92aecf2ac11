"""A real issuer of JWTs on loopback: real keys, rotation, silence and junk, as a test likes."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "drawbridge"
HOUR_S: Final = 3600
_PUBLIC: Final = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


@dataclass
class Key:
    """A key pair with a name."""

    kid: str
    algorithm: str
    private: Any

    def jwk(self, **more: Any) -> dict[str, Any]:
        """Return the public half as issuers publish it."""
        public = _PUBLIC[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "use": "sig", "alg": self.algorithm, **more}


def make(kid: str, algorithm: str, bits: int = 2048) -> Key:
    """Generate a key."""
    match algorithm:
        case "RS256":
            return Key(kid, algorithm, rsa.generate_private_key(65537, bits))
        case "ES256":
            return Key(kid, algorithm, ec.generate_private_key(ec.SECP256R1()))
        case _:
            return Key(kid, algorithm, ed25519.Ed25519PrivateKey.generate())


def claims(**more: Any) -> dict[str, Any]:
    """Return the claims of a good token; a value of None leaves a claim out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ci", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**good, **more}.items() if value is not None}


def sign(key: Key, said: dict[str, Any] | None = None, **header: Any) -> str:
    """Sign claims, with headers beside or instead of the usual ones."""
    usual = {"kid": key.kid, "typ": "at+jwt"}
    algorithm = header.pop("alg", key.algorithm)
    return jwt.encode(said or claims(), key.private, algorithm, headers=usual | header)


@dataclass
class Issuer:
    """The server; what it answers is for the test to say."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    #: instead of the keys: a status, headers and a body
    junk: tuple[int, dict[str, str], bytes] | None = None
    asked: int = 0

    def __post_init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                keys = json.dumps({"keys": issuer.keys}).encode()
                status, headers, body = issuer.junk or (200, {}, keys)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"

    def stop(self) -> None:
        """Go away; may come twice."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()

    def config(self, path: Path, rules: str = "") -> Path:
        """Write the file by which an edge believes this issuer."""
        rules = (
            rules
            or """
[[issuer.rule]]
claims = { sub = "ci" }
kind = "worker"
worker_id = "w1"
types = ["t"]

[[issuer.rule]]
claims = { sub = "boss", groups = "ops" }
kind = "operator"

[[issuer.rule]]
claims = { sub = "shop" }
kind = "producer"
"""
        )
        path.write_text(
            f'[[issuer]]\nname = "test"\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
            f'jwks_url = "{self.url}"\ninsecure_loopback = true\n'
            f'algorithms = ["RS256", "ES256", "EdDSA"]\n{rules}'
        )
        return path
