"""What the store needs of a database; SQLite (sqlite.py) and PostgreSQL (postgresql.py) give it.

The statements are the same for both. What differs is here: how a writer is alone, how others hear
of a change, whose clock counts, and what is left of rows that were overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Table


class Database(Protocol):
    """A database that is open, used by this process's threads. Open it after forking."""

    @property
    def patrol_floor_s(self) -> float:
        """How soon after one another the whole store may be gone through, in seconds."""

    @property
    def announces_changes(self) -> bool:
        """Whether :meth:`wait_for_change` wakes when another process announces a change."""

    def transaction(self, *, lock: Table | None = None) -> AbstractContextManager[Connection]:
        """Run the body in one transaction; commit at its end, roll back on any exception.

        Args:
            lock: None for reading; all is read of one state of the store. With a table the
                transaction may write, alone among those that name the same table, and it sees
                everything that those before it committed.

        Raises:
            StoreUnavailable: The database is away, locked for too long, full, read-only or
                damaged. Nothing was changed, unless the error came from the commit itself, which
                is then whole or not there.
            StoreTampered: A constraint refused a row that checked rows can't have clashed with.
        """

    def announce(self, connection: Connection) -> None:
        """Tell other processes, when the transaction commits, that keys changed."""

    def read_change_token(self) -> object:
        """Return something that compares equal as long as nobody has written; cheap.

        It may differ where nothing was written, now and then.

        Raises:
            StoreUnavailable: As for a transaction.
        """

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait, on the calling thread, until a change is announced, or for ``timeout_s`` seconds.

        Returns early for no reason now and then, and always once closed. One thread at a time.

        Raises:
            StoreUnavailable: The database is away; the next call tries again.
        """

    def read_time_us(self, connection: Connection) -> int:
        """Return the clock that all users of the store share, in microseconds since 1970."""

    def scrub(self) -> None:
        """Remove, best effort, what is left of rows that were overwritten; never raises."""

    def close(self) -> None:
        """Close all connections, and end a wait; the next use opens new ones."""


def open_database(url: str, owner_uids: frozenset[int], busy_timeout_s: float) -> Database:
    """Open the database that ``url`` names; nothing is made there.

    Args:
        url: ``sqlite:////absolute/path`` or ``postgresql+psycopg://…`` (config/store_url.py).
        owner_uids: Whose a file may be; means nothing for PostgreSQL.
        busy_timeout_s: How long to wait for another process's write, in seconds.

    Raises:
        StartupError: The URL is not supported, or others can read or replace the file.
        StoreUnavailable: The file is missing. A server is asked only when it is used.
    """
    location = locate_store(url)
    if isinstance(location, SqliteFile):
        from keyside_sidecar.store.sqlite import SqliteDatabase

        return SqliteDatabase(location.path, owner_uids, busy_timeout_s)
    from keyside_sidecar.store.postgresql import PostgresqlDatabase

    return PostgresqlDatabase(location, busy_timeout_s)
