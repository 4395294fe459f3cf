"""The tables, as this program's schema revision has them; ``migrations/`` makes them.

Times are microseconds since 1970, UTC. ``generation`` is the store's generation when the row was
last written, and ``mac`` covers every other column that is not NULL (see authentication.py), so
that a later migration can add nullable columns without touching old rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect


class Blob(LargeBinary):
    """Bytes, exactly as the driver gave them.

    LargeBinary calls ``bytes()`` on whatever comes, and on SQLite anything may come: a number that
    someone put there would be turned into that many zero bytes. Here it stays what it is, and its
    row's MAC does not fit.
    """

    cache_ok = True

    def result_processor(
        self,
        dialect: Dialect,  # noqa: ARG002
        coltype: object,  # noqa: ARG002
    ) -> Callable[[Any], Any] | None:
        """Turn what a driver may give for bytes into bytes, and nothing else."""
        return lambda value: bytes(value) if isinstance(value, memoryview) else value


metadata: Final = MetaData()

store_meta: Final = Table(
    "store_meta",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("store_id", Blob, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("root_key_id", String(64), nullable=False),
    Column("keys_digest", Blob, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("mac", Blob, nullable=False),
    CheckConstraint("id = 1", name="store_meta_one_row"),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("current_number", BigInteger, nullable=False),
    # The highest number ever given out; numbers have no gaps, so it is the count as well.
    Column("last_number", BigInteger, nullable=False),
    Column("versions_digest", Blob, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("mac", Blob, nullable=False),
    CheckConstraint(
        "current_number >= 1 AND current_number <= last_number", name="keys_current_number"
    ),
)

key_versions: Final = Table(
    "key_versions",
    metadata,
    Column("key_name", String(63), ForeignKey("keys.name"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("version_id", Blob, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    # NULL once the version is destroyed: the row stays, the material does not.
    Column("wrapped", Blob),
    Column("root_key_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("activated_at", BigInteger),
    Column("archived_at", BigInteger),
    Column("made_by_uid", BigInteger),
    Column("generation", BigInteger, nullable=False),
    Column("mac", Blob, nullable=False),
    CheckConstraint("number >= 1 AND number <= 4294967295", name="key_versions_number"),
    CheckConstraint(
        "state IN ('PENDING', 'CURRENT', 'ARCHIVED', 'DISABLED', 'DESTROYED')",
        name="key_versions_state",
    ),
    CheckConstraint("(state = 'DESTROYED') = (wrapped IS NULL)", name="key_versions_destroyed"),
    Index(
        "key_versions_one_current",
        "key_name",
        unique=True,
        sqlite_where=text("state = 'CURRENT'"),
        postgresql_where=text("state = 'CURRENT'"),
    ),
)
