"""Orders of the edge, heard while somebody here has use for them.

An order is how things stand and not a message: drain or not, how many slots, which jobs to stop.
An idle daemon that waits for jobs needs no second waiting call, for the edge ends its claim when it
has orders; every answer of the edge says how far the orders have got, and what is newer is fetched
at once. So an idle worker costs the edge one waiting call, and one that works two.
"""

import logging
import threading
from collections.abc import Callable

from remote_worker.client import Client
from remote_worker.errors import Refused, Unanswered
from remote_worker.job import Standing

log = logging.getLogger(__name__)

#: what the edge calls it in its list of features
FEATURE = "control"
#: an idle daemon listens when it is told to, and by itself as seldom
_LOOK_S = 30.0
#: at least between two calls that found nothing, whatever the edge does
_PAUSE_S = 0.5
_UNAUTHORIZED = 401
_MISSING = frozenset({404, 405})


class Control:
    """The thread that listens for orders."""

    def __init__(
        self,
        client: Client,
        *,
        wait_s: int,
        needed: Callable[[], bool],
        obey: Callable[[Standing], None],
        locked_out: Callable[[], None] = lambda: None,
    ) -> None:
        """Obey what comes; wait for it only while ``needed``: a job runs, or nothing is claimed.

        ``locked_out`` hears that the edge no longer takes the credential.
        """
        self._client = client
        self._wait_s = wait_s
        self._needed = needed
        self._obey = obey
        self._locked_out = locked_out
        self._cursor = 0
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        client.wire.on_cursor(self._heard)

    def start(self) -> None:
        """Begin to listen."""
        self._news.set()
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; a call that waits is left behind."""
        self._stop.set()
        self._news.set()

    def look(self) -> None:
        """Listen now if there is a need: something has changed here."""
        self._news.set()

    def _heard(self, cursor: int) -> None:
        """Learn from any answer how far the orders have got."""
        if cursor > self._cursor:
            self._news.set()

    def _run(self) -> None:
        """Listen until stopped, or until the edge turns out to know no orders."""
        tries = 0
        while not self._stop.is_set():
            needed = self._needed()
            if not needed and not self._news.wait(_LOOK_S):
                continue
            self._news.clear()
            try:
                standing = self._client.wire.control(
                    cursor=self._cursor, wait_s=self._wait_s if needed else 0
                )
            except Unanswered as error:
                tries += 1
                self._news.set()
                self._stop.wait(self._client.pause_s(tries, error))
            except Refused as no:
                if no.status in _MISSING:
                    log.info("the edge gives no orders: %s", no, extra={"action": "control"})
                    return
                tries += 1
                if no.status == _UNAUTHORIZED:
                    self._locked_out()
                log.warning("no orders heard: %s", no, extra={"action": "control"})
                self._stop.wait(self._client.pause_s(tries))
            else:
                tries = 0
                self._take(standing)

    def _take(self, standing: Standing) -> None:
        """Obey what is new."""
        if standing.cursor <= self._cursor:
            self._stop.wait(_PAUSE_S)
            return
        self._cursor = standing.cursor
        self._obey(standing)
