"""Writes ``openapi.json`` from the code: ``python -m edge_api.openapi``; ``--check`` compares."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any, Final

import click

from edge_api import assemble
from edge_api.description import complete
from edge_api.ops import DESCRIPTION

FILE: Final = DESCRIPTION


def document() -> dict[str, Any]:
    """Describe the edge as its code is now."""
    app = assemble()
    spec: dict[str, Any] = app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict()
    complete(spec)
    return spec


def text() -> str:
    """Return the description as the file holds it."""
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 unless the file is up to date.")
def main(*, check: bool) -> None:
    """Write edge_api/openapi.json from the code."""
    new = text()
    old = FILE.read_text() if FILE.exists() else ""
    if new == old:
        return
    if not check:
        FILE.write_text(new)
        return
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), "file", "code", lineterm="")
    click.echo("\n".join(diff), err=True)
    click.echo("edge_api/openapi.json is out of date; run: make openapi", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
