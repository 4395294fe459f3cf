"""The store in a PostgreSQL database, for many hosts: its connections, and how they can fail.

A server that is away, stopped or hung, and a sidecar that is, must do no harm to the others: every
wait has an end, on this side (``_Connection``) and on the server's (``_make_options``).

The server must be asked directly or through a pooler in session mode: LISTEN and the settings of a
session do not survive a pooler that hands out a connection for one transaction.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from psycopg import errors, pq
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from keyside_sidecar.errors import StoreTampered, StoreUnavailable
from keyside_sidecar.store.location import require_private_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import PQGen
    from sqlalchemy import Connection, Engine, Table

    from keyside_sidecar.config.store_url import PostgresqlServer

R = TypeVar("R")

CHANNEL: Final = "keyside"
_POOL_SIZE: Final = 5
_BEGIN: Final = "keyside_begin"
_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Not READ WRITE: a server that is set to be read-only means it.
_WRITE: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ"
_FOUND: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Any constant will do; only init takes this lock.
_FOUNDING_LOCK: Final = 0x6B657973696465
_LEAST_CONNECT_TIMEOUT_S: Final = 2
_MARGIN_S: Final = 2.0
_KEEPALIVE: Final = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
# How often psycopg looks for signals while it waits.
_INTERVAL_S: Final = 0.1
# How soon a wait for changes notices that it was closed.
_SLICE_S: Final = 0.25
# libpq's version that knows require_auth.
_REQUIRE_AUTH_SINCE: Final = 160000
_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})

# The row's xmin is the transaction that wrote it last, so that a change is seen as soon as it is
# committed. The counters tell of rows that were written without a new generation, by whom ever;
# a session that stays open reports them within ten seconds. Usage, sidecars and time, which are
# written all the while, are left out, and so is everything else that the server does.
_TOKEN: Final = text(
    "SELECT (SELECT m.xmin::text || ' ' || m.generation::text FROM store_meta AS m WHERE m.id = 1),"
    " string_agg(concat_ws(' ', c.oid, pg_relation_filenode(c.oid),"
    " pg_stat_get_tuples_inserted(c.oid), pg_stat_get_tuples_updated(c.oid),"
    " pg_stat_get_tuples_deleted(c.oid)), ',' ORDER BY c.oid)"
    " FROM pg_class AS c WHERE c.oid IN"
    " (to_regclass('store_meta'), to_regclass('keys'), to_regclass('key_versions'))"
)
_TIME: Final = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
_ANNOUNCE: Final = text("SELECT pg_notify(:channel, '')")

# What to say besides the server's own words, which name the table or the role.
_ADVICE: Final = {
    "25006": "it is read-only: a standby, or set so; connect to the primary",
    "40001": "another process wrote the same rows; it may be tried again",
    "40P01": "another process wrote the same rows; it may be tried again",
    "42501": "grant the role what grants.sql does (keysided files show grants.sql)",
    "53100": "the server's disk is full",
    "55000": "a standby can't be written to; connect to the primary",
    "55P03": "another process has been writing for too long",
    "57014": "the server took too long",
}
# What psycopg says before libpq's own words.
_OF_THE_DRIVER: Final = ("connection is bad: ", "connection failed: ", "consuming input failed: ")


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """Gives up on a server that does not answer, which TCP alone would wait for without end."""

    patience_s: float | None = None

    def wait(self, gen: PQGen[R], interval: float = _INTERVAL_S, timeout: float | None = None) -> R:
        if timeout is not None or self.patience_s is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.patience_s)
        except errors._WaitTimeout:  # noqa: SLF001  (it has no public name)
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"the server did not answer within {self.patience_s:g} s"
            ) from None


class PostgresqlDatabase:
    """One database on a server, used by this process's threads. Open it after forking.

    At most ``_POOL_SIZE`` connections, and one more while changes are waited for.

    Args:
        server: Where it is.
        busy_timeout_s: How long to wait for a connection and for another process's write, in
            seconds.

    Raises:
        StartupError: Others could read the passfile or the client's key.
    """

    # Going through the store costs the server, and everybody who uses it.
    patrol_floor_s: float = 60.0
    announces_changes: bool = True

    def __init__(self, server: PostgresqlServer, busy_timeout_s: float) -> None:
        for name in ("passfile", "sslkey"):
            if name in server.parameters:
                require_private_secret(server.parameters[name], name)
        self._place = server.place
        self._parameters = _make_parameters(server, busy_timeout_s)
        self._patience_s = 2 * busy_timeout_s + _MARGIN_S
        self._brief_patience_s = busy_timeout_s
        self._engine = _create_engine(self._connect, busy_timeout_s)
        event.listen(self._engine, "checkin", self._shorten_patience)
        self._closed = threading.Event()
        self._listening = threading.Lock()
        self._listener: _Connection | None = None

    @contextmanager
    def transaction(self, *, lock: Table | None = None) -> Iterator[Connection]:
        """Run the body in one transaction; commit at its end, roll back on any exception.

        A writing transaction takes its lock before anything else: the state that it sees is that
        of its first query, and so holds what everybody before it committed.

        Raises:
            StoreUnavailable: The server is away, refuses, or takes too long. Nothing was changed,
                unless the error came from the commit itself, which is then whole or not there.
            StoreTampered: A constraint refused a row that checked rows can't have clashed with.
        """
        with self._begun(_READ if lock is None else _WRITE) as connection:
            if lock is not None:
                table = connection.dialect.identifier_preparer.format_table(lock)
                connection.exec_driver_sql(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield connection

    @contextmanager
    def founding(self) -> Iterator[Connection]:
        """Run the body in a transaction that may make tables, alone among those that do so.

        Raises:
            StoreUnavailable: As for :meth:`transaction`.
        """
        with self._begun(_FOUND) as connection:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _FOUNDING_LOCK}
            )
            yield connection

    def announce(self, connection: Connection) -> None:
        """Wake every :meth:`wait_for_change` when the transaction commits."""
        connection.execute(_ANNOUNCE, {"channel": CHANNEL})

    def read_change_token(self) -> object:
        """Return something that compares equal as long as nobody has written keys or versions.

        It changes once more, up to ten seconds after a change, when the server counts it.

        Raises:
            StoreUnavailable: As for a transaction.
        """
        with self._begun(None) as connection:
            return tuple(connection.execute(_TOKEN).one())

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait until another process announces a change, or for ``timeout_s`` seconds.

        Returns at once after it has connected anew, because it may have missed something.

        Raises:
            StoreUnavailable: The server is away. Raised at once: wait a while before trying again.
        """
        with self._listening, self._translated():
            try:
                self._listen_until(time.monotonic() + timeout_s)
            except psycopg.Error:
                self._stop_listening()
                raise
            if self._closed.is_set():
                self._stop_listening()

    def read_time_us(self, connection: Connection) -> int:
        """Return the server's clock, in microseconds since 1970; it moves within a transaction."""
        return int(connection.execute(_TIME).scalar_one())

    def scrub(self) -> None:
        """Do nothing: what was overwritten goes when the server vacuums (docs/operations.md)."""

    def close(self) -> None:
        """Close all connections, and end a wait; the next use opens new ones."""
        self._closed.set()
        # Whoever waits just now closes that connection, within a quarter of a second.
        if self._listening.acquire(blocking=False):
            try:
                self._stop_listening()
            finally:
                self._listening.release()
        self._engine.dispose()

    @contextmanager
    def _begun(self, begin: str | None) -> Iterator[Connection]:
        with (
            self._translated(),
            self._engine.connect().execution_options(**{_BEGIN: begin}) as connection,
            connection.begin(),
        ):
            # Until here the server had only to answer; now it may have to work, or to wait.
            driver_connection(connection).patience_s = self._patience_s
            yield connection

    def _listen_until(self, end_s: float) -> None:
        if self._closed.is_set():
            return
        if self._listener is None:
            self._listener = self._connect()
            self._listener.execute(f"LISTEN {CHANNEL}")
            return
        while not self._closed.is_set() and (left_s := end_s - time.monotonic()) > 0:
            notices = self._listener.notifies(timeout=min(left_s, _SLICE_S), stop_after=1)
            if list(notices):
                return

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with suppress(psycopg.Error):
                self._listener.close()
            self._listener = None

    def _connect(self) -> _Connection:
        connection = _Connection.connect(autocommit=True, **self._parameters)
        connection.patience_s = self._brief_patience_s
        return connection

    def _shorten_patience(self, connection: _Connection | None, _record: object) -> None:
        if connection is not None:
            connection.patience_s = self._brief_patience_s

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours; theirs repeat the statement, and rows in it."""
        try:
            yield
        except IntegrityError:
            raise StoreTampered("set of rows") from None
        except DBAPIError as error:
            raise self._unavailable(error.orig) from None
        except psycopg.Error as error:
            raise self._unavailable(error) from None
        except SQLAlchemyError:  # the pool's timeout
            raise StoreUnavailable("the store is busy: all its connections are in use") from None

    def _unavailable(self, error: BaseException | None) -> StoreUnavailable:
        said = _describe(error)
        advice = _ADVICE.get(getattr(error, "sqlstate", None) or "")
        return StoreUnavailable(
            f"the store can't be used: {self._place}: {said}{f' ({advice})' if advice else ''}"
        )


def driver_connection(connection: Connection) -> _Connection:
    """Return psycopg's connection behind SQLAlchemy's."""
    return cast("_Connection", connection.connection.driver_connection)


def _make_parameters(server: PostgresqlServer, busy_timeout_s: float) -> dict[str, Any]:
    parameters = {
        **_KEEPALIVE,
        "gssencmode": "disable",
        **server.parameters,
        "client_encoding": "UTF8",
        "connect_timeout": str(max(_LEAST_CONNECT_TIMEOUT_S, math.ceil(busy_timeout_s))),
        "tcp_user_timeout": str(int((2 * busy_timeout_s + _MARGIN_S) * 1000)),
        "options": _make_options(busy_timeout_s),
    }
    # Whoever stands in for the server while it is away must not be told the password.
    if parameters["sslmode"] not in _VERIFYING and pq.version() >= _REQUIRE_AUTH_SINCE:
        parameters["require_auth"] = "!password"
    return parameters


def _make_options(busy_timeout_s: float) -> str:
    settings = {
        "lock_timeout": f"{int(busy_timeout_s * 1000)}ms",
        "statement_timeout": f"{int(2 * busy_timeout_s * 1000)}ms",
        # A sidecar that is stopped while it holds the lock loses it.
        "idle_in_transaction_session_timeout": f"{int(2 * busy_timeout_s * 1000)}ms",
        "idle_session_timeout": "0",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        # Names mean the same tables to whoever connects.
        "search_path": "public",
        # What was committed is there after the server's crash: data may already be sealed.
        "synchronous_commit": "on",
    }
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


def _create_engine(connect: Callable[[], _Connection], busy_timeout_s: float) -> Engine:
    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
        # A server that was restarted meanwhile is not noticed by whoever asks next.
        pool_pre_ping=True,
        pool_use_lifo=True,
        hide_parameters=True,
        use_native_hstore=False,
    )

    # The driver's own transaction handling is off (autocommit).
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        statement = connection.get_execution_options().get(_BEGIN)
        if statement is not None:
            connection.exec_driver_sql(statement)

    return engine


def _describe(error: BaseException | None) -> str:
    """Return the server's or libpq's words on one line, without statement and rows."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    lines = (line.strip() for line in str(error).splitlines())
    words = " ".join(line for line in lines if line and not line.startswith("LINE "))
    for prefix in _OF_THE_DRIVER:
        words = words.removeprefix(prefix)
    return words
