"""People's access: requests, grants, and what grants were used for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables, and nullable columns that leave the store's own row as it is."""
    op.add_column("store_meta", sa.Column("access_digest", sa.LargeBinary()))
    op.add_column("store_meta", sa.Column("access_ended", sa.BigInteger()))
    op.create_table(
        "access_requests",
        sa.Column("id", sa.String(15), primary_key=True),
        sa.Column("key_name", sa.String(63), nullable=False),
        sa.Column("requester_uid", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("max_uses", sa.BigInteger(), nullable=False),
        sa.Column("duration", sa.BigInteger(), nullable=False),
        sa.Column("policy_digest", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("levels", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("decide_by", sa.BigInteger(), nullable=False),
        sa.Column("deadline_observed", sa.BigInteger(), nullable=False),
        sa.Column("approved_at", sa.BigInteger()),
        sa.Column("activate_by", sa.BigInteger()),
        sa.Column("activated_at", sa.BigInteger()),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("credential_hash", sa.LargeBinary(), unique=True),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("uses_digest", sa.LargeBinary()),
        sa.Column("opened", sa.Text()),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("end_reason", sa.String(32)),
        sa.Column("ending", sa.Text()),
        sa.Column("ended_number", sa.BigInteger(), unique=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "state IN ('PENDING', 'APPROVED', 'ACTIVE', 'CLOSING', 'ENDED')",
            name="access_requests_state",
        ),
        sa.CheckConstraint(
            "(state = 'ENDED') = (ended_number IS NOT NULL)", name="access_requests_ended"
        ),
    )
    op.create_table(
        "access_uses",
        sa.Column("request_id", sa.String(15), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("envelope_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("context", sa.Text()),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
    )
