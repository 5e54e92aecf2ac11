"""What was heard and is not yet carried out, and where it is written down."""

from types import SimpleNamespace
from typing import Any

import fakeredis

from broker.bridge.revokes import HEARD, Revoke, Revokes


class Racing(fakeredis.FakeRedis):
    """A Redis that is slow to write, while another thread carries out what there is."""

    revokes: Revokes

    def hset(self, *args: Any, **more: Any) -> Any:
        """Write after the other thread."""
        self.revokes.step()
        return super().hset(*args, **more)


def test_a_revoke_that_was_carried_out_is_not_written_down_for_the_next_bridge():
    client = Racing(decode_responses=True)
    queue: Any = SimpleNamespace(ledger=None, reservations=SimpleNamespace(client=client))
    client.revokes = Revokes(queue)
    client.revokes.hear(Revoke())
    assert client.hlen(HEARD) == 1
    assert client.revokes.step() == 1
    assert client.hlen(HEARD) == 0
