"""Making a store, and bringing an older one to this program's schema."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, text

from keyside._new_file import NewFile
from keyside._temporary import sweep_folder
from keyside_sidecar.errors import StartupError, StoreUnavailable
from keyside_sidecar.store import schema
from keyside_sidecar.store.authentication import STORE_ID_LENGTH, Authenticator
from keyside_sidecar.store.database import open_database
from keyside_sidecar.store.location import (
    SqliteFile,
    list_side_files,
    locate_store,
    require_safe_directory,
)
from keyside_sidecar.store.records import to_microseconds
from keyside_sidecar.store.sqlite import SqliteDatabase
from keyside_sidecar.store.tables import metadata, store_meta

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from sqlalchemy import Connection

    from keyside_sidecar.config.store_url import PostgresqlServer
    from keyside_sidecar.custody import Custodian

_MODE: Final = 0o600
_BUSY_TIMEOUT_S: Final = 5.0
_EX_CANTCREAT: Final = 73


class PlaceTaken(StartupError):
    """There is something already where a store is to be made on a server."""


def initialise_store(
    url: str, custodian: Custodian, *, uid: int, gid: int, now: datetime | None = None
) -> bytes:
    """Make a new, empty store, durably, and return its id (16 bytes).

    In a file: it is made under another name beside its place and then linked there; a store that
    exists is never overwritten, and one that was interrupted is never seen. On a server: in one
    transaction.

    Args:
        url: ``sqlite:////absolute/path``, whose directory must exist, or ``postgresql+psycopg://…``,
            whose database must.
        custodian: Keeps the root key that the store will belong to.
        uid: Who is to own the file.
        gid: Its group, which gets no permission.
        now: The time, aware; the host's unless given.

    Raises:
        StartupError: There is something in that place already, the directory is not safe, or the
            store can't be made.
        StoreUnavailable: The server is away, or does not let this role make tables.
        CustodianUnavailable: The custodian can't be reached.
    """
    location = locate_store(url)
    if isinstance(location, SqliteFile):
        store_id = os.urandom(STORE_ID_LENGTH)
        meta = _compose_meta(custodian, store_id, now or datetime.now(UTC))
        make_file(location.path, uid, gid, lambda connection: _insert_meta(connection, meta))
        return store_id
    with NewPostgresqlStore(location) as new:
        return new.make(custodian, now)


class NewPostgresqlStore:
    """A store that is to be made on a server.

    It is connected to at once, under the account of that moment: a command may become another
    account before it has the root key and makes the store.

    Args:
        server: The database.

    Raises:
        PlaceTaken: A store is there already, or another program's tables.
        StartupError: The database is not fit for one.
        StoreUnavailable: The server is away, or refuses this role.
    """

    def __init__(self, server: PostgresqlServer) -> None:
        from keyside_sidecar.store.postgresql import PostgresqlDatabase

        self._place = server.place
        self._database = PostgresqlDatabase(server, _BUSY_TIMEOUT_S)
        try:
            with self._database.founding() as connection:
                self._require_empty(connection)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def make(self, custodian: Custodian, now: datetime | None = None) -> bytes:
        """Make the store and return its id (16 bytes): all of it, or nothing.

        Raises:
            StartupError: A store is there by now.
            StoreUnavailable: The server is away, or does not let this role make tables.
            CustodianUnavailable: The custodian can't be reached.
        """
        store_id = os.urandom(STORE_ID_LENGTH)
        meta = _compose_meta(custodian, store_id, now or datetime.now(UTC))
        self.fill(lambda connection: _insert_meta(connection, meta))
        return store_id

    def fill(self, write: Callable[[Connection], object]) -> None:
        """Make the tables, and have the rows of a store written into them: all, or nothing.

        Args:
            write: Is given the connection, within the transaction.

        Raises:
            StartupError: A store is there by now.
            StoreUnavailable: As for :meth:`make`.
        """
        with self._database.founding() as connection:
            self._require_empty(connection)
            schema.upgrade(connection)
            write(connection)

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def _require_empty(self, connection: Connection) -> None:
        for table in ("alembic_version", *metadata.tables):
            found = connection.execute(text("SELECT to_regclass(:name)"), {"name": table}).scalar()
            if found is not None:
                raise PlaceTaken(
                    f"there is a table {table} in {self._place} already; nothing was changed",
                    remedy="use an empty database: a store holds keys that nothing can bring back, "
                    "and another program's tables must not be mixed with it",
                    exit_code=_EX_CANTCREAT,
                )
        encoding = connection.execute(text("SHOW server_encoding")).scalar()
        if encoding != "UTF8":
            raise StartupError(
                f"the database {self._place} has the encoding {encoding}, and Keyside needs UTF8",
                remedy="make it with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
                exit_code=_EX_CANTCREAT,
            )


def make_file(path: Path, uid: int, gid: int, write: Callable[[Connection], object]) -> None:
    """Make a SQLite file with the rows of a store, under another name, and link it to its place.

    Args:
        path: Where; nothing may be there.
        uid: Who is to own the file.
        gid: Its group, which gets no permission.
        write: Writes the rows into empty tables, in one transaction; whatever it raises leaves
            nothing behind.

    Raises:
        StartupError: There is something in that place, its directory is not safe, or the file can't
            be made.
    """
    owners = frozenset({os.geteuid(), uid})
    require_safe_directory(path.parent, owners)
    for existing in (path, *list_side_files(path)):
        if os.path.lexists(existing):
            raise _already_there(existing)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sweep_folder(folder)
            # SQLite opens files by name: this one has a temporary name, and no other before its own
            with NewFile(folder, _MODE, named=True) as file:
                _fill(path.with_name(file.name), owners, write)
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.descriptor, uid, gid)
                os.fchmod(file.descriptor, _MODE)
                file.add(path.name)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise _already_there(path) from error
    except (OSError, StoreUnavailable) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartupError(
            f"the store {path} can't be made: {reason}",
            remedy=f"see that there is room and that this account may write to {path.parent}",
            exit_code=_EX_CANTCREAT,
        ) from error


def migrate_store(url: str, *, owner_uids: frozenset[int] | None = None) -> str | None:
    """Bring a store to this program's schema: all of the way, or not at all.

    Args:
        url: As for :func:`initialise_store`.
        owner_uids: Whose the file may be; by default the running account's.

    Returns:
        The revision that it had, or None where there was nothing to do.

    Raises:
        StartupError: The URL is not supported, or others can read or replace the file.
        StoreUnavailable: The store is missing or can't be used.
        StoreSchemaError: It is newer than this program, or no Keyside store.
    """
    owners = frozenset({os.geteuid()}) if owner_uids is None else owner_uids
    database = open_database(url, owners, _BUSY_TIMEOUT_S)
    try:
        # Looked at first: on a server, a table that isn't there can't be locked.
        with database.transaction() as connection:
            if schema.require_known(connection) == schema.HEAD:
                return None
        with database.transaction(lock=store_meta) as connection:
            before = schema.require_known(connection)
            if before == schema.HEAD:
                return None
            schema.upgrade(connection)
            return before
    finally:
        database.close()


def _fill(path: Path, owners: frozenset[int], write: Callable[[Connection], object]) -> None:
    try:
        database = SqliteDatabase(path, owners, _BUSY_TIMEOUT_S)
        try:
            with database.transaction(lock=store_meta) as connection:
                schema.upgrade(connection)
                write(connection)
        finally:
            # The last connection to close folds the write-ahead log into the file and removes it.
            database.close()
        if any(os.path.lexists(side_file) for side_file in list_side_files(path)):
            raise StoreUnavailable("the new store's write-ahead log could not be folded in")
    finally:
        for leftover in list_side_files(path):
            with suppress(FileNotFoundError):
                leftover.unlink()


def _compose_meta(
    custodian: Custodian, store_id: bytes, now: datetime
) -> dict[str, int | str | bytes]:
    authenticator = Authenticator(custodian, store_id)
    meta: dict[str, int | str | bytes] = {
        "id": 1,
        "store_id": store_id,
        "generation": 1,
        "root_key_id": custodian.key_id,
        "keys_digest": authenticator.seal_sum(0),
        "created_at": to_microseconds(now),
    }
    meta["mac"] = authenticator.compute_mac(store_meta.name, meta)
    return meta


def _insert_meta(connection: Connection, meta: dict[str, int | str | bytes]) -> None:
    connection.execute(insert(store_meta).values(**meta))


def _already_there(path: Path) -> StartupError:
    return StartupError(
        f"{path} exists already and is not overwritten",
        remedy="a store holds keys that nothing can bring back; move it away by hand if it is "
        "really not needed",
        exit_code=_EX_CANTCREAT,
    )
