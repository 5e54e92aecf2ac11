"""The time limits that a task brought."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("time_limit_s", "soft_time_limit_s"):
        op.add_column("jobs", sa.Column(name, sa.Float(), nullable=True))
