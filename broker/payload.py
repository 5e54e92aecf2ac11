"""What a Celery message says: which job it asks for, or why it can not become one; pure.

Payload rules are decision 12, priority and ids 11 and 19, times 14. The broker is no friend: every
field is looked at before it is believed, and whatever does not fit becomes a ``Rejection``.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Final

from broker.records import Json, NewJob, Rejection
from broker.strict_json import Unfit, loads

#: a payload handed to a worker
PAYLOAD_MAX: Final = 1024 * 1024
#: a whole message body, with its links and chains
BODY_MAX: Final = 16 * 1024 * 1024
NAME_MAX: Final = 255
INT32_MAX: Final = 2**31 - 1
ATTEMPTS_MAX: Final = 100
#: what a rejection keeps of a body nobody could read
KEEP_MAX: Final = 64 * 1024
#: ids of messages that bring none of their own
NAMESPACE: Final = uuid.UUID("6f0c1b1e-5b0d-5c58-9f6f-8e1b7a0f2f11")
#: reserved key of a payload that holds positional arguments
ARGS: Final = "args"
#: the message header by which a producer speaks to us
HEADER: Final = "drawbridge"
#: fields that protocol 1 keeps in the body and protocol 2 in the headers
_V1_FIELDS: Final = (
    "lang", "task", "id", "root_id", "parent_id", "group", "meth", "shadow", "eta", "expires",
    "retries", "timelimit", "argsrepr", "kwargsrepr", "origin",
)  # fmt: skip
_ENCODINGS: Final = frozenset({"utf-8", "utf8", "ascii", "us-ascii"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as the transport gave it: body decoded and inflated, nothing else believed."""

    queue: str
    body: bytes | str
    content_type: str | None = "application/json"
    content_encoding: str | None = "utf-8"
    headers: Mapping[str, Json] = field(default_factory=dict)
    properties: Mapping[str, Json] = field(default_factory=dict)
    delivery_info: Mapping[str, Json] = field(default_factory=dict)
    #: in the ledger's sense, higher first
    priority: int = 0
    #: of times without an offset
    timezone: tzinfo = UTC


def derived_id(*parts: bytes | str) -> str:
    """Name a message that has no usable id by what it holds, so that a repeat has the same name."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(raw + b"\0")
    return str(uuid.uuid5(NAMESPACE, digest.hexdigest()))


def usable_name(value: object) -> bool:
    """Tell whether a task id or name can be kept, shown and sent back as it is."""
    return isinstance(value, str) and 0 < len(value) <= NAME_MAX and value.isprintable()


def read(message: Message) -> NewJob | Rejection:
    """Return the job a message asks for, or why it can not become one; never raises."""
    headers: Mapping[str, Json] = message.headers
    try:
        body = _body_of(message)
        headers, args, kwargs, embed = _protocol2(message.headers, body)
        return _job(message, headers, args, kwargs, embed)
    except Unfit as unfit:
        return reject(message, headers, str(unfit))


def reject(message: Message, headers: Mapping[str, Json], reason: str) -> Rejection:
    """Make a rejection under the message's own id when that is usable."""
    task_id = headers.get("id")
    if not usable_name(task_id):
        task_id = derived_id(message.queue, repr(sorted(headers.items(), key=repr)), message.body)
    kind = headers.get("task")
    return Rejection(
        task_id=str(task_id),
        queue=message.queue,
        type=str(kind) if usable_name(kind) else "unknown",
        reason=reason,
        envelope=_envelope(message, headers, [], {}, _embed_or_none(message)),
    )


def _embed_or_none(message: Message) -> dict[str, Json]:
    """Keep what hangs on a refused task: its chord must not wait for ever."""
    try:
        _, _, _, embed = _protocol2(message.headers, _body_of(message))
    except Unfit:
        return {}
    return embed


def _body_of(message: Message) -> Json:
    if message.content_type != "application/json":
        raise Unfit(f"content type {str(message.content_type)[:64]!r} is refused: not JSON")
    if str(message.content_encoding or "utf-8").lower() not in _ENCODINGS:
        raise Unfit(f"content encoding {str(message.content_encoding)[:64]!r} is refused")
    if len(message.body) > BODY_MAX:
        raise Unfit(f"too_large: the body is longer than {BODY_MAX} bytes")
    return loads(message.body)


def _protocol2(
    headers: Mapping[str, Json], body: Json
) -> tuple[Mapping[str, Json], list[Json], dict[str, Json], dict[str, Json]]:
    """Return headers, args, kwargs and embed, whichever protocol the message came by."""
    if isinstance(body, dict):
        found = {name: body.get(name) for name in _V1_FIELDS}
        found["group"] = body.get("taskset", found["group"])
        args, kwargs = body.get("args", []), body.get("kwargs", {})
        embed = {name: body.get(name) for name in ("callbacks", "errbacks", "chord")}
        headers = {**found, **headers}
    elif isinstance(body, list) and len(body) == 3:  # noqa: PLR2004
        args, kwargs, embed = body
    else:
        raise Unfit("the body is neither protocol 2 nor 1")
    if not isinstance(args, list):
        raise Unfit("the positional arguments are not a list")
    if not isinstance(kwargs, dict):
        raise Unfit("the keyword arguments are not an object")
    return headers, args, kwargs, _checked_embed(embed)


def _checked_embed(embed: Json) -> dict[str, Json]:
    if embed is None:
        return {}
    if not isinstance(embed, dict):
        raise Unfit("the embed is not an object")
    for name in ("callbacks", "errbacks", "chain"):
        signatures = embed.get(name)
        if signatures is not None and not (
            isinstance(signatures, list) and all(map(_is_signature, signatures))
        ):
            raise Unfit(f"{name} is not a list of signatures")
    if embed.get("chord") not in (None, {}) and not _is_signature(embed["chord"]):
        raise Unfit("chord is not a signature")
    return embed


def _is_signature(value: Json) -> bool:
    """Tell whether Celery could send it; what it cannot is known before the work, not after."""
    return (
        isinstance(value, dict)
        and usable_name(value.get("task"))
        and isinstance(value.get("args", []), list)
        and all(isinstance(value.get(name, {}), dict) for name in ("kwargs", "options"))
    )


def _job(
    message: Message,
    headers: Mapping[str, Json],
    args: list[Json],
    kwargs: dict[str, Json],
    embed: dict[str, Json],
) -> NewJob:
    for name in ("id", "task"):
        if not usable_name(headers.get(name)):
            raise Unfit(f"the task's {name} is missing, too long or not printable")
    if len(message.body) > PAYLOAD_MAX and len(json.dumps([args, kwargs])) > PAYLOAD_MAX:
        raise Unfit(f"too_large: the arguments are longer than {PAYLOAD_MAX} bytes")
    wishes = _wishes(headers.get(HEADER))
    return NewJob(
        task_id=headers["id"],
        queue=message.queue,
        type=headers["task"],
        payload=_payload(args, kwargs),
        priority=max(-INT32_MAX, min(message.priority, INT32_MAX)),
        not_before=_moment("eta", headers.get("eta"), message.timezone),
        expires_at=_moment("expires", headers.get("expires"), message.timezone),
        retries=_count("retries", headers.get("retries")),
        nesting=_count("replaced_task_nesting", headers.get("replaced_task_nesting")),
        envelope=_envelope(message, headers, args, kwargs, embed),
        **_time_limits(headers.get("timelimit")),
        **wishes,
    )


def _payload(args: list[Json], kwargs: dict[str, Json]) -> dict[str, Json]:
    if not args:
        return kwargs
    if len(args) == 1 and isinstance(args[0], dict) and not kwargs:
        return args[0]
    if ARGS in kwargs:
        raise Unfit(f"positional arguments and a keyword argument named {ARGS!r} clash")
    return {**kwargs, ARGS: args}


def _wishes(header: Json) -> dict[str, Json]:
    """Read the producer's ``drawbridge`` header, spelt either way; unknown wishes are ignored."""
    if header is None:
        return {}
    if not isinstance(header, dict):
        raise Unfit(f"the {HEADER} header is not an object")
    wishes: dict[str, Json] = {}
    attempts = header.get("maxAttempts", header.get("max_attempts"))
    if attempts is not None:
        if type(attempts) is not int or not 1 <= attempts <= ATTEMPTS_MAX:
            raise Unfit(f"{HEADER}.maxAttempts is not an integer from 1 to {ATTEMPTS_MAX}")
        wishes["max_attempts"] = attempts
    capabilities = header.get("requiredCapabilities", header.get("required_capabilities"))
    if capabilities is not None:
        if not isinstance(capabilities, list) or not all(map(usable_name, capabilities)):
            raise Unfit(f"{HEADER}.requiredCapabilities is not a list of names")
        wishes["required_capabilities"] = tuple(capabilities)
    affinity = header.get("affinityKey", header.get("affinity_key"))
    if affinity is not None:
        if not usable_name(affinity):
            raise Unfit(f"{HEADER}.affinityKey is not a name")
        wishes["affinity_key"] = affinity
    return wishes


def _moment(name: str, value: Json, timezone: tzinfo) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone)
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise Unfit(f"{name} is not a time: {str(value)[:64]!r}") from None


def _time_limits(header: Json) -> dict[str, Json]:
    """Read ``[time_limit, soft_time_limit]``; what is falsy is no limit, as for Celery."""
    limits = [None, None] if header is None else header
    if not isinstance(limits, list) or len(limits) != 2:  # noqa: PLR2004
        raise Unfit("timelimit is not a pair of limits")
    for limit in limits:
        if limit and not (type(limit) in (int, float) and 0 < limit <= INT32_MAX):
            raise Unfit(f"a time limit is no number of seconds: {str(limit)[:64]!r}")
    return {"time_limit_s": limits[0] or None, "soft_time_limit_s": limits[1] or None}


def _count(name: str, value: Json) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= INT32_MAX:
        raise Unfit(f"{name} is not a count: {str(value)[:64]!r}")
    return value


def _envelope(
    message: Message,
    headers: Mapping[str, Json],
    args: list[Json],
    kwargs: dict[str, Json],
    embed: dict[str, Json],
) -> dict[str, Json]:
    body = message.body
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    known = bool(args or kwargs or embed) or len(text) <= KEEP_MAX
    return {
        "headers": dict(headers),
        "properties": dict(message.properties),
        "args": args,
        "kwargs": kwargs,
        "embed": embed,
        "delivery_info": dict(message.delivery_info),
        "content_type": message.content_type,
        "body": text if known else text[:KEEP_MAX],
    }
