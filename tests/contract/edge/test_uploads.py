"""Files in parts over HTTP: announced, sent in any order and more than once, put together."""

import hashlib
import io
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.ledger import parts
from broker.upkeep import Upkeep
from broker.uploading import UPLOAD_AGE
from tests.contract.edge.conftest import Caller, Edge, MakeEdge
from tests.contract.edge.served import Served

PART = 1024
DATA = bytes(range(256)) * 9 + b"the rest"
INVALID = (422, "invalid_queue_payload")
TOO_LARGE = (413, "artifact_too_large")
CONFLICT = (409, "artifact_conflict")
NOT_FOUND = (404, "artifact_not_found")
BOTH = pytest.mark.parametrize("edge", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts be small, so that the tests need not send much."""
    monkeypatch.setattr(parts, "PART_BYTES", PART)


@pytest.fixture
def held(user: Caller, worker: Caller) -> dict[str, Any]:
    """Give a job that the worker holds, taken up."""
    user.post("/jobs", {"type": "t"})
    job = worker.job()
    worker.say(job["id"], "heartbeat", leaseSeconds=60)
    return job


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def refusal(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["detail"]["code"]


def begin(
    worker: Caller, job: dict[str, Any], data: bytes = DATA, name: str = "big.log", **more: Any
) -> Any:
    said = {"name": name, "sizeBytes": len(data), "digest": digest_of(data)}
    return worker.say(job["id"], "artifacts/uploads", leaseId=job["leaseId"], **(said | more))


def send(
    worker: Caller,
    job: dict[str, Any],
    upload: dict[str, Any],
    number: int | str,
    data: bytes | None = None,
    **fields: str,
) -> Any:
    if data is None:
        data = DATA[(int(number) - 1) * PART : int(number) * PART]
    form = {"workerId": worker.worker_id, "leaseId": job["leaseId"], "digest": digest_of(data)}
    path = f"/jobs/{job['id']}/artifacts/uploads/{upload['id']}/parts/{number}"
    return worker.post(path, data=form | fields | {"file": (io.BytesIO(data), "x")})


def finish(worker: Caller, job: dict[str, Any], upload: dict[str, Any], **more: Any) -> Any:
    what = f"artifacts/uploads/{upload['id']}/complete"
    return worker.say(job["id"], what, **({"leaseId": job["leaseId"]} | more))


def look(worker: Caller, job: dict[str, Any], upload: dict[str, Any], lease: str = "") -> Any:
    path = f"/jobs/{job['id']}/artifacts/uploads/{upload['id']}"
    return worker.get(f"{path}?leaseId={lease or job['leaseId']}")


def stored_files(edge: Edge) -> list[str]:
    folder = edge.services.settings.stores.artifacts_dir
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return sorted(path.relative_to(folder).parts[0] for path in found)


@BOTH
def test_a_file_in_parts_goes_in_and_comes_out(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    begun = begin(worker, held, contentType="text/plain")
    assert (begun.status_code, begun.json["partBytes"], begun.json["parts"]) == (201, PART, [])
    for number in (3, 1, 2):
        made = send(worker, held, begun.json, number)
        assert (made.status_code, made.json["number"]) == (201, number)
    here = look(worker, held, begun.json).json
    assert [one["sizeBytes"] for one in here["parts"]] == [PART, PART, len(DATA) - 2 * PART]
    artifact = finish(worker, held, begun.json)
    assert artifact.status_code == 201
    assert (artifact.json["digest"], artifact.json["sizeBytes"]) == (digest_of(DATA), len(DATA))
    assert artifact.json["contentType"] == "text/plain"
    got = user.get(f"/jobs/{held['id']}/artifacts/{artifact.json['id']}/download")
    assert got.data == DATA
    got.close()
    assert stored_files(edge) == ["sha256"], "the parts are gone"
    # whoever did not hear an answer says it again
    before = edge.state()
    assert finish(worker, held, begun.json).json == artifact.json
    assert send(worker, held, begun.json, 2).json == here["parts"][1]
    assert begin(worker, held).json == here | {"artifact": artifact.json}
    assert edge.state() == before
    log = user.get(f"/jobs/{held['id']}/events").json["items"]
    assert [one["message"] for one in log].count("Artifact uploaded") == 1


def test_whoever_comes_again_hears_what_is_here(
    edge: Edge, make_edge: MakeEdge, sqlite_url: str, worker: Caller, held: dict[str, Any]
) -> None:
    begun = begin(worker, held).json
    send(worker, held, begun, 2)
    # another edge, or this one after a restart
    other = Caller(make_edge(sqlite_url).app, worker.headers, worker.worker_id)
    again = begin(other, held).json
    assert again == look(other, held, begun).json
    assert (again["id"], [one["number"] for one in again["parts"]]) == (begun["id"], [2])
    before = edge.state()
    assert send(other, held, begun, 2).json == again["parts"][0]
    assert edge.state() == before
    send(other, held, begun, 1)
    missing = finish(other, held, begun)
    assert refusal(missing) == INVALID
    assert missing.json["detail"]["message"] == "Parts are missing: 3"
    send(worker, held, begun, 3)
    assert finish(worker, held, begun).status_code == 201


def test_parts_that_are_not_what_was_announced(
    edge: Edge, worker: Caller, held: dict[str, Any]
) -> None:
    begun = begin(worker, held).json
    send(worker, held, begun, 1)
    before = edge.state()
    for number in (0, 4, -1, "1e1", "two", "\u0661", "9" * 30, "1.0", "%00"):
        assert refusal(send(worker, held, begun, number, b"x" * PART)) == INVALID, number
    assert refusal(send(worker, held, begun, 2, b"x" * (PART - 1))) == INVALID
    assert refusal(send(worker, held, begun, 2, b"x" * (PART + 1))) == TOO_LARGE
    assert refusal(send(worker, held, begun, 3, b"x" * PART)) == TOO_LARGE
    assert refusal(send(worker, held, begun, 2, digest=digest_of(b"a lie"))) == INVALID
    assert refusal(send(worker, held, begun, 2, digest="md5:" + "0" * 32)) == INVALID
    assert refusal(send(worker, held, begun, 1, b"x" * PART)) == CONFLICT
    no_file = worker.post(
        f"/jobs/{held['id']}/artifacts/uploads/{begun['id']}/parts/2",
        data={"workerId": worker.worker_id, "digest": digest_of(b""), "x": (io.BytesIO(), "y")},
    )
    assert refusal(no_file) == INVALID
    wrong: list[dict[str, Any]] = [{"sizeBytes": size} for size in (0, -1, 2**53, "9", 77)]
    for bad in (*wrong, {"digest": None}, {"digest": "sha256:"}, {"name": "../x"}):
        assert refusal(begin(worker, held, **bad)) == INVALID, bad
    assert edge.state() == before


def test_a_whole_that_is_not_what_was_announced_begins_anew(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    begun = begin(worker, held).json
    for number in (1, 3):
        send(worker, held, begun, number)
    send(worker, held, begun, 2, b"another part".ljust(PART))
    assert refusal(finish(worker, held, begun)) == INVALID
    assert user.get(f"/jobs/{held['id']}/artifacts").json["items"] == []
    assert stored_files(edge) == []
    assert look(worker, held, begun).json["parts"] == []
    for number in (1, 2, 3):
        send(worker, held, begun, number)
    assert finish(worker, held, begun).status_code == 201


def test_nobody_but_the_holder_and_only_under_this_lease(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any]
) -> None:
    begun, other = begin(worker, held).json, edge.worker("w2")
    user.post("/jobs", {"type": "t"})
    second = worker.job()
    worker.say(second["id"], "heartbeat", leaseSeconds=60)
    stale = held | {"leaseId": "stale"}
    before = edge.state()
    forbidden = (403, "worker_not_authorized")
    assert refusal(begin(other, held)) == forbidden
    for answer in (send(other, held, begun, 1), send(worker, held, begun, 1, workerId="w2")):
        assert refusal(answer) == forbidden
    for answer in (finish(other, held, begun), look(other, held, begun)):
        assert refusal(answer) == forbidden
    lost = (409, "lease_lost")
    for calls in (begin(worker, stale), send(worker, stale, begun, 1),
                  finish(worker, stale, begun), look(worker, stale, begun)):  # fmt: skip
        assert refusal(calls) == lost
    for calls in (send(worker, second, begun, 1), finish(worker, second, begun),
                  look(worker, second, begun), look(worker, held, {"id": "../../x"}),
                  send(worker, held, {"id": "%2e%2e"}, 1)):  # fmt: skip
        assert calls.status_code == 404
    assert edge.state() == before
    # the next lease of the same worker is another one
    worker.say(held["id"], "release", leaseId=held["leaseId"])
    again = worker.job()
    assert again["id"] == held["id"]
    assert refusal(look(worker, again, begun)) == NOT_FOUND
    assert refusal(send(worker, again, begun, 1)) == NOT_FOUND
    assert begin(worker, again).json["id"] != begun["id"]


def test_room_is_taken_before_a_byte_comes(make_edge: MakeEdge, sqlite_url: str) -> None:
    edge = make_edge(
        sqlite_url, queue={"artifact_bytes_per_job": 5000, "artifact_max_bytes": 4000,
                           "artifacts_per_job": 2},
    )  # fmt: skip
    worker, user = edge.worker(), edge.user()
    user.post("/jobs", {"type": "t"})
    job = worker.job()
    worker.say(job["id"], "heartbeat", leaseSeconds=60)
    assert refusal(begin(worker, job, b"x" * 4001)) == TOO_LARGE
    begun = begin(worker, job).json
    before = edge.state()
    assert refusal(begin(worker, job, b"y" * 3000, "second")) == TOO_LARGE
    whole = {"file": (io.BytesIO(b"z" * 3000), "x"), "workerId": "w1", "name": "third"}
    assert refusal(worker.post(f"/jobs/{job['id']}/artifacts/upload", data=whole)) == TOO_LARGE
    assert edge.state() == before
    assert begin(worker, job, b"y" * 2000, "second").status_code == 201
    assert refusal(begin(worker, job, b"z", "third")) == TOO_LARGE
    for number in (1, 2, 3):
        send(worker, job, begun, number)
    assert finish(worker, job, begun).status_code == 201


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Give six threads."""
    with ThreadPoolExecutor(6) as pool:
        yield pool


@BOTH
def test_two_at_once(
    edge: Edge, user: Caller, worker: Caller, held: dict[str, Any], threads: ThreadPoolExecutor
) -> None:
    begun = list(threads.map(lambda _n: begin(worker, held).json, range(4)))
    assert len({one["id"] for one in begun}) == 1
    lies = [bytes([n]) * PART for n in range(6)]
    first = list(threads.map(lambda data: send(worker, held, begun[0], 1, data), lies))
    assert sorted(one.status_code for one in first) == [201] + [409] * 5
    assert stored_files(edge) == ["parts"], "of what came second nothing stays"
    # other bytes under the same name are another upload; one of the two gets the name
    other = begin(worker, held, DATA[::-1]).json
    mine = begin(worker, held, DATA, "mine.log").json
    numbers = [1, 2, 3] * 2
    answers = list(threads.map(lambda n: send(worker, held, mine, n), numbers))
    assert {one.status_code for one in answers} == {201}
    ends = list(threads.map(lambda _n: finish(worker, held, mine), range(4)))
    assert {one.status_code for one in ends} == {201}
    assert len({one.json["id"] for one in ends}) == 1
    form = {"workerId": "w1", "name": "big.log", "file": (io.BytesIO(b"small"), "x")}
    assert worker.post(f"/jobs/{held['id']}/artifacts/upload", data=form).status_code == 201
    for number in (1, 2, 3):
        assert send(worker, held, other, number, DATA[::-1][(number - 1) * PART : number * PART])
    assert refusal(finish(worker, held, other)) == CONFLICT
    assert refusal(begin(worker, held, DATA[1:])) == CONFLICT


@BOTH
def test_what_is_never_finished_is_forgotten(
    edge: Edge, worker: Caller, user: Caller, held: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, queue = begin(worker, held).json, edge.services.queue
    send(worker, held, begun, 1)
    upkeep = Upkeep(queue)
    assert upkeep.prune(files=edge.services.artifacts)["uploads"] == 0
    assert look(worker, held, begun).json["parts"] != []
    later = queue.clock.now() + UPLOAD_AGE + timedelta(minutes=1)
    with monkeypatch.context() as clock:
        clock.setattr(queue.clock, "now", lambda: later)
        assert upkeep.prune(files=edge.services.artifacts)["uploads"] == 1
    assert stored_files(edge) == []
    assert refusal(look(worker, held, begun)) == NOT_FOUND
    # and at once when its lease is over
    again = begin(worker, held).json
    send(worker, held, again, 1)
    worker.say(held["id"], "complete", leaseId=held["leaseId"])
    assert upkeep.prune(files=edge.services.artifacts)["uploads"] == 1
    assert stored_files(edge) == []


def test_an_edge_that_is_killed_in_the_middle_of_a_part(
    start_served: Callable[..., Served], tmp_path: Path
) -> None:
    first = start_served("--threads", "60")
    first.call("POST", "/api/queue/jobs", {"type": "t"})
    job = first.claim()
    data = b"0123456789abcdef" * 600_000
    path = f"/api/queue/jobs/{job['id']}/artifacts/uploads"
    said = {"workerId": "w1", "name": "big", "sizeBytes": len(data), "digest": digest_of(data)}
    status, upload = first.call("POST", path, said, token=first.worker)
    assert status == 201
    size = upload["partBytes"]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    token = first.worker

    def form(piece: bytes) -> bytes:
        head = b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in (("workerId", "w1"), ("digest", digest_of(piece)))
        )
        file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        return head + file + piece + b"\r\n--b--\r\n"

    def request(number: int) -> bytes:
        body = form(pieces[number - 1])
        head = (
            f"POST {path}/{upload['id']}/parts/{number} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    assert first.raw(request(1))[0].startswith(b"HTTP/1.1 201")
    with socket.create_connection(("127.0.0.1", first.port), timeout=30) as sock:
        whole = request(2)
        sock.sendall(whole[: len(whole) // 2])
        first.serving.kill()
        first.process.kill()
    second = start_served("--threads", "60")
    _, here = second.call("GET", f"{path}/{upload['id']}", token=token)
    assert [one["number"] for one in here["parts"]] == [1]
    assert second.raw(request(2))[0].startswith(b"HTTP/1.1 201")
    status, artifact = second.call("POST", f"{path}/{upload['id']}/complete",
                                   {"workerId": "w1"}, token=token)  # fmt: skip
    assert (status, artifact["digest"]) == (201, digest_of(data))
