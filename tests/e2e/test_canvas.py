"""Every shape of a canvas, with remote workers in it: the same results as with ordinary ones."""

import json
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group
from celery.backends.redis import RedisBackend
from celery.canvas import Signature, StampingVisitor
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult
from kombu import pools

from tests.e2e import canvas_app
from tests.e2e.bridges import QUEUE, World
from tests.e2e.test_bridge_rabbitmq import RabbitWorld
from tests.processes import Process
from tests.rabbitmq import RabbitMQ
from tests.services import Valkey, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
GET_S = 90
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PLACES = {
    "local": ("local",),
    "remote": (QUEUE,),
    "mixed": ("local", QUEUE),
    "mixed the other way": (QUEUE, "local"),
}


class Crew:
    """Remote workers that run the orchestrator's functions for what they are given."""

    def __init__(self, world: World, app: Celery) -> None:
        self._world = world
        self._app = app
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(2)]

    def __enter__(self) -> Self:
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for one in self._threads:
            one.join()

    def _work(self, number: int) -> None:
        while not self._ended.is_set():
            job = self._world.claim_now(f"crew-{number}")
            if job is None:
                self._ended.wait(0.02)
                continue
            payload = dict(job.payload)
            args = payload.pop("args", [])
            try:
                value = self._app.tasks[job.type].run(*args, **payload)
            except Exception as error:  # noqa: BLE001  as a worker does
                kind = type(error)
                name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
                text = traceback.format_exc()
                self._world.fail(job, str(error), error_type=name, traceback=text)
            else:
                self._world.complete(job, value)


class Sender:
    """Makes signatures whose tasks go to the given queues in turn."""

    def __init__(self, app: Celery, queues: tuple[str, ...]) -> None:
        self.app = app
        self.queues = queues
        self._next = 0

    @property
    def queue(self) -> str:
        """The next queue in turn."""
        self._next += 1
        return self.queues[(self._next - 1) % len(self.queues)]

    def __call__(self, name: str, *args: Any, **options: Any) -> Signature:
        immutable = options.pop("immutable", False)
        return self.app.signature(
            f"canvas.{name}", args=args, queue=self.queue, immutable=immutable, **options
        )


Shape = Callable[[Sender], Any]


#: ids of tasks whose result nobody wants
IGNORED: set[str] = set()


def ignored(signature: Signature) -> Signature:
    IGNORED.add(signature.freeze().id)
    return signature


def stamped(t: Sender) -> Any:
    class Visitor(StampingVisitor):
        def on_signature(self, _sig: Signature, **_headers: Any) -> dict[str, Any]:
            return {"order": "o-7", "stamped_headers": ["order"]}

    whole = chain(t("add", 1, 1), t("add", 2), app=t.app)
    whole.stamp(Visitor())
    return whole


SHAPES: dict[str, Shape] = {
    "one": lambda t: t("add", 2, 3),
    "kwargs": lambda t: t.app.signature("canvas.add", args=(4,), queue=t.queue),
    "chain": lambda t: chain(t("add", 1, 1), t("add", 2), t("add", 3), app=t.app),
    "immutable": lambda t: chain(t("add", 1, 1), t("add", 5, 5, immutable=True), app=t.app),
    "group": lambda t: group([t("add", n, n) for n in range(3)], app=t.app),
    "group of one": lambda t: group([t("add", 1, 2)], app=t.app),
    "chord": lambda t: chord(group([t("add", n, n) for n in range(3)]), t("add"), app=t.app),
    "chain into group": lambda t: chain(
        t("add", 1, 2), group(t("add", 1), t("add", 2), app=t.app), app=t.app
    ),
    "chain through group": lambda t: chain(
        t("add", 1, 2), group(t("add", 1), t("add", 2)), t("add", 10), app=t.app
    ),
    "group of chains": lambda t: group(
        chain(t("add", 1, 1), t("add", 2)), chain(t("add", 3, 3), t("add", 4)), app=t.app
    ),
    "chord of chains": lambda t: chord(
        group(chain(t("add", 1, 1), t("add", 2)), chain(t("add", 3, 3), t("add", 4))),
        t("add"),
        app=t.app,
    ),
    "chord in a chain": lambda t: chain(
        t("add", 1, 0),
        chord(group(t("add", 1), t("add", 2)), t("add", 3)),
        t("add", 4),
        app=t.app,
    ),
    "chord of chords": lambda t: chord(
        group(
            chord(group(t("add", 1, 1), t("add", 2, 2)), t("add")),
            chord(group(t("add", 3, 3), t("add", 4, 4)), t("add")),
        ),
        t("add"),
        app=t.app,
    ),
    "ignored in a chain": lambda t: chain(
        ignored(t("nothing", 1)), t("add", 1, 2, immutable=True), app=t.app
    ),
    "stamped": stamped,
    "failing": lambda t: t("fail", 1, 2),
    "failing with a known class": lambda t: t("value_error"),
    "failing in a chain": lambda t: chain(
        t("add", 1, 1), t("fail", 2), t("add", 3), t("add", 4), app=t.app
    ),
    "failing in a group": lambda t: group(t("add", 1, 1), t("fail", 2), app=t.app),
    "failing in a chord": lambda t: chord(
        group(t("add", 1, 1), t("fail", 2), t("add", 3)), t("add"), app=t.app
    ),
    "failing body": lambda t: chord(group(t("add", 1, 1), t("add", 2)), t("fail"), app=t.app),
    "failing in a chord in a chain": lambda t: chain(
        t("add", 1, 0), chord(group(t("add", 1), t("fail", 2)), t("add")), t("add", 4), app=t.app
    ),
    "replaced": lambda t: chain(
        t.app.signature("canvas.hand_over", args=(1, t.queue), queue="local"),
        t("add", 5),
        app=t.app,
    ),
    "replaced in a chord": lambda t: chord(
        group(t.app.signature("canvas.hand_over", args=(1, t.queue), queue="local"), t("add", 1)),
        t("add"),
        app=t.app,
    ),
    "map": lambda t: t.app.tasks["canvas.add"].map([1, 2, 3]).set(queue=t.queue),
    "starmap": lambda t: t.app.tasks["canvas.add"].starmap([(1, 2), (3, 4)]).set(queue=t.queue),
    "chunks": lambda t: (
        t.app.tasks["canvas.add"].chunks([(n, n) for n in range(4)], 2).group().set(queue=t.queue)
    ),
    "starmap in a chain": lambda t: chain(
        t.app.tasks["canvas.add"].starmap([(1, 2), (3, 4)]).set(queue=t.queue),
        t("add", 1),
        app=t.app,
    ),
}


@dataclass
class Wiring:
    """A broker, a result backend, ordinary and remote workers."""

    world: World
    app: Celery
    #: whether the bridge knows that the orchestrator wants ``result_extended``
    extended: bool
    #: every shape at every place; all are under way while the first is looked at
    sent: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.sent = {
            shape: {
                name: make(Sender(self.app, queues)).apply_async()
                for name, queues in PLACES.items()
            }
            for shape, make in SHAPES.items()
        }


@pytest.fixture(scope="module", params=["a bridge's app", "own app", "RabbitMQ and SQL"])
def wiring(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Wiring]:
    """Give one set of servers and workers for all shapes."""
    folder = tmp_path_factory.mktemp("world")
    own_app = request.param != "a bridge's app"
    with ExitStack() as stack:
        valkeys = [Valkey().start() for _ in range(2)]
        for one in valkeys:
            stack.callback(one.remove)

        def process(argv: Any, *, env: Any = None, cwd: Path | None = None) -> Process:
            log = folder / f"{uuid4()}.log"
            started = Process(argv, log=log, env=env, cwd=cwd)
            stack.callback(started.close)
            return started

        if request.param == "RabbitMQ and SQL":
            rabbit = RabbitMQ().start()
            stack.callback(rabbit.remove)
            results = request.getfixturevalue("postgres_server").create_database()
            backend = f"db+{results}"
            world: World = RabbitWorld(rabbit, backend, *valkeys, folder, process)
            stack.callback(pools.reset)
        else:
            world = World(*valkeys, folder, process)
        stack.callback(world.close)
        app = stack.enter_context(canvas_app.make(world.broker_url, world.backend_url))
        asked = ("-A", "tests.e2e.canvas_app") if own_app else ()
        world.bridge("--declare-queues", *asked, environ=world.own_app)
        world.local_worker("tests.e2e.canvas_app")
        with Crew(world, app):
            yield Wiring(world, app, extended=own_app)
        if isinstance(app.backend, RedisBackend):
            app.backend.result_consumer.cancel_for = lambda _task_id: None


def snapshot(result: Any, *, extended: bool) -> Any:
    """Return all that an orchestrator can see of a result and those it came from."""
    parent = snapshot(result.parent, extended=extended) if result.parent else None
    if isinstance(result, GroupResult):
        seen = [snapshot(one, extended=extended) for one in result.results]
        return {"group": seen, "parent": parent}
    assert isinstance(result, AsyncResult)
    meta = result.backend.get_task_meta(result.id)
    value = meta["result"]
    if isinstance(value, Exception):
        value = (type(value).__module__, type(value).__qualname__, strip(value.args))
    seen = {
        "state": meta["status"],
        "value": value,
        "traceback": bool(meta.get("traceback")),
        # where chords are polled for, a native task counts the poll among its children
        "children": len(meta.get("children") or ())
        if isinstance(result.backend, RedisBackend)
        else 0,
        "parent": parent,
    }
    more = ("name", "args", "kwargs", "retries", "order", "stamped_headers") if extended else ()
    return seen | {key: meta.get(key) for key in more}


def strip(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave out the ids that differ from run to run."""
    return tuple(ID.sub("<id>", one) if isinstance(one, str) else one for one in args)


def settled(result: Any, *, extended: bool) -> Any:
    """Wait until nothing of a result changes any more; what is ignored never gets a state."""
    every = [result]
    while every[-1].parent:
        every.append(every[-1].parent)
    for one in every:
        until(lambda one=one: one.id in IGNORED or one.ready(), GET_S, f"{one} is ready")
    return snapshot(result, extended=extended)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_ends_as_with_ordinary_workers(wiring: Wiring, shape: str):
    sent = dict(wiring.sent[shape])
    # a map becomes a chord: it ends the same, with other names on the way
    extended = wiring.extended and "map" not in shape and shape != "chunks"
    expected = settled(sent.pop("local"), extended=extended)
    for name, result in sent.items():
        assert settled(result, extended=extended) == expected, name


def test_an_error_callback_is_given_the_same(wiring: Wiring, tmp_path: Path):
    """One of the new style needs its code, which a bridge has with the orchestrator's app alone."""
    sent = {}
    note = "canvas.note_error" if wiring.extended else "canvas.note"
    for name, queues in PLACES.items():
        t, file = Sender(wiring.app, queues), tmp_path / name
        errback = t.app.signature(note, kwargs={"file": str(file)}, queue="local")
        sent[name] = t("fail", 1, 2).apply_async(link_error=errback)
    given = {}
    for name, failed in sent.items():
        file = tmp_path / name
        until(file.exists, GET_S, "the callback was called")
        given[name] = ["<id>" if one == failed.id else one for one in json.loads(file.read_text())]
    new = ["Broken", "broken 3", True, "canvas.fail", "<id>"]
    assert given == dict.fromkeys(PLACES, new if wiring.extended else ["<id>"])


def test_links_hang_on_each_and_are_children_of_it(wiring: Wiring):
    every = []
    for queues in PLACES.values():
        t = Sender(wiring.app, queues)
        parent = t("add", 1, 2)
        parent.link(t("add", 10))
        parent.link(t("add", 20))
        every.append(parent.apply_async())
    for sent in every:
        assert sent.get(timeout=GET_S) == 3
        (links,) = until(lambda sent=sent: sent.children, GET_S, "the links are known")
        assert links.get(timeout=GET_S) == [13, 23]


def test_a_failing_item_fails_its_map_as_a_part_fails_a_chord(wiring: Wiring):
    sent = wiring.app.tasks["canvas.fail"].map([1, 2]).set(queue=QUEUE).apply_async()
    with pytest.raises(ChordError, match="broken"):
        sent.get(timeout=GET_S)
