"""What workers are told, and what one holder of a job leaves to the next."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoint", sa.Text(), nullable=True))
    op.add_column(
        "workers",
        sa.Column("orders_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("workers", sa.Column("draining_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("workers", sa.Column("concurrency", sa.Integer(), nullable=True))
