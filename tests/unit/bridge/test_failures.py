import json
import sys
from types import ModuleType

import pytest
from celery import Celery
from celery.exceptions import InvalidTaskError, WorkerLostError
from hypothesis import given
from hypothesis import strategies as st

from broker import effects
from broker.bridge.failures import failure


def told(kind: str | None, message: str = "why") -> Exception:
    return failure({"type": kind, "message": message, "traceback": None})


@pytest.mark.parametrize("kind", [None, "", effects.REMOTE_ERROR])
def test_without_a_type_it_is_our_own_error_under_a_stable_name(kind: str | None):
    error = told(kind)
    assert (type(error).__module__, type(error).__qualname__) == ("drawbridge", "RemoteJobError")
    assert error.args == ("why",)


def test_our_own_words_for_celerys_errors():
    assert isinstance(told(effects.WORKER_LOST), WorkerLostError)
    assert isinstance(told(effects.REJECTED), InvalidTaskError)


@pytest.mark.parametrize(
    "kind, module, name",
    [
        ("ValueError", "builtins", "ValueError"),
        ("json.JSONDecodeError", "json.decoder", "JSONDecodeError"),
        ("proj.errors.Boom", "proj.errors", "Boom"),
        ("Boom", "drawbridge", "Boom"),
        ("UnicodeDecodeError", "builtins", "UnicodeDecodeError"),
    ],
)
def test_a_type_travels_by_module_and_name(kind: str, module: str, name: str):
    error = told(kind)
    assert (type(error).__module__, type(error).__qualname__) == (module, name)
    assert error.args == ("why",)


@pytest.mark.parametrize(
    "kind",
    [
        "SystemExit", "KeyboardInterrupt", "GeneratorExit", "builtins.BaseException", "os.system",
        "celery.exceptions.WorkerShutdown", "celery.exceptions.Retry", "celery.exceptions.Ignore",
        "__import__", "a b", "a..b", ".", "é.Fehler", "x" * 300, "os.system()",
    ],
)  # fmt: skip
def test_a_type_that_would_harm_the_reader_is_told_as_ours(kind: str):
    error = told(kind)
    assert (type(error).__module__, type(error).__qualname__) == ("drawbridge", "RemoteJobError")
    assert error.args == (f"{kind}: why",)


def test_a_class_with_other_arguments_still_travels(monkeypatch: pytest.MonkeyPatch):
    class Picky(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(code, text)

    class Chatty(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(f"chatty: {text}")

    module = ModuleType("proj_errors")
    for one in (Picky, Chatty):
        one.__module__, one.__qualname__ = "proj_errors", one.__name__
        setattr(module, one.__name__, one)
    monkeypatch.setitem(sys.modules, "proj_errors", module)
    for name in ("Picky", "Chatty"):
        error = told(f"proj_errors.{name}")
        assert (type(error).__module__, type(error).__qualname__) == ("proj_errors", name)
        assert error.args == ("why",)


@given(kind=st.text(max_size=80), message=st.text(max_size=80))
def test_whatever_a_worker_says_can_be_stored_and_read(kind: str, message: str):
    backend = Celery("t", backend="cache+memory://", set_as_current=False).backend
    stored = backend.prepare_exception(told(kind, message), "json")
    read = backend.exception_to_python(json.loads(json.dumps(stored)))
    assert isinstance(read, Exception)
