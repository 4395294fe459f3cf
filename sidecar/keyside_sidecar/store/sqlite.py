"""The store in a SQLite file: its connections, and every way in which it can be away.

A transaction runs on the file that was there when it began, or not at all: a file that was
deleted or replaced underneath would otherwise go on taking writes that nobody ever reads again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from keyside_sidecar.errors import StartupError, StoreTampered, StoreUnavailable
from keyside_sidecar.store.location import require_private_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine, Table

_POOL_SIZE: Final = 5
_FOLD_ATTEMPTS: Final = 5
_FOLD_PAUSE_S: Final = 0.01
_WRITES: Final = "keyside_writes"
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PRAGMAS: Final = (
    "foreign_keys = ON",
    "secure_delete = ON",
    # A committed rotation survives a power cut, not only a kill: data may already be sealed.
    "synchronous = FULL",
    # Nothing in the schema may call functions with side effects, whoever wrote it there.
    "trusted_schema = OFF",
)


class SqliteDatabase:
    """One SQLite file, used by this process's threads. Open it after forking, never before.

    Args:
        path: The file; must exist.
        owner_uids: Whose it may be.
        busy_timeout_s: How long to wait for another process's write, in seconds.

    Raises:
        StartupError: Others could read or replace it.
        StoreUnavailable: It is missing.
    """

    # Reading the whole file costs nobody else anything.
    patrol_floor_s: float = 1.0
    announces_changes: bool = False

    def __init__(self, path: Path, owner_uids: frozenset[int], busy_timeout_s: float) -> None:
        self._path = path
        self._owner_uids = owner_uids
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._identity = _identify(require_private_store(path, owner_uids))
        self._engine = _create_engine(self._connect, busy_timeout_s)
        self._watch: sqlite3.Connection | None = None
        self._watches = 0

    @contextmanager
    def transaction(self, *, lock: Table | None = None) -> Iterator[Connection]:
        """Run the body in one transaction; commit at its end, roll back on any exception.

        A reading transaction sees one state of the store. A writing one has the store to itself,
        whichever table it names.

        Raises:
            StoreUnavailable: The file is missing, was replaced, is locked for too long, can't be
                read or written, or the disk is full. Nothing was changed, unless the error came
                from the commit itself, which is then whole or not there.
            StoreTampered: A constraint refused a row that checked rows can't have clashed with.
        """
        write = lock is not None
        with self._translated():
            identity = self._attend()
            with (
                self._engine.connect().execution_options(**{_WRITES: write}) as connection,
                connection.begin(),
            ):
                yield connection
                if write and self._attend() != identity:
                    raise StoreUnavailable(f"{self._path} was replaced during a change")
        if write:
            self._fold_log_in()

    def announce(self, connection: Connection) -> None:
        """Do nothing: others see the file's data version move."""

    def read_change_token(self) -> object:
        """Return something that differs whenever another connection committed in between.

        Raises:
            StoreUnavailable: As for a transaction.
        """
        with self._translated():
            self._attend()
            with self._lock:
                if self._watch is None:
                    self._watch = self._connect()
                    self._watches += 1
                try:
                    (version,) = self._watch.execute("PRAGMA data_version").fetchone()
                except sqlite3.Error:
                    self._close_watch()
                    raise
                return self._watches, version

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait for ``timeout_s`` seconds, or until closed; nothing wakes it earlier."""
        self._closed.wait(timeout_s)

    def read_time_us(self, connection: Connection) -> int:  # noqa: ARG002
        """Return this host's time: all who use the file are on it."""
        return time.time_ns() // 1000

    def scrub(self) -> None:
        """Cut the write-ahead log off after a destruction; it may still hold what was overwritten.

        Best effort: a reader that is busy puts it off until the log is next begun anew.
        """
        with suppress(sqlite3.Error, SQLAlchemyError):
            pooled = self._engine.raw_connection()
            try:
                pooled.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                pooled.close()

    def close(self) -> None:
        """Close all connections, and end a wait; the next use opens new ones."""
        self._closed.set()
        self._disconnect()

    def _disconnect(self) -> None:
        with self._lock:
            self._close_watch()
        self._engine.dispose()

    def _fold_log_in(self) -> None:
        """Copy what was committed from the write-ahead log into the file itself.

        SQLite would do so after a thousand pages, years of rotations; and until then whoever copies
        or moves the file alone has none of them. Readers may put it off; the next change makes up
        for it. What was committed is committed either way.
        """
        with suppress(sqlite3.Error, SQLAlchemyError):
            pooled = self._engine.raw_connection()
            try:
                wanted = 0
                for _ in range(_FOLD_ATTEMPTS):
                    cursor = pooled.cursor()
                    cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    _, logged, folded = cursor.fetchone() or (0, 0, 0)
                    wanted = wanted or logged
                    if folded >= wanted or logged < wanted:  # the log has begun anew: all is folded
                        return
                    time.sleep(_FOLD_PAUSE_S)
            finally:
                pooled.close()

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: never makes a new, empty database where the store has gone.
        connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?mode=rw",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        # Text that isn't UTF-8 must reach the MAC check, not look like an outage.
        connection.text_factory = _decode
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(
                f"{self._path} can't have a write-ahead log; it must be on a local file system"
            )

    def _attend(self) -> tuple[int, int]:
        """Return which file is there now; leave the old one where it was replaced."""
        try:
            identity = _identify(os.lstat(self._path))
            if identity != self._identity:
                identity = _identify(require_private_store(self._path, self._owner_uids))
        except OSError as error:
            self._disconnect()
            raise StoreUnavailable(
                f"the store {self._path} is not there: {error.strerror}"
            ) from error
        except StartupError as error:
            self._disconnect()
            raise StoreUnavailable(f"{error}; {error.remedy}") from error
        if identity != self._identity:
            self._disconnect()
            self._identity = identity
        return identity

    def _close_watch(self) -> None:
        if self._watch is not None:
            with suppress(sqlite3.Error):
                self._watch.close()
            self._watch = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StoreTampered("set of rows") from error
        except DBAPIError as error:
            self._leave(error.orig)
            # error.orig only: SQLAlchemy's own text repeats the statement.
            raise StoreUnavailable(f"the store can't be used: {error.orig}") from error
        except sqlite3.Error as error:
            self._leave(error)
            raise StoreUnavailable(f"the store can't be used: {error}") from error
        except SQLAlchemyError as error:  # the pool's timeout
            raise StoreUnavailable("the store is busy: all its connections are in use") from error

    def _leave(self, error: BaseException | None) -> None:
        """Drop connections after an error that they may not recover from."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code & 0xFF not in _BUSY:
            self._disconnect()


def _create_engine(connect: Callable[[], sqlite3.Connection], busy_timeout_s: float) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
        hide_parameters=True,
    )

    # The driver's own transaction handling is off (isolation_level=None). A writer takes the lock
    # at once: one that reads first and upgrades later fails without waiting (SQLITE_BUSY_SNAPSHOT).
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _identify(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
