"""Attacks on whoever looks on: what strangers wrote, on an operator's terminal and in a browser."""

import io
from typing import Any

import pytest
from rich.console import Console

from broker.commands import jobs_shown
from tests.attacks.conftest import Caller, Edge
from tests.attacks.test_artifacts import upload

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "[bold red]markup[/] [link=https://evil.example]here[/link]",
    "\x1b[31mred\x1b[2J\x1b]0;title\x07\x1b]8;;https://evil.example\x07link",
    "a\r\nsucceeded\rforged",
    "\u202egnp.exe\u2066\u200b\x9b31m",
    '"; DROP TABLE jobs; --',
)


def shown(what: Any) -> str:
    """Return what a terminal would be sent."""
    console = Console(file=io.StringIO(), force_terminal=True, width=500, color_system=None)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.attack(117)
@pytest.mark.parametrize("text", HOSTILE)
def test_what_strangers_wrote_is_inert(edge: Edge, user: Caller, worker: Caller, text: str) -> None:
    one_line = text if text.isprintable() else "t"
    made = user.post(
        "/jobs", {"type": one_line[:64], "payload": {"x": text, "repository": '"><b>'}}
    )
    assert made.status_code == 201
    job_id = worker.job()["id"]
    worker.say(job_id, "events", message=text, payload={text: text})
    upload(worker, job_id, text.encode(), name="page.html", contentType="text/html")
    assert worker.say(job_id, "fail", errorMessage=text, traceback=text).status_code == 200

    client = {"job": user.get(f"/jobs/{job_id}"), "log": user.get(f"/jobs/{job_id}/events")}
    for answer in client.values():
        assert answer.mimetype == "application/json"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
        assert "unsafe-inline" not in str(answer.headers)
    job = client["job"].json
    said = [jobs_shown.listing([job]), jobs_shown.detail(job, [], [])]
    printed = "".join(map(shown, said)) + jobs_shown.summary(job)
    printed += "\n".join(jobs_shown.event_line(one) for one in client["log"].json["items"])
    assert all(one.isprintable() or one == "\n" for one in printed)
    # shown as it is written, not obeyed
    assert jobs_shown.plain(text)[:20] in printed
