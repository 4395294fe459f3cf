"""Where the store is, and whether anybody else could read or replace its file."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from keyside_sidecar.config.store_url import (
    POSTGRESQL_SCHEME,
    PostgresqlServer,
    parse_postgresql_url,
)
from keyside_sidecar.config.units import WrongValueError
from keyside_sidecar.errors import StartupError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_DRIVERS: Final = frozenset({"sqlite", "sqlite+pysqlite"})
# SQLite's own files beside the database: write-ahead log, its index, rollback journal.
SIDE_SUFFIXES: Final = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A database file on this host."""

    path: Path

    @property
    def place(self) -> str:
        """Names it in messages."""
        return str(self.path)


def locate_store(url: str) -> SqliteFile | PostgresqlServer:
    """Return what ``url`` names; ``place`` of either is fit for messages, a URL never is.

    Raises:
        StartupError: It isn't ``sqlite:////absolute/path`` or ``postgresql+psycopg://…``.
    """
    if url.partition(":")[0] == POSTGRESQL_SCHEME:
        try:
            return parse_postgresql_url(url)
        except WrongValueError as error:
            raise StartupError(f"this store URL {error}", remedy="correct url in [store]") from None
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if (
        parsed is None
        or parsed.drivername not in _DRIVERS
        or parsed.host
        or parsed.query
        or not parsed.database
        or not Path(parsed.database).is_absolute()
    ):
        raise StartupError(
            "this store URL is not supported",  # not quoted: it might hold a password
            remedy='write url = "sqlite:////absolute/path/keyside.db" or '
            "postgresql+psycopg://… in [store]",
        )
    return SqliteFile(Path(parsed.database))


def list_side_files(path: Path) -> Iterator[Path]:
    """Yield the names that SQLite uses beside ``path``."""
    for suffix in SIDE_SUFFIXES:
        yield path.with_name(path.name + suffix)


def require_safe_directory(directory: Path, owner_uids: frozenset[int]) -> None:
    """Check that only root or ``owner_uids`` can put files into ``directory``.

    Raises:
        StartupError: Someone else can, or it doesn't exist.
    """
    try:
        status = directory.stat()
    except OSError as error:
        raise StartupError(
            f"the store's directory {directory} can't be used: {error.strerror}",
            remedy=f"create {directory}, owned by the sidecar's account, mode 0700",
        ) from error
    if status.st_uid not in owner_uids | {0} or status.st_mode & 0o022:
        raise StartupError(
            f"someone else may replace files in {directory}: it belongs to uid {status.st_uid} "
            f"and has mode {stat.S_IMODE(status.st_mode):04o}",
            remedy=f"chmod 0700 {directory}, and chown it to the sidecar's account",
        )


def require_private_store(path: Path, owner_uids: frozenset[int]) -> os.stat_result:
    """Check that the store's files are readable by ``owner_uids`` only, and return the status.

    Looks with lstat and opens nothing: closing any descriptor of a SQLite file drops the locks
    that this process holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2).

    Raises:
        StoreUnavailable: There is no such file.
        StartupError: It belongs to someone else, can be read by others, or is no regular file.
    """
    require_safe_directory(path.parent, owner_uids)
    status = _require_private_file(path, owner_uids)
    if status is None:
        raise StoreUnavailable(
            f"there is no store at {path}",
            remedy="mount the file system that it is on, or make it from a backup with keysided "
            "restore FILE; keysided init makes an empty one, where there is no audit log either",
        )
    for side_file in list_side_files(path):
        _require_private_file(side_file, owner_uids)
    return status


def _require_private_file(path: Path, owner_uids: frozenset[int]) -> os.stat_result | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"{path} can't be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise StartupError(
            f"{path} is not a regular file", remedy="name the store's file itself in [store]"
        )
    if status.st_uid not in owner_uids:
        raise StartupError(
            f"{path} belongs to uid {status.st_uid}, not to the running account (uid "
            f"{os.geteuid()})",
            remedy=_tell_how_to_own(path, status.st_uid),
        )
    if status.st_mode & 0o077:
        raise StartupError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}; others can read or change it",
            remedy=f"chmod 0600 {path}",
        )
    return status


def _tell_how_to_own(path: Path, owner: int) -> str:
    chown = f"chown {os.geteuid()} {path}"
    if owner == 0 or path.name.endswith(SIDE_SUFFIXES):
        return f"find out who made it (a program that root ran on the store?), then {chown}"
    return (
        f"name the account with uid {owner} as user under [sidecar], and start keysided as it or "
        f"as root; or, if the store shall belong to the running account, {chown}"
    )


def require_private_secret(name: str, what: str) -> None:
    """Check that nobody but the running account can read a secret that the store's URL names.

    Args:
        name: The file.
        what: Names it in errors.

    Raises:
        StartupError: Others can, or it belongs to someone else, or it can't be looked at.
    """
    try:
        status = Path(name).stat()
    except OSError as error:
        raise StartupError(
            f"the store's {what} {name} can't be used: {error.strerror}",
            remedy="make it, owned by the sidecar's account, mode 0600",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise StartupError(f"the store's {what} {name} is not a regular file")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o077:
        raise StartupError(
            f"the store's {what} {name} belongs to uid {status.st_uid} and has mode "
            f"{stat.S_IMODE(status.st_mode):04o}; others could use it",
            remedy=f"chmod 0600 {name}, and chown it to the sidecar's account",
        )
