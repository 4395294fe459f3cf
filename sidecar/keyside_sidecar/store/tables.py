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
    Text,
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
    # The observed time (observed.py) of the last change; NULL for 0.
    Column("observed_floor", BigInteger),
    # Of the requests for access that have not ended; NULL before the first.
    Column("access_digest", Blob),
    # How many have ended; NULL for none.
    Column("access_ended", BigInteger),
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
    # The successor that exists already; NULL where there is none.
    Column("pending_number", BigInteger),
    # How many versions have a destroy_due; NULL for none.
    Column("scheduled_count", BigInteger),
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
    # Observed time (observed.py), in microseconds.
    Column("created_observed", BigInteger),
    Column("activated_observed", BigInteger),
    Column("disabled_at", BigInteger),
    Column("disabled_by_uid", BigInteger),
    Column("destroy_requested_at", BigInteger),
    Column("destroy_requested_by_uid", BigInteger),
    # Observed time, in microseconds; NULL where no destruction is scheduled.
    Column("destroy_due", BigInteger),
    # By the wall clock, too; whichever is later.
    Column("destroy_not_before", BigInteger),
    Column("destroyed_at", BigInteger),
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

# A person's request for access, to the end of the grant. The first group of columns never changes.
access_requests: Final = Table(
    "access_requests",
    metadata,
    Column("id", String(15), primary_key=True),
    Column("key_name", String(63), nullable=False),
    Column("requester_uid", BigInteger, nullable=False),
    # JSON, as what people wrote is; see access_rows.py.
    Column("asked", Text, nullable=False),
    Column("max_uses", BigInteger, nullable=False),
    Column("duration", BigInteger, nullable=False),
    Column("policy_digest", Blob, nullable=False),
    Column("state", String(16), nullable=False),
    Column("levels", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("decide_by", BigInteger, nullable=False),
    # Observed time (observed.py): when the state that it is in runs out.
    Column("deadline_observed", BigInteger, nullable=False),
    # JSON: the same deadline once more for each boot of a host (access/boot_deadlines.py).
    Column("boot_deadlines", Text),
    Column("approved_at", BigInteger),
    Column("activate_by", BigInteger),
    Column("activated_at", BigInteger),
    Column("expires_at", BigInteger),
    Column("credential_hash", Blob, unique=True),
    Column("used", BigInteger, nullable=False),
    # Of its rows in access_uses; NULL before the first.
    Column("uses_digest", Blob),
    Column("opened", Text),
    Column("ended_at", BigInteger),
    Column("end_reason", String(32)),
    Column("ending", Text),
    # 1, 2, 3 … in the order of ending; NULL before that. Its index finds the open ones as well,
    # however many have ended.
    Column("ended_number", BigInteger, unique=True),
    Column("generation", BigInteger, nullable=False),
    Column("mac", Blob, nullable=False),
    CheckConstraint(
        "state IN ('PENDING', 'APPROVED', 'ACTIVE', 'CLOSING', 'ENDED')",
        name="access_requests_state",
    ),
    CheckConstraint("(state = 'ENDED') = (ended_number IS NOT NULL)", name="access_requests_ended"),
)

# What grants were used for. A row is written once.
access_uses: Final = Table(
    "access_uses",
    metadata,
    Column("request_id", String(15), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("used_at", BigInteger, nullable=False),
    Column("operation", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("envelope_sha256", Blob, nullable=False),
    Column("context", Text),
    Column("mac", Blob, nullable=False),
)

# The three below change often and lie outside the store's generation and its digests: a row of
# theirs can be put back as it once was, but only in directions that do no harm (see the modules
# that use them), and a process refuses to see one go back.

version_usage: Final = Table(
    "version_usage",
    metadata,
    Column("key_name", String(63), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("reserved_messages", BigInteger, nullable=False),
    Column("returned_messages", BigInteger, nullable=False),
    Column("reserved_bytes", BigInteger, nullable=False),
    Column("returned_bytes", BigInteger, nullable=False),
    Column("last_sealed_at", BigInteger),
    Column("last_opened_at", BigInteger),
    Column("mac", Blob, nullable=False),
)

sidecars: Final = Table(
    "sidecars",
    metadata,
    Column("sidecar_id", Blob, primary_key=True),
    Column("host", String(255), nullable=False),
    # What tells this boot and process namespace from all others.
    Column("boot", String(128), nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("start_ticks", BigInteger, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("generation_seen", BigInteger, nullable=False),
    # Space-separated ids of the root keys that the process could use.
    Column("root_key_ids", String(255), nullable=False),
    # When it withdrew, or was seen to be gone; the row goes a while later.
    Column("ended_at", BigInteger),
    Column("mac", Blob, nullable=False),
)

store_time: Final = Table(
    "store_time",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("observed", BigInteger, nullable=False),
    Column("tick", BigInteger, nullable=False),
    Column("mac", Blob, nullable=False),
    CheckConstraint("id = 1", name="store_time_one_row"),
)
