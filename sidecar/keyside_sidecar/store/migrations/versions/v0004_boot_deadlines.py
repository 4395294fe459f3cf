"""Deadlines of requests and grants by the clock of a host's boot, which nobody can set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a nullable column. A grant that has none ends; a request is given one."""
    op.add_column("access_requests", sa.Column("boot_deadlines", sa.Text()))
