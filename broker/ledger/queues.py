"""The rows of queues: which there are, and the generation of each one's reservations."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from broker.ledger.models import QueueRow

queues: Final[sa.Table] = QueueRow.__table__  # type: ignore[assignment]


def add_queue(conn: sa.Connection, name: str) -> bool:
    """Make a queue known; False when it was."""
    known = conn.execute(sa.select(queues.c.name).where(queues.c.name == name)).first()
    if known is None:
        conn.execute(queues.insert().values(name=name, generation=1))
    return known is None


_QUEUE_NAMES: Final = sa.select(queues.c.name).order_by(queues.c.name)


def queue_names(conn: sa.Connection) -> list[str]:
    """List the queues that ever had a job."""
    return list(conn.scalars(_QUEUE_NAMES))


def generation(conn: sa.Connection, name: str) -> int | None:
    """Read a queue's generation."""
    return conn.scalar(sa.select(queues.c.generation).where(queues.c.name == name))


def bump_generation(conn: sa.Connection, name: str) -> int:
    """Start the next generation of a queue's reservations."""
    statement = (
        queues.update()
        .where(queues.c.name == name)
        .values(generation=queues.c.generation + 1)
        .returning(queues.c.generation)
    )
    return int(conn.execute(statement).scalar_one())
