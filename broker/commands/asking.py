"""The only one to know how a command asks an edge: its options, and the client they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from broker.client import Client
from broker.client.calls import HERE
from broker.settings import EdgeAccess

F = TypeVar("F", bound=Callable[..., Any])


def edge_options(kinds: str) -> Callable[[F], F]:
    """Give a group of commands the options by which each of them finds its edge."""

    def declare(group: F) -> F:
        url = click.option(
            "--edge-url",
            expose_value=False,
            callback=_keep,
            help="The edge: https://host[:port] [DRAWBRIDGE_EDGE_URL].",
        )
        file = click.option(
            "--token-file",
            expose_value=False,
            callback=_keep,
            type=click.Path(dir_okay=False, path_type=Path),
            help=f"File with {kinds} token [DRAWBRIDGE_EDGE_TOKEN_FILE]; the token itself may"
            " stand in DRAWBRIDGE_EDGE_TOKEN.",
        )
        return url(file(group))

    return declare


def edge_client() -> Client:
    """Ask as told by flags and environment; only now, so that ``--help`` needs neither."""
    context = click.get_current_context()
    access = EdgeAccess.from_env(**context.obj)
    address = urlsplit(access.url)
    if address.scheme == "http" and address.hostname not in HERE:
        click.echo("Warning: over http:// the token goes in the clear; write https://", err=True)
    return context.with_resource(Client(access.url, access.token))


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    name = {"edge_url": "url", "token_file": "token_file"}[option.name or ""]
    context.ensure_object(dict)[name] = value
