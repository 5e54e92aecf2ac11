"""An S3-compatible server for tests, as a process of its own, and buckets on it."""

import sys
from typing import Any

import boto3
import requests

from tests.services import Server

#: what must never be seen in a log
SECRET = "not-for-any-log-0123456789"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST", "AWS_SECRET_ACCESS_KEY": SECRET}


class S3(Server):
    """Moto's server."""

    name = "s3"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def argv(self) -> list[str]:
        """Return its command line."""
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def answers(self) -> bool:
        """Tell whether it answers, and as S3 does."""
        try:
            return b"ListAllMyBucketsResult" in requests.get(self.url, timeout=10).content
        except requests.ConnectionError:
            return False

    def client(self) -> Any:
        """Return a client of its own, which signs as anybody."""
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="y",
        )  # fmt: skip
