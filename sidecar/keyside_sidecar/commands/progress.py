"""The progress of an earlier ``keysided init``: where it was interrupted, if that is what happened.

``init`` makes three things, each there whole or not at all, and in this order::

    nothing ──► root key ──► store (empty) ──► audit log ──► all there

A state on this line is gone on from. Anything else is a host that was set up and has lost
something: whatever ``init`` made there would stand in the way of what is lost.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside_sidecar.audit.creation import find_log, require_no_log, require_safe_log_directory
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.errors import CustodyError, StartupError, StoreSchemaError
from keyside_sidecar.store import Store
from keyside_sidecar.store.initialise import NewPostgresqlStore, PlaceTaken
from keyside_sidecar.store.location import SqliteFile, locate_store, require_safe_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from keyside_sidecar.config import Config
    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.supervisor import Account

_EX_CANTCREAT: Final = 73


@dataclass(frozen=True, slots=True)
class Progress:
    """What is there already.

    Args:
        root_key: Its id; None where there is none.
        has_store: There is an empty store that belongs to it.
        server: Where the store is to be made, if that is a server.
    """

    root_key: str | None
    has_store: bool
    server: NewPostgresqlStore | None = None


def find_progress(
    config: Config,
    url: str,
    account: Account | None,
    *,
    connect_as: Account | None,
    stack: ExitStack,
) -> Progress:
    """Look at what is there, as the account that is to use it; change nothing.

    Args:
        config: The configuration.
        url: The store's.
        account: Whom the sidecar runs as; None: as this process.
        connect_as: Whom to connect to a server as; None: as this process.
        stack: Closes the connection to the server.

    Raises:
        StartupError: All is there, or what is there is no interrupted ``init``, or can't be used.
        StoreUnavailable: The server is away.
        CustodyError: The root key can't be used, or is not the store's.
    """
    location = locate_store(url)
    with acting_as(account):
        require_safe_log_directory(config.audit.path.parent, os.geteuid())
        if isinstance(location, SqliteFile):
            # The store's directory is the account's, because SQLite writes beside the store.
            require_safe_directory(location.path.parent, frozenset({os.geteuid()}))
        # Asked for as the account: it has to be able to go where the root key lies.
        has_root_key = _is_there(config.root_key.path)
        custodian = open_custodian(config.root_key) if has_root_key else None
    server = taken = None
    if isinstance(location, SqliteFile):
        with acting_as(account):
            has_store = _is_there(location.path)
    else:
        # Connected to before the root key is made: a server is often not ready for a store.
        try:
            with acting_as(connect_as):
                server = stack.enter_context(NewPostgresqlStore(location))
        except PlaceTaken as error:
            taken = error
        has_store = taken is not None
    if custodian is None:
        if has_store:
            raise _refuse(
                f"there is no root key at {config.root_key.path}, and a store at {location.place} "
                "already",
                f"restore the root key from its backup to {config.root_key.path}: a new one could "
                "not open that store",
            )
        require_no_log(config.audit.path)
        return Progress(None, has_store=False, server=server)
    if not has_store:
        if find_log(config.audit.path) is not None:
            raise _refuse(
                f"there are a root key at {config.root_key.path} and an audit log at "
                f"{config.audit.path} already, and no store at {location.place}: this host was "
                "set up, and has lost its store",
                "mount the file system that it is on, or keysided restore a backup; to begin "
                "anew, move root key and all files of the log away, and keep them",
            )
        return Progress(custodian.key_id, has_store=False, server=server)
    with acting_as(account if isinstance(location, SqliteFile) else connect_as):
        key_count = _count_keys(url, custodian, taken)
    _require_only_begun(config, location.place, key_count)
    return Progress(custodian.key_id, has_store=True)


def _require_only_begun(config: Config, place: str, key_count: int) -> None:
    """Check that a store that belongs to the root key waits for its first audit log."""
    log = config.audit.path
    found = find_log(log)
    if found == log:
        raise _refuse(
            f"root key, store and audit log are there already ({config.root_key.path}, {place}, "
            f"{log})",
            "keysided check says whether they are in order; keysided serve serves them",
        )
    if found is not None:
        raise _refuse(
            f"root key and store are there already, and only what is left of an audit log "
            f"({found.name}): there is none at {log}",
            "find out where the log went; to begin a new one, move all that is left of it away, "
            "keep it, and run keysided init --only-audit",
        )
    if key_count:
        raise _refuse(
            f"the store at {place} holds {key_count} keys already, so a sidecar has used it; but "
            f"there is no audit log at {log}",
            "find out where the log went, if this host had one; keysided init --only-audit begins "
            "a new one",
        )


@contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Be the account for a while: the kernel and a server that asks it take us for it."""
    if account is None:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(account.groups)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def _is_there(path: os.PathLike[str]) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StartupError(
            f"{os.fspath(path)} can't be looked at by the sidecar's account: {error.strerror}",
            remedy="let that account enter the directories above it",
        ) from error
    return True


def _count_keys(url: str, custodian: Custodian, taken: PlaceTaken | None) -> int:
    """Open the store with the root key, and return how many keys it holds.

    Raises:
        CustodyError: It belongs to another root key.
        PlaceTaken: What is there is no store.
    """
    try:
        store = Store.open(url, custodian)
    except StoreSchemaError as error:
        raise taken or error from error
    except CustodyError as error:
        raise type(error)(f"{error}; nothing was changed", remedy=error.remedy) from error
    try:
        return len(store.list_keys())
    finally:
        store.close()


def _refuse(what: str, remedy: str) -> StartupError:
    return StartupError(f"{what}; nothing was changed", remedy=remedy, exit_code=_EX_CANTCREAT)
