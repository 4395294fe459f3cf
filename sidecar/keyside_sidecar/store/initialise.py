"""Making a store, and bringing an older one to this program's schema."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert

from keyside_sidecar.errors import StartupError, StoreUnavailable
from keyside_sidecar.store import schema
from keyside_sidecar.store.authentication import STORE_ID_LENGTH, Authenticator
from keyside_sidecar.store.database import Database
from keyside_sidecar.store.location import (
    list_side_files,
    parse_store_url,
    require_safe_directory,
)
from keyside_sidecar.store.records import to_microseconds
from keyside_sidecar.store.tables import store_meta

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.custody import Custodian

_MODE: Final = 0o600
_BUSY_TIMEOUT_S: Final = 5.0
_EX_CANTCREAT: Final = 73


def initialise_store(
    url: str, custodian: Custodian, *, uid: int, gid: int, now: datetime | None = None
) -> bytes:
    """Make a new, empty store, durably, and return its id (16 bytes).

    It is made under another name beside its place and then linked there: a store that exists is
    never overwritten, and one that was interrupted is never seen.

    Args:
        url: ``sqlite:////absolute/path``; its directory must exist.
        custodian: Keeps the root key that the store will belong to.
        uid: Who is to own the file.
        gid: Its group, which gets no permission.
        now: The time, aware; the host's unless given.

    Raises:
        StartupError: There is something at that path already, the directory is not safe, or the
            store can't be made.
        CustodianUnavailable: The custodian can't be reached.
    """
    path = parse_store_url(url)
    owners = frozenset({os.geteuid(), uid})
    require_safe_directory(path.parent, owners)
    for existing in (path, *list_side_files(path)):
        if os.path.lexists(existing):
            raise _already_there(existing)
    store_id = os.urandom(STORE_ID_LENGTH)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE))
        _fill(draft, owners, custodian, store_id, now or datetime.now(UTC))
        _settle(draft, uid, gid)
        os.link(draft, path)
    except FileExistsError as error:
        raise _already_there(path) from error
    except (OSError, StoreUnavailable) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartupError(
            f"the store {path} can't be made: {reason}",
            remedy=f"see that there is room and that this account may write to {path.parent}",
            exit_code=_EX_CANTCREAT,
        ) from error
    finally:
        for leftover in (draft, *list_side_files(draft)):
            with suppress(FileNotFoundError):
                leftover.unlink()
    _sync_directory(path.parent)
    return store_id


def migrate_store(url: str, *, owner_uids: frozenset[int] | None = None) -> bool:
    """Bring a store to this program's schema: all of the way, or not at all.

    Args:
        url: As for :func:`initialise_store`.
        owner_uids: Whose the file may be; by default the running account's.

    Returns:
        Whether anything was done.

    Raises:
        StartupError: The URL is not supported, or others can read or replace the file.
        StoreUnavailable: The store is missing or can't be used.
        StoreSchemaError: It is newer than this program, or no Keyside store.
    """
    owners = frozenset({os.geteuid()}) if owner_uids is None else owner_uids
    database = Database(parse_store_url(url), owners, _BUSY_TIMEOUT_S)
    try:
        with database.transaction(write=True) as connection:
            if schema.require_known(connection) == schema.HEAD:
                return False
            schema.upgrade(connection)
            return True
    finally:
        database.close()


def _fill(
    path: Path, owners: frozenset[int], custodian: Custodian, store_id: bytes, now: datetime
) -> None:
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
    database = Database(path, owners, _BUSY_TIMEOUT_S)
    try:
        with database.transaction(write=True) as connection:
            schema.upgrade(connection)
            connection.execute(insert(store_meta).values(**meta))
    finally:
        # The last connection to close folds the write-ahead log into the file and removes it.
        database.close()
    if any(os.path.lexists(side_file) for side_file in list_side_files(path)):
        raise StoreUnavailable("the new store's write-ahead log could not be folded in")


def _settle(path: Path, uid: int, gid: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if (uid, gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, _MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _already_there(path: Path) -> StartupError:
    return StartupError(
        f"{path} exists already and is not overwritten",
        remedy="a store holds keys that nothing can bring back; move it away by hand if it is "
        "really not needed",
        exit_code=_EX_CANTCREAT,
    )
