"""The first schema: the store itself, keys and their versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "store_meta",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("store_id", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("root_key_id", sa.String(64), nullable=False),
        sa.Column("keys_digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name="store_meta_one_row"),
    )
    op.create_table(
        "keys",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("current_number", sa.BigInteger(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("versions_digest", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "current_number >= 1 AND current_number <= last_number", name="keys_current_number"
        ),
    )
    op.create_table(
        "key_versions",
        sa.Column("key_name", sa.String(63), sa.ForeignKey("keys.name"), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("version_id", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("wrapped", sa.LargeBinary()),
        sa.Column("root_key_id", sa.String(64)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("activated_at", sa.BigInteger()),
        sa.Column("archived_at", sa.BigInteger()),
        sa.Column("made_by_uid", sa.BigInteger()),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("number >= 1 AND number <= 4294967295", name="key_versions_number"),
        sa.CheckConstraint(
            "state IN ('PENDING', 'CURRENT', 'ARCHIVED', 'DISABLED', 'DESTROYED')",
            name="key_versions_state",
        ),
        sa.CheckConstraint(
            "(state = 'DESTROYED') = (wrapped IS NULL)", name="key_versions_destroyed"
        ),
    )
    op.create_index(
        "key_versions_one_current",
        "key_versions",
        ["key_name"],
        unique=True,
        sqlite_where=sa.text("state = 'CURRENT'"),
        postgresql_where=sa.text("state = 'CURRENT'"),
    )
