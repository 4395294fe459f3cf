"""Rollover by itself: schedules, usage, registered sidecars and observed time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OF_VERSIONS = (
    "created_observed",
    "activated_observed",
    "disabled_at",
    "disabled_by_uid",
    "destroy_requested_at",
    "destroy_requested_by_uid",
    "destroy_due",
    "destroy_not_before",
    "destroyed_at",
)


def upgrade() -> None:
    """Add nullable columns, which leave old rows' MACs as they are, and three tables."""
    op.add_column("store_meta", sa.Column("observed_floor", sa.BigInteger()))
    op.add_column("keys", sa.Column("pending_number", sa.BigInteger()))
    op.add_column("keys", sa.Column("scheduled_count", sa.BigInteger()))
    for name in _OF_VERSIONS:
        op.add_column("key_versions", sa.Column(name, sa.BigInteger()))
    op.create_table(
        "version_usage",
        sa.Column("key_name", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("reserved_messages", sa.BigInteger(), nullable=False),
        sa.Column("returned_messages", sa.BigInteger(), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("returned_bytes", sa.BigInteger(), nullable=False),
        sa.Column("last_sealed_at", sa.BigInteger()),
        sa.Column("last_opened_at", sa.BigInteger()),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "sidecars",
        sa.Column("sidecar_id", sa.LargeBinary(), primary_key=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("boot", sa.String(128), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("start_ticks", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("generation_seen", sa.BigInteger(), nullable=False),
        sa.Column("root_key_ids", sa.String(255), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "store_time",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("observed", sa.BigInteger(), nullable=False),
        sa.Column("tick", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name="store_time_one_row"),
    )
