"""What messages mean: decisions 11-14 and 19, and that no message can hurt the ingest (I16)."""

import base64
import bz2
import json
import lzma
import pickle
import zlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.serialization import dumps
from kombu.transport.virtual import Channel

from broker import payload
from broker.bridge.decode import Builtin, Decoder
from broker.payload import BODY_MAX, Message
from broker.policy import canonical_repository
from broker.records import NewJob, Rejection
from broker.strict_json import DEPTH_MAX

QUEUE = "remote"
ID = "3fbb8d6a-51b1-4d5e-9f0f-0a9f6b1d3c11"
DECODER = Decoder(queue=QUEUE, builtins=frozenset({"celery.chord_unlock"}))
#: kombu's class without its connection: all that a message needs of it are the codecs
CHANNEL = Channel.__new__(Channel)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
objects = st.dictionaries(st.text(), json_values, max_size=5)


def sent(
    args: Any = (), kwargs: Any = None, *, task: str = "codex_exec", embed: Any = None, **outer: Any
) -> dict[str, Any]:
    """Return a message as kombu puts it into a Redis list."""
    headers = {"lang": "py", "task": task, "id": ID, **outer.pop("headers", {})}
    body = outer.pop("body", None)
    if body is None:
        body = json.dumps([list(args), kwargs or {}, embed or {}]).encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": ID, "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": QUEUE}, "delivery_tag": "t",
            **outer.pop("properties", {}),
        },
        **outer,
    }  # fmt: skip


def read(message: Any) -> NewJob | Rejection | Builtin:
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    return DECODER.redis(raw, CHANNEL)


def job_of(*args: Any, **kwargs: Any) -> NewJob:
    job = read(sent(*args, **kwargs))
    assert isinstance(job, NewJob), job
    return job


def reason_of(message: Any) -> str:
    rejection = read(message)
    assert isinstance(rejection, Rejection), rejection
    storable(rejection)
    return rejection.reason


def storable(item: NewJob | Rejection) -> None:
    """Check that both databases can keep it: JSON without NaN, text without NUL or surrogates."""
    json.dumps(item.envelope, allow_nan=False)
    if isinstance(item, NewJob):
        json.dumps(dict(item.payload), allow_nan=False)
        assert type(item.priority) is int
        assert abs(item.priority) < 2**31
    for text in (item.task_id, item.type, item.queue):
        assert 0 < len(text.encode()) <= 4 * 255
        assert "\0" not in text


# -- payload -----------------------------------------------------------------------------------


@given(kwargs=objects)
def test_keyword_arguments_are_the_payload(kwargs: dict[str, Any]):
    assert job_of(kwargs=kwargs).payload == kwargs


@given(only=objects)
def test_one_positional_object_is_the_payload(only: dict[str, Any]):
    assert job_of([only]).payload == only


@given(args=st.lists(json_values, min_size=1, max_size=3), kwargs=objects)
def test_other_positional_arguments_lie_under_args(args: list[Any], kwargs: dict[str, Any]):
    if len(args) == 1 and isinstance(args[0], dict) and not kwargs:
        return
    if "args" in kwargs:
        assert "clash" in reason_of(sent(args, kwargs))
        return
    assert job_of(args, kwargs).payload == {**kwargs, "args": args}


@given(args=st.lists(json_values, max_size=2), kwargs=objects, embed_link=st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_what_plain_celery_sends_is_read_whole(
    args: list[Any], kwargs: dict[str, Any], embed_link: bool
):
    app = Celery("o", broker="memory://", set_as_current=False)
    link = [dict(app.signature("local.next"))] if embed_link else None
    made = app.amqp.as_task_v2(ID, "codex_exec", tuple(args), kwargs, callbacks=link, retries=2)
    content_type, encoding, body = dumps(made.body, "json")
    job = read(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-type": content_type, "content-encoding": encoding, "headers": made.headers,
            "properties": {**made.properties, "body_encoding": "base64", "priority": 3},
        }
    )  # fmt: skip
    if (
        "args" in kwargs
        and args
        and not (len(args) == 1 and isinstance(args[0], dict) and not kwargs)
    ):
        assert isinstance(job, Rejection)
        return
    assert isinstance(job, NewJob)
    assert (job.task_id, job.type, job.queue, job.retries) == (ID, "codex_exec", QUEUE, 2)
    assert job.priority == -3  # kombu serves low numbers first on Redis, the ledger high ones
    assert job.envelope is not None
    assert job.envelope["args"] == args
    assert job.envelope["kwargs"] == kwargs
    assert bool(job.envelope["embed"]["callbacks"]) is embed_link
    storable(job)


def test_the_wishes_of_the_header():
    header = {"maxAttempts": 1, "requiredCapabilities": ["gpu"], "affinityKey": "k", "later": 1}
    job = job_of(headers={"drawbridge": header})
    assert (job.max_attempts, job.required_capabilities, job.affinity_key) == (1, ("gpu",), "k")
    snake = {"max_attempts": 5, "required_capabilities": [], "affinity_key": "k"}
    assert job_of(headers={"drawbridge": snake}).max_attempts == 5
    assert job_of().max_attempts == 3


@pytest.mark.parametrize(
    "header",
    [
        [], 1, {"maxAttempts": 0}, {"maxAttempts": 101}, {"maxAttempts": True},
        {"maxAttempts": "3"}, {"requiredCapabilities": "gpu"}, {"requiredCapabilities": [1]},
        {"affinityKey": ""}, {"affinityKey": {}},
    ],
)  # fmt: skip
def test_wishes_that_make_no_sense_are_rejected(header: Any):
    assert "drawbridge" in reason_of(sent(headers={"drawbridge": header}))


# -- times -------------------------------------------------------------------------------------


@given(moment=st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9998, 1, 1)))  # noqa: DTZ001
def test_eta_and_expires_are_moments_in_utc(moment: datetime):
    aware = moment.replace(tzinfo=timezone(timedelta(hours=2)))
    job = job_of(headers={"eta": aware.isoformat(), "expires": moment.isoformat()})
    assert job.not_before == aware
    assert job.expires_at == moment.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "value", ["soon", 12, [], "", "9999-12-31T23:59:59-12:00", True, "2026-13-01"]
)
@pytest.mark.parametrize("name", ["eta", "expires"])
def test_times_that_are_none_are_rejected(name: str, value: Any):
    assert name in reason_of(sent(headers={name: value}))


# -- protocol 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header,limits",
    [
        (None, (None, None)),
        ([None, None], (None, None)),
        ([60, 50.5], (60, 50.5)),
        ([None, 5], (None, 5)),
        ([0, 0], (None, None)),
    ],
)
def test_time_limits_are_the_messages(header: Any, limits: Any):
    job = read(sent(headers={"timelimit": header}))
    assert isinstance(job, NewJob)
    assert (job.time_limit_s, job.soft_time_limit_s) == limits


@pytest.mark.parametrize("header", [[1], 5, {"hard": 1}, [-1, None], [None, "5"], [True, 2**31]])
def test_time_limits_that_make_no_sense_are_rejected(header: Any):
    rejection = read(sent(headers={"timelimit": header}))
    assert isinstance(rejection, Rejection)
    assert "limit" in rejection.reason


def test_protocol_1_is_read():
    body = {
        "task": "codex_exec", "id": ID, "args": [], "kwargs": {"a": 1}, "retries": 4,
        "eta": "2030-01-01T00:00:00+00:00", "taskset": "g", "callbacks": [{"task": "x"}],
    }  # fmt: skip
    message = sent(body=json.dumps(body).encode())
    message["headers"] = {}
    job = read(message)
    assert isinstance(job, NewJob)
    assert (job.task_id, job.payload, job.retries) == (ID, {"a": 1}, 4)
    assert job.envelope is not None
    assert job.envelope["headers"]["group"] == "g"
    assert job.envelope["embed"]["callbacks"] == [{"task": "x"}]


# -- Celery's own ------------------------------------------------------------------------------


def test_celerys_own_tasks_are_known_and_left_as_they_are():
    assert read(sent(task="celery.chord_unlock")) == Builtin("celery.chord_unlock")
    # one that this app could not execute is a job like any other
    assert job_of(task="celery.unheard_of").type == "celery.unheard_of"


def test_celerys_own_tasks_inflate_to_a_bound_too():
    def compressed(body: bytes) -> dict[str, Any]:
        packed = zlib.compress(body)
        headers = {"compression": "application/x-gzip"}
        return sent(task="celery.chord_unlock", body=packed, headers=headers)

    assert read(compressed(b"[[],{},{}]")) == Builtin("celery.chord_unlock")
    bomb = b"[[" + b" " * 17 * 1024 * 1024 + b"],{},{}]"
    assert "too_large" in reason_of(compressed(bomb))
    assert "inflated" in reason_of(compressed(b"[[],{},{}]") | {"body": "AAAA"})


# -- poison ------------------------------------------------------------------------------------


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_answered(raw: bytes):
    item = read(raw)
    assert isinstance(item, Rejection)
    storable(item)
    assert item == read(raw)  # the same poison again is the same row


@given(
    headers=json_values, properties=json_values, body=st.none() | st.text() | json_values,
    content_type=json_values, encoding=json_values,
)  # fmt: skip
def test_any_json_is_answered(
    headers: Any, properties: Any, body: Any, content_type: Any, encoding: Any
):
    item = read(
        {
            "headers": headers, "properties": properties, "body": body,
            "content-type": content_type, "content-encoding": encoding,
        }
    )  # fmt: skip
    assert not isinstance(item, Builtin)
    storable(item)


@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["id", "task", "eta", "expires", "retries", "replaced_task_nesting", "drawbridge",
             "compression", "root_id", "group", "timelimit", "argsrepr"]
        ),
        json_values,
        min_size=1,
    ),
    priority=json_values,
)  # fmt: skip
def test_wrong_types_in_headers_are_answered(changes: dict[str, Any], priority: Any):
    item = read(sent(headers=changes, properties={"priority": priority}))
    assert not isinstance(item, Builtin)
    storable(item)


@given(embed=json_values)
def test_an_embed_is_a_canvas_or_a_rejection(embed: Any):
    item = read(sent(embed=embed))
    assert isinstance(item, NewJob | Rejection)
    storable(item)
    if isinstance(item, NewJob):
        assert item.envelope is not None
        assert isinstance(item.envelope["embed"], dict)


@pytest.mark.parametrize(
    "outer, why",
    [
        ({"content-type": "application/x-python-serialize"}, "content type"),
        ({"content-type": "application/x-yaml"}, "content type"),
        ({"content-type": None}, "content type"),
        ({"content-type": "application/data"}, "content type"),
        ({"content-encoding": "binary"}, "content encoding"),
        ({"content-encoding": "utf-16"}, "content encoding"),
        ({"body": b"{"}, "not JSON"),
        ({"body": b"[1, 2"}, "not JSON"),
        ({"body": b"\xff\xfe"}, "not JSON"),
        ({"body": b"[[], {}, NaN]"}, "not JSON"),
        ({"body": b'[[], {"a": 1e999}, {}]'}, "not JSON"),
        ({"body": b"[" * 100_000}, "not JSON"),
        ({"body": b"[" * 900 + b"]" * 900}, f"nested deeper than {DEPTH_MAX}"),
        ({"body": b'"text"'}, "neither protocol"),
        ({"body": b"[1, 2]"}, "neither protocol"),
        ({"body": b'["a", {}, {}]'}, "positional"),
        ({"body": b"[[], [], {}]"}, "keyword"),
        ({"body": b"[[], {}, []]"}, "embed"),
        ({"body": b'[[], {}, {"callbacks": {}}]'}, "callbacks"),
        ({"body": b'[[], {}, {"chain": ["x"]}]'}, "chain"),
        ({"body": b'[[], {}, {"chord": []}]'}, "chord"),
        ({"body": b'[[], {}, {"callbacks": [{}]}]'}, "callbacks"),
        ({"body": b'[[], {}, {"callbacks": [{"task": "t", "options": null}]}]'}, "callbacks"),
        ({"body": b'[[], {}, {"errbacks": [{"task": "t", "options": ["a"]}]}]'}, "errbacks"),
        ({"body": b'[[], {}, {"chain": [{"task": "t", "args": {}}]}]'}, "chain"),
        ({"body": b'[[], {}, {"chord": {"task": 5}}]'}, "chord"),
        ({"headers": {"id": None}}, "id"),
        ({"headers": {"id": "a\0b"}}, "id"),
        ({"headers": {"id": "\ud800"}}, "id"),
        ({"headers": {"id": "x" * 256}}, "id"),
        ({"headers": {"task": "x" * 256}}, "task"),
        ({"headers": {"task": 7}}, "task"),
        ({"headers": {"retries": -1}}, "retries"),
        ({"headers": {"retries": 2**40}}, "retries"),
        ({"headers": {"replaced_task_nesting": "1"}}, "replaced_task_nesting"),
        ({"properties": {"body_encoding": "rot13"}}, "not encoded"),
    ],
)
def test_poison_is_rejected_with_its_reason(outer: dict[str, Any], why: str):
    assert why in reason_of(sent(**outer))


def test_rejections_without_a_usable_id_are_told_apart_by_all_they_say():
    ids = [read(sent(headers={"id": 300 * "x" + one})).task_id for one in "aab"]
    assert ids[0] == ids[1] != ids[2]


def test_a_rejection_keeps_a_usable_id_and_what_hangs_on_it():
    chord = {"task": "local.sum", "options": {"task_id": "c"}}
    rejection = read(
        sent(headers={"eta": "soon"}, embed={"chord": chord, "errbacks": [{"task": "e"}]})
    )
    assert isinstance(rejection, Rejection)
    assert (rejection.task_id, rejection.type) == (ID, "codex_exec")
    assert rejection.envelope is not None
    assert rejection.envelope["embed"]["chord"] == chord  # it must not wait for ever


def test_pickle_is_never_loaded():
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('loaded')",))

    body = pickle.dumps([[Bomb()], {}, {}])
    message = sent(body=body, **{"content-type": "application/x-python-serialize"})
    assert "content type" in reason_of(message)


@pytest.mark.parametrize(
    "name, squeeze",
    [("application/x-gzip", zlib.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)],
)
def test_compressed_bodies_are_inflated_but_no_further_than_the_limit(name: str, squeeze: Any):
    body = json.dumps([[], {"a": "b"}, {}]).encode()
    assert job_of(body=squeeze(body), headers={"compression": name}).payload == {"a": "b"}
    bomb = squeeze(b"[" + b" " * (BODY_MAX + 1) + b"]")
    assert len(bomb) < 100_000
    assert "too_large" in reason_of(sent(body=bomb, headers={"compression": name}))
    cut = squeeze(body)[:-4]
    assert read(sent(body=cut, headers={"compression": name})).reason  # type: ignore[union-attr]
    assert "inflated" in reason_of(sent(body=b"not compressed", headers={"compression": name}))


def test_compression_nobody_bounds_is_refused():
    assert "compression" in reason_of(sent(headers={"compression": "zstd"}))


def test_a_payload_over_a_mebibyte_is_rejected_and_its_row_stays_small():
    message = sent(kwargs={"a": "x" * (1024 * 1024 + 1)})
    rejection = read(message)
    assert isinstance(rejection, Rejection)
    assert "too_large" in rejection.reason
    assert job_of(kwargs={"a": "x" * (1024 * 1024 - 64)})


def test_ids_need_not_be_uuids():
    assert job_of(headers={"id": "order-7"}).task_id == "order-7"


def test_read_itself_never_raises_whatever_the_transport_gave():
    item = payload.read(Message(queue=QUEUE, body=b"\xff", headers={"id": ID, "task": "t"}))
    assert isinstance(item, Rejection)
    assert item.task_id == ID


def test_the_reader_of_repositories_agrees_on_what_a_job_may_name():
    assert canonical_repository(job_of(kwargs={"repository": "Org/Repo"}).payload["repository"])
