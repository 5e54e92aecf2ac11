"""When a connection deserves a thread: judged from bytes, and looked at through real sockets."""

import select
import socket
from collections.abc import Iterator

import pytest

from edge_api.reception import HEAD_MAX, WHOLE_MAX, Arrival, Reception, Shelf, judge

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"


def arrival(data: bytes) -> Arrival:
    return judge(data, len(data)).arrival


@pytest.mark.parametrize(
    "data,expected",
    [
        (HEAD + b"\r\n", Arrival.WHOLE),
        (HEAD + b"Content-Length: 3\r\n\r\nabc", Arrival.WHOLE),
        (HEAD + b"content-length:\t3 \r\n\r\nabcPOST", Arrival.WHOLE),
        (HEAD, Arrival.PART),
        (b"P", Arrival.PART),
        (HEAD + b"Content-Length: 3\r\n\r\nab", Arrival.PART),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", Arrival.STREAM),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", Arrival.STREAM),
        (HEAD + b"Content-Length: 999999999999999\r\n\r\n", Arrival.STREAM),
        (b"GET /" + b"x" * 5000, Arrival.URL_TOO_LONG),
        (HEAD + b"A: " + b"x" * HEAD_MAX, Arrival.HEAD_TOO_LARGE),
        (HEAD + b"A: b\r\n" * HEAD_MAX, Arrival.HEAD_TOO_LARGE),
        # what is no HTTP is gunicorn's to refuse, and here at once
        (b"nonsense\r\n\r\n", Arrival.WHOLE),
        (b"\r\n\r\n", Arrival.WHOLE),
    ],
)
def test_how_much_has_come(data: bytes, expected: Arrival) -> None:
    assert arrival(data) is expected


def test_every_cut_of_a_request_but_the_last_is_a_part() -> None:
    whole = HEAD + b"Content-Length: 20\r\n\r\n" + b"x" * 20
    for cut in range(1, len(whole)):
        look = judge(whole, cut)
        assert look.arrival is Arrival.PART
        assert cut < look.needed <= len(whole)
    assert arrival(whole) is Arrival.WHOLE


def test_the_largest_request_that_is_waited_for() -> None:
    head = HEAD + b"Content-Length: 60000\r\n\r\n"
    assert len(head) + 60_000 <= WHOLE_MAX
    assert arrival(head) is Arrival.PART
    assert arrival(HEAD + b"Content-Length: 65536\r\n\r\n") is Arrival.STREAM


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give both ends of a TCP connection; ours does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.settimeout(0)
    with ours, theirs:
        yield ours, theirs


def readable(sock: socket.socket, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def test_the_kernel_is_quiet_until_all_may_be_there(pair: Pair) -> None:
    ours, theirs = pair
    reception = Reception()
    theirs.sendall(HEAD + b"Content-Length: 3\r\n\r\n")
    assert readable(ours, 10_000)
    look = reception.look(ours, before=0)
    assert look.arrival is Arrival.PART
    theirs.sendall(b"ab")
    assert not readable(ours, 50)
    theirs.sendall(b"c")
    assert readable(ours, 10_000)
    assert reception.look(ours, before=look.seen).arrival is Arrival.WHOLE
    # looking took nothing away
    assert ours.recv(10) == HEAD[:10]


def test_who_hangs_up_half_way_is_noticed(pair: Pair) -> None:
    ours, theirs = pair
    reception = Reception()
    theirs.sendall(b"POST")
    assert readable(ours, 10_000)
    seen = reception.look(ours, before=0).seen
    theirs.shutdown(socket.SHUT_WR)
    assert readable(ours, 10_000)
    # a thread will read its end; the loop does not spin on it
    assert reception.look(ours, before=seen).arrival is Arrival.STREAM


def test_who_says_nothing_and_leaves_is_gone(pair: Pair) -> None:
    ours, theirs = pair
    assert Reception().look(ours, before=0).arrival is Arrival.PART
    theirs.close()
    assert readable(ours, 10_000)
    assert Reception().look(ours, before=0).arrival is Arrival.GONE


def test_a_shelf_gives_back_what_is_due_oldest_first() -> None:
    shelf: Shelf[str] = Shelf()
    for at, name in enumerate("abc"):
        shelf.put(name, 10.0 + at)
    due = []
    for one in shelf.expired(11.0):
        due.append(one)
        shelf.take(one)
    assert due == ["a", "b"]
    assert (shelf.oldest(), len(shelf)) == ("c", 1)
    shelf.cap(5.0)
    assert next(shelf.expired(5.0)) == "c"
