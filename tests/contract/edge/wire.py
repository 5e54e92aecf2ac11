"""Whether an answer is what openapi.json says: the part of JSON Schema that the file uses."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID

FILE: Final = Path(__file__).parents[3] / "edge_api" / "openapi.json"
TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
#: says nothing about a value, or is checked below
KNOWN: Final = {
    "$ref", "additionalProperties", "anyOf", "default", "description", "enum", "format", "items",
    "oneOf", "properties", "readOnly", "required", "type",
}  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """Return openapi.json as it is committed."""
    made: dict[str, Any] = json.loads(FILE.read_text())
    return made


def answer_schema(rule: str, method: str, status: int) -> dict[str, Any]:
    """Return what the file promises of an answer."""
    path = re.sub(r"<string:(\w+)>", r"{\1}", rule)
    responses = document()["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, f"{status} of {method} {path} is not in openapi.json"
    response = _followed(responses[str(status)])
    (schema,) = response["content"].values()
    found: dict[str, Any] = schema["schema"]
    return found


def wrongs(value: Any, schema: dict[str, Any], at: str = "$") -> Iterator[str]:
    """Name what is wrong with a value."""
    schema = _followed(schema)
    assert set(schema) <= KNOWN, f"{at}: this checker does not know {set(schema) - KNOWN}"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            fits = [one for one in schema[several] if not list(wrongs(value, one, at))]
            if not fits or (several == "oneOf" and len(fits) > 1):
                yield f"{at}: fits {len(fits)} of {several}"
    types = schema.get("type", list(TYPES))
    types = [types] if isinstance(types, str) else types
    allowed = {kind for name in types for kind in TYPES[name]}
    if type(value) not in allowed:
        yield f"{at}: {type(value).__name__} is none of {types}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str):
        yield from _format(value, schema.get("format"), at)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from wrongs(inner, schema.get("items", {}), f"{at}[{number}]")
    if isinstance(value, dict):
        yield from _object(value, schema, at)


def _object(value: dict[str, Any], schema: dict[str, Any], at: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    yield from (
        f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value
    )
    for name, inner in value.items():
        if name in properties:
            yield from wrongs(inner, properties[name], f"{at}.{name}")
        elif properties:
            yield f"{at}: {name} is not in the file"


def _format(value: str, form: str | None, at: str) -> Iterator[str]:
    if form == "date-time":
        if not MOMENT.fullmatch(value):
            yield f"{at}: {value} is no moment in UTC"
            return
        datetime.fromisoformat(value)
    elif form == "uuid" and str(UUID(value)) != value:
        yield f"{at}: {value} is no UUID"


def _followed(schema: dict[str, Any]) -> dict[str, Any]:
    found: Any = schema
    while "$ref" in found:
        name = found["$ref"]
        found = document()
        for step in name.removeprefix("#/").split("/"):
            found = found[step]
    return dict(found)
