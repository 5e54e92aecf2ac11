"""Credentials from birth to revocation, on both databases: who gets in, and who is told what."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import pytest
import sqlalchemy as sa

from broker import tokens
from broker.errors import (
    AuthFailed,
    InvalidPayload,
    InvalidRepository,
    LedgerUnavailable,
    ReservationsUnavailable,
    TokenConflict,
    TokenNotFound,
)
from broker.ledger import credentials as module
from broker.ledger import migrate
from broker.ledger.credential_rows import state
from broker.ledger.credentials import Credentials
from broker.ledger.engine import Ledger
from broker.ledger.models import CredentialRow
from broker.ledger.remembered import FRESH_S, PROBE_S, STALE_S, TOLD_S, USED_EVERY_S
from broker.policy import Policy

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
#: the smallest step that both databases keep
TICK = timedelta(microseconds=1)


class Timer:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now_s


class Outage:
    """A ledger's network, which the test cuts."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._ledger, self._patch = ledger, monkeypatch

    def begin(self) -> None:
        """Cut it."""

        @contextmanager
        def away(**_: object) -> Iterator[None]:
            self.asked += 1
            raise LedgerUnavailable
            yield

        for kind in ("read", "glance", "write"):
            self._patch.setattr(self._ledger, kind, away)

    def end(self) -> None:
        """Mend it."""
        self._patch.undo()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def credentials(ledger: Ledger, timer: Timer) -> Credentials:
    return Credentials(ledger, timer=timer)


@pytest.fixture
def outage(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(ledger, monkeypatch)


@pytest.fixture
def statements(ledger: Ledger) -> Iterator[list[str]]:
    """Give the list that every statement sent to the database is added to."""
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        # a connection is told once whether it reads or writes: that is of no credential
        if not statement.startswith("PRAGMA"):
            sent.append(statement)

    sa.event.listen(ledger.engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(ledger.engine, "before_cursor_execute", note)


def another_secret(text: str) -> str:
    """Return a token of the same id whose checksum is right and whose secret is not."""
    kind, token_id = text.split("_")[1:3]
    body = f"drb_{kind}_{token_id}_{tokens.issue('worker').text.split('_')[3]}"
    return f"{body}_{tokens._base62(zlib.crc32(body.encode()), 6)}"


def refusal(call: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(AuthFailed) as raised:
        call()
    return type(raised.value), raised.value.message


def test_a_worker_token_proves_all_that_was_said_of_it(credentials: Credentials):
    policy = Policy(
        types=("codex_exec",),
        repositories=("Org/Repo", "https://github.com/org/repo.git", "git@gitlab.com:A/b", "Org/*"),
        capabilities=(),
        queues=("remote", " gpu "),
        max_concurrency=3,
    )
    made, text = credentials.create(
        "worker",
        worker_id="gpu-1.lab_2",
        description="the box under the desk",
        policy=policy,
        expires_at=NOW + 90 * 86400 * SECOND,
        created_by="op",
        now=NOW,
    )
    proven = credentials.verify(text, now=NOW)
    assert proven == made
    assert proven.kind == "worker"
    assert proven.worker_id == "gpu-1.lab_2"
    assert proven.created_by == "op"
    assert proven.expires_at == NOW + 90 * 86400 * SECOND
    assert not proven.stale
    assert proven.policy == Policy(
        types=("codex_exec",),
        repositories=("github.com/org/repo", "gitlab.com/A/b", "github.com/org/*"),
        capabilities=(),
        queues=("remote", "gpu"),
        max_concurrency=3,
    )


@pytest.mark.parametrize("kind", ["operator", "producer"])
def test_other_kinds_prove_themselves_too(credentials: Credentials, kind: str):
    made, text = credentials.create(kind, now=NOW)
    assert text.startswith(f"drb_{ {'operator': 'opr', 'producer': 'prd'}[kind] }_")
    assert credentials.verify(text, now=NOW) == made
    assert made.policy == Policy()


def test_a_kind_may_come_as_a_word_of_an_enumeration(credentials: Credentials):
    class Kind(StrEnum):
        OPERATOR = "operator"

    made, text = credentials.create(Kind.OPERATOR, now=NOW)
    assert made.kind == "operator"
    assert credentials.verify(text, now=NOW) == made
    assert [one.id for one in credentials.list(kind=Kind.OPERATOR)] == [made.id]


def test_absent_and_empty_stay_two_things(credentials: Credentials):
    nothing = Policy(types=(), repositories=(), capabilities=(), queues=())
    _, text = credentials.create("worker", worker_id="w", policy=nothing, now=NOW)
    assert credentials.verify(text, now=NOW).policy == nothing
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    assert credentials.verify(text, now=NOW).policy == Policy()


@pytest.mark.parametrize(
    "kind, more",
    [
        ("robot", {}),
        ("worker", {}),
        ("worker", {"worker_id": ""}),
        ("worker", {"worker_id": "a b"}),
        ("worker", {"worker_id": "é"}),
        ("worker", {"worker_id": "w\n"}),
        ("worker", {"worker_id": "w" * 129}),
        ("operator", {"worker_id": "w"}),
        ("producer", {"policy": Policy(types=())}),
        ("worker", {"worker_id": "w", "policy": Policy(types=(" ",))}),
        ("worker", {"worker_id": "w", "policy": Policy(capabilities=("x" * 256,))}),
        ("worker", {"worker_id": "w", "policy": Policy(max_concurrency=0)}),
        ("worker", {"worker_id": "w", "policy": Policy(repositories=("../etc",))}),
        ("worker", {"worker_id": "w", "policy": Policy(ip_ranges=("10.0.0.1/8",))}),
        ("worker", {"worker_id": "w", "policy": Policy(ip_ranges=("home",))}),
        ("worker", {"worker_id": "w", "description": "a\x00b"}),
        ("worker", {"worker_id": "w", "description": "\ud800"}),
        ("worker", {"worker_id": "w", "expires_at": NOW}),
        ("operator", {"expires_at": NOW - SECOND}),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_stored(
    credentials: Credentials, kind: str, more: dict[str, object]
):
    with pytest.raises(InvalidPayload):
        credentials.create(kind, now=NOW, **more)
    assert credentials.list() == []


def test_a_repository_that_is_none_is_refused_as_such(credentials: Credentials):
    with pytest.raises(InvalidRepository):
        credentials.create(
            "worker", worker_id="w", policy=Policy(repositories=("http://x/a/b",)), now=NOW
        )


def test_a_typo_costs_no_statement(credentials: Credentials, statements: list[str]):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    statements.clear()
    for place in range(len(text)):
        typo = text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :]
        with pytest.raises(AuthFailed):
            credentials.verify(typo, now=NOW)
    assert statements == []
    credentials.verify(text, now=NOW)
    assert statements != []


def test_whoever_is_refused_is_not_told_why(credentials: Credentials):
    _, text = credentials.create("worker", worker_id="w", expires_at=NOW + SECOND, now=NOW)
    gone, revoked = credentials.create("worker", worker_id="w", now=NOW)
    credentials.revoke(gone.id, now=NOW)
    as_operator = tokens.issue("operator").text
    body = as_operator.rpartition("_")[0].replace("drb_opr", "drb_wkr")
    refusals = {
        refusal(lambda: credentials.verify("drb_nonsense", now=NOW)),
        refusal(lambda: credentials.verify(tokens.issue("worker").text, now=NOW)),
        refusal(lambda: credentials.verify(another_secret(text), now=NOW)),
        refusal(lambda: credentials.verify(text, now=NOW + SECOND)),
        refusal(lambda: credentials.verify(revoked, now=NOW)),
        refusal(lambda: credentials.verify(body, now=NOW)),
    }
    assert refusals == {(AuthFailed, AuthFailed().message)}


def test_a_wrong_secret_costs_what_an_unknown_id_costs(
    credentials: Credentials, statements: list[str]
):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    costs: list[list[str]] = []
    for guess in (another_secret(text), tokens.issue("worker").text, another_secret(text)):
        statements.clear()
        with pytest.raises(AuthFailed):
            credentials.verify(guess, now=NOW)
        costs.append(list(statements))
    assert costs[0] == costs[1] == costs[2] != []


def test_the_secret_of_one_kind_is_no_good_for_another(credentials: Credentials):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    body = text.rpartition("_")[0].replace("drb_wkr", "drb_opr")
    forged = f"{body}_{tokens._base62(zlib.crc32(body.encode()), 6)}"
    assert tokens.parse(forged).kind == "operator"
    with pytest.raises(AuthFailed):
        credentials.verify(forged, now=NOW)


@pytest.mark.parametrize("offset, good", [(-TICK, True), (timedelta(0), False), (TICK, False)])
def test_a_token_is_good_until_the_moment_it_expires(
    credentials: Credentials, offset: timedelta, good: bool
):
    made, text = credentials.create("operator", expires_at=NOW + SECOND, now=NOW)
    moment = NOW + SECOND + offset
    assert state(made, moment) == ("active" if good else "expired")
    if good:
        assert credentials.verify(text, now=moment).id == made.id
    else:
        with pytest.raises(AuthFailed):
            credentials.verify(text, now=moment)


def test_a_token_expires_although_it_was_just_believed(credentials: Credentials):
    _, text = credentials.create("operator", expires_at=NOW + SECOND, now=NOW)
    credentials.verify(text, now=NOW)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW + SECOND)


def test_two_tokens_of_one_worker_live_side_by_side(credentials: Credentials):
    old, old_text = credentials.create("worker", worker_id="w", now=NOW)
    new, new_text = credentials.create("worker", worker_id="w", now=NOW)
    assert credentials.verify(old_text, now=NOW).id == old.id
    assert credentials.verify(new_text, now=NOW).id == new.id
    credentials.revoke(old.id, now=NOW)
    assert credentials.verify(new_text, now=NOW).id == new.id


def test_a_rotation_leaves_two_that_are_good_until_the_old_one_ends(
    ledger: Ledger, credentials: Credentials
):
    policy = Policy(types=("echo",), ip_ranges=("10.0.0.0/8",))
    old, old_text = credentials.create(
        "worker", worker_id="w", policy=policy, expires_at=NOW + 100 * SECOND, now=NOW
    )
    new, new_text = credentials.rotate(
        old.id, overlap=10 * SECOND, rotated_by="op", now=NOW + SECOND
    )
    assert (new.worker_id, new.policy, new.created_by) == ("w", policy, "op")
    assert new.expires_at == NOW + 101 * SECOND
    for moment in (SECOND, 11 * SECOND - TICK):
        assert credentials.verify(old_text, now=NOW + moment).id == old.id
        assert credentials.verify(new_text, now=NOW + moment).id == new.id
    with pytest.raises(AuthFailed):
        credentials.verify(old_text, now=NOW + 11 * SECOND)
    # the old one never lives longer than it would have
    late, _ = credentials.create("worker", worker_id="w", expires_at=NOW + SECOND, now=NOW)
    credentials.rotate(late.id, overlap=90 * SECOND, now=NOW)
    (found,) = [one for one in credentials.list() if one.id == late.id]
    assert found.expires_at == NOW + SECOND


def test_a_rotation_again_replaces_a_token_that_was_lost(credentials: Credentials):
    old, _ = credentials.create("worker", worker_id="w", now=NOW)
    _, lost = credentials.rotate(old.id, overlap=SECOND, now=NOW)
    new, text = credentials.rotate(old.id, overlap=9 * SECOND, now=NOW)
    with pytest.raises(AuthFailed):
        credentials.verify(lost, now=NOW)
    assert [one.id for one in credentials.list() if state(one, NOW + SECOND) == "active"] == [
        new.id
    ]
    credentials.verify(text, now=NOW)
    with pytest.raises(TokenConflict):
        credentials.rotate(old.id, overlap=SECOND, now=NOW)


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_what_is_over_is_not_rotated(credentials: Credentials, end: str):
    old, _ = credentials.create("worker", worker_id="w", expires_at=NOW + SECOND, now=NOW)
    if end == "revoked":
        credentials.revoke(old.id, now=NOW)
    with pytest.raises(TokenConflict):
        credentials.rotate(old.id, overlap=SECOND, now=NOW + (end == "expired") * SECOND)
    with pytest.raises(TokenNotFound):
        credentials.rotate("0" * 12, overlap=SECOND, now=NOW)
    assert len(credentials.list()) == 1


def test_revoking_is_final_and_a_repeat_changes_nothing(credentials: Credentials):
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    first = credentials.revoke(made.id, now=NOW + SECOND)
    again = credentials.revoke(made.id, now=NOW + 2 * SECOND)
    assert first == again
    assert first.revoked_at == NOW + SECOND
    assert state(first, NOW) == "revoked"
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW)


@pytest.mark.parametrize("token_id", ["nobody", "", "x" * 500, "';--", "\ud800", "\x00", "0" * 12])
def test_a_token_that_is_not_there_cannot_be_revoked(credentials: Credentials, token_id: str):
    with pytest.raises(TokenNotFound):
        credentials.revoke(token_id, now=NOW)


def test_another_process_follows_a_revocation_within_five_seconds(
    ledger: Ledger, credentials: Credentials
):
    timer = Timer()
    elsewhere = Credentials(ledger, timer=timer)
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    elsewhere.verify(text, now=NOW)
    credentials.revoke(made.id, now=NOW)
    timer.now_s += FRESH_S - 0.01
    assert elsewhere.verify(text, now=NOW).id == made.id
    timer.now_s += 0.01
    with pytest.raises(AuthFailed):
        elsewhere.verify(text, now=NOW)
    assert FRESH_S <= 5


def test_another_process_that_is_told_follows_within_half_a_second(ledger: Ledger):
    told: set[str] = set()
    timer = Timer()
    here = Credentials(ledger, on_revoke=told.add)
    elsewhere = Credentials(ledger, is_revoked=told.__contains__, timer=timer)
    made, text = here.create("worker", worker_id="w", now=NOW)
    elsewhere.verify(text, now=NOW)
    here.revoke(made.id, now=NOW)
    assert told == {made.id}
    timer.now_s += TOLD_S
    assert TOLD_S <= 0.5
    with pytest.raises(AuthFailed):
        elsewhere.verify(text, now=NOW)


def test_whether_a_token_was_revoked_is_asked_twice_a_second(ledger: Ledger):
    asked: list[str] = []
    timer = Timer()
    credentials = Credentials(
        ledger, is_revoked=lambda token_id: bool(asked.append(token_id)), timer=timer
    )
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    for _ in range(10):
        credentials.verify(text, now=NOW)
    assert asked == [made.id]
    timer.now_s += TOLD_S
    credentials.verify(text, now=NOW)
    assert asked == [made.id] * 2


def test_reservations_that_are_away_neither_stop_a_revocation_nor_a_login(ledger: Ledger):
    def away(_token_id: str) -> bool:
        raise ReservationsUnavailable

    credentials = Credentials(ledger, on_revoke=away, is_revoked=away)
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    assert credentials.verify(text, now=NOW).id == made.id
    assert credentials.revoke(made.id, now=NOW).revoked_at == NOW
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW)


def test_a_believed_token_costs_no_statement_for_five_seconds(
    credentials: Credentials, timer: Timer, statements: list[str]
):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    statements.clear()
    for _ in range(10):
        credentials.verify(text, now=NOW)
    assert statements == []
    timer.now_s += FRESH_S
    credentials.verify(text, now=NOW)
    assert statements != []


def test_wrong_secrets_do_not_lock_a_worker_out(credentials: Credentials):
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    for _ in range(100):
        with pytest.raises(AuthFailed):
            credentials.verify(another_secret(text), now=NOW)
    assert credentials.verify(text, now=NOW).id == made.id


def used(ledger: Ledger) -> datetime | None:
    with ledger.read() as connection:
        return connection.scalar(sa.select(CredentialRow.last_used_at))


def test_use_is_noted_at_most_once_a_minute(
    ledger: Ledger, credentials: Credentials, timer: Timer, statements: list[str]
):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    assert used(ledger) is None
    statements.clear()
    for second in range(0, 130, 5):
        timer.now_s += FRESH_S
        credentials.verify(text, now=NOW + second * SECOND)
    assert used(ledger) == NOW + 120 * SECOND
    assert sum(one.startswith("UPDATE") for one in statements) == 3


def test_to_be_proven_again_while_a_call_waits_is_no_use(
    ledger: Ledger, credentials: Credentials, timer: Timer
):
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    for _ in range(3):
        timer.now_s += USED_EVERY_S
        assert credentials.verify(text, now=NOW, again=True).id == made.id
    assert used(ledger) is None
    credentials.revoke(made.id, now=NOW)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW, again=True)


def test_several_edges_note_one_use_a_minute(ledger: Ledger, credentials: Credentials):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    for second in (0, 20, 40, 60, 80):
        Credentials(ledger).verify(text, now=NOW + second * SECOND)
    assert used(ledger) == NOW + 60 * SECOND


def test_a_failed_login_is_no_use(ledger: Ledger, credentials: Credentials):
    _, text = credentials.create("worker", worker_id="w", expires_at=NOW + SECOND, now=NOW)
    for guess in (another_secret(text), tokens.issue("worker").text):
        with pytest.raises(AuthFailed):
            credentials.verify(guess, now=NOW)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW + SECOND)
    assert used(ledger) is None


def test_a_busy_ledger_delays_no_login(tmp_path_factory: pytest.TempPathFactory):
    url = f"sqlite:///{tmp_path_factory.mktemp('busy')}/ledger.sqlite3"
    migrate.upgrade(url)
    module_ledger, other = Ledger(url), Ledger(url)
    credentials = Credentials(module_ledger)
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    with other.write():
        assert credentials.verify(text, now=NOW).id == made.id
    assert module.USED_PATIENCE_S < 0.1
    assert used(other) is None
    module_ledger.close()
    other.close()


def test_while_the_ledger_is_away_a_known_token_is_good_but_stale(
    credentials: Credentials, timer: Timer, outage: Outage
):
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    outage.begin()
    assert not credentials.verify(text, now=NOW).stale
    timer.now_s += FRESH_S
    proven = credentials.verify(text, now=NOW)
    assert (proven.id, proven.stale) == (made.id, True)
    with pytest.raises(AuthFailed):
        credentials.verify(another_secret(text), now=NOW)
    outage.end()
    timer.now_s += PROBE_S
    assert not credentials.verify(text, now=NOW).stale


def test_a_stale_token_is_good_for_fifteen_minutes_and_not_past_its_own_end(
    credentials: Credentials, timer: Timer, outage: Outage
):
    _, text = credentials.create(
        "worker", worker_id="w", expires_at=NOW + timedelta(minutes=5), now=NOW
    )
    _, lasting = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    credentials.verify(lasting, now=NOW)
    outage.begin()
    timer.now_s += STALE_S - 0.01
    assert credentials.verify(lasting, now=NOW).stale
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW + timedelta(minutes=5))
    timer.now_s += 0.01
    with pytest.raises(LedgerUnavailable):
        credentials.verify(lasting, now=NOW)
    assert STALE_S == 15 * 60


def test_a_token_never_seen_or_known_to_be_revoked_is_not_believed_while_the_ledger_is_away(
    ledger: Ledger, credentials: Credentials, timer: Timer, outage: Outage
):
    _, never_seen = credentials.create("worker", worker_id="w", now=NOW)
    made, revoked = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(revoked, now=NOW)
    Credentials(ledger).revoke(made.id, now=NOW)
    timer.now_s += FRESH_S
    with pytest.raises(AuthFailed):
        credentials.verify(revoked, now=NOW)
    outage.begin()
    timer.now_s += FRESH_S
    for text in (never_seen, revoked):
        with pytest.raises(LedgerUnavailable):
            credentials.verify(text, now=NOW)


def test_a_revocation_that_redis_knows_holds_while_the_ledger_is_away(
    ledger: Ledger, timer: Timer, outage: Outage
):
    told: set[str] = set()
    credentials = Credentials(ledger, is_revoked=told.__contains__, timer=timer)
    made, text = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    outage.begin()
    timer.now_s += FRESH_S
    assert credentials.verify(text, now=NOW).stale
    told.add(made.id)
    with pytest.raises(AuthFailed):
        credentials.verify(text, now=NOW)
    told.clear()
    with pytest.raises(LedgerUnavailable):
        credentials.verify(text, now=NOW)


def test_a_ledger_that_is_away_is_asked_by_one_call_in_five_seconds(
    credentials: Credentials, timer: Timer, outage: Outage
):
    _, text = credentials.create("worker", worker_id="w", now=NOW)
    credentials.verify(text, now=NOW)
    outage.begin()
    timer.now_s += FRESH_S
    for _ in range(20):
        assert credentials.verify(text, now=NOW).stale
        with pytest.raises(LedgerUnavailable):
            credentials.verify(tokens.issue("worker").text, now=NOW)
    assert outage.asked == 1
    timer.now_s += PROBE_S
    for _ in range(20):
        assert credentials.verify(text, now=NOW).stale
    assert outage.asked == 2


def test_nothing_in_a_dump_of_the_ledger_lets_anyone_in(ledger: Ledger, credentials: Credentials):
    for kind, worker in (("worker", "w"), ("operator", None), ("producer", None)):
        _, text = credentials.create(kind, worker_id=worker, now=NOW)
        credentials.verify(text, now=NOW)
    with ledger.read() as connection:
        rows = connection.execute(sa.select(CredentialRow.__table__)).mappings().all()
    values = [str(value) for row in rows for value in row.values()]
    guesses = list(values)
    for row in rows:
        for value in (row["secret_sha256"], row["secret_sha256"][:43]):
            short = next(k for k, kind in tokens.KINDS.items() if kind == row["kind"])
            body = f"drb_{short}_{row['id']}_{value}"
            guesses.append(f"{body}_{tokens._base62(zlib.crc32(body.encode()), 6)}")
    assert len(guesses) > 30
    for guess in guesses:
        with pytest.raises(AuthFailed):
            credentials.verify(guess, now=NOW)


def test_the_list_shows_the_newest_first_and_no_secret(credentials: Credentials):
    made = [credentials.create("worker", worker_id=f"w{n}", now=NOW + n * SECOND) for n in range(5)]
    operator, _ = credentials.create("operator", now=NOW + 9 * SECOND)
    assert credentials.list()[0].id == operator.id
    listed = credentials.list(kind="worker", limit=3)
    assert [one.worker_id for one in listed] == ["w4", "w3", "w2"]
    secrets = [text.split("_")[3] for _, text in made]
    assert not any(secret in repr(credentials.list()) for secret in secrets)


def test_threads_share_what_is_believed(credentials: Credentials):
    made = [credentials.create("worker", worker_id=f"w{n}", now=NOW) for n in range(20)]

    def look(number: int) -> bool:
        credential, text = made[number % len(made)]
        return credentials.verify(text, now=NOW).id == credential.id

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(400)))
