"""``keysided restore``: makes a store from a backup, where there is none."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside._standard_streams import tell_done
from keyside.quantities import count_of
from keyside_sidecar.commands.accounts import find_account
from keyside_sidecar.commands.apart import settle_as
from keyside_sidecar.commands.progress import acting_as
from keyside_sidecar.commands.server import APPLY_GRANTS
from keyside_sidecar.commands.stores import choose_store
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.errors import CustodyError, StartupError
from keyside_sidecar.store.backup import MAGIC, Backup, require_backup
from keyside_sidecar.store.initialise import NewPostgresqlStore, make_file
from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from keyside_sidecar.config import Config
    from keyside_sidecar.config.store_url import PostgresqlServer
    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.store.examination import Contents

_EX_USAGE: Final = 64
_EX_CANTCREAT: Final = 73
_EX_NOINPUT: Final = 66
_STANDARD_INPUT: Final = "-"
_STDIN_FILENO: Final = 0


def run_restore(config_path: Path, source: str, store_url: str | None = None) -> int:
    """Restore a backup into an empty place; everything is verified before anything is written.

    Args:
        config_path: The configuration file; its root key is the backup's.
        source: The backup, opened by whoever runs this; ``-`` for standard input.
        store_url: As for ``init``.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: There is a store already, or this is no sound backup. Nothing was changed.
        StoreUnavailable: The server is away, or does not let the role make tables.
        CustodyError: The backup belongs to another root key, or a version does not unwrap.
    """
    config = load_config(config_path)
    url = choose_store(config, store_url)
    account = find_account(config)
    location = locate_store(url)
    _require_there(source)
    if isinstance(location, SqliteFile):
        _require_absent(location.path)
    with ExitStack() as stack:
        file = stack.enter_context(_open(source))
        new = None
        if not isinstance(location, SqliteFile):
            # As for init: to be connected to as whoever is given for it.
            with acting_as(account if store_url is None else None):
                new = stack.enter_context(NewPostgresqlStore(location))
        # What is read now was made by somebody: from here on as the account.
        settle_as(account)
        try:
            custodian = _open_custodian(config)
            backup = Backup.open(stack.enter_context(_spool(file)), custodian)
            contents = backup.examine()
            if isinstance(location, SqliteFile):
                make_file(location.path, os.geteuid(), os.getegid(), backup.write_into)
            elif new is not None:
                new.fill(backup.write_into)
        except OSError as error:
            raise _refuse(source, error) from error
    _tell(backup, contents, location)
    return 0


def _require_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise StartupError(
            f"there is a store at {path} already, and it is not overwritten",
            remedy="move it away, and keep it; or restore to another place with --store",
            exit_code=_EX_CANTCREAT,
        )


def _open_custodian(config: Config) -> Custodian:
    """Return the root key's custodian. To make a new root key would lead nowhere here."""
    path = config.root_key.path
    try:
        return open_custodian(config.root_key)
    except CustodyError as error:
        if os.path.lexists(path):
            raise
        raise CustodyError(
            str(error),
            remedy=f"put the root key that the backup was made under there, from its own backup: "
            f"as {path}, mode 0600, chown {os.geteuid()}; a new one opens nothing of it",
        ) from error


def _require_there(source: str) -> None:
    try:
        # Not opened yet: a named pipe waits for whoever writes.
        if source != _STANDARD_INPUT and stat.S_ISDIR(os.stat(source).st_mode):  # noqa: PTH116
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise _refuse(source, error) from error


def _open(source: str) -> BinaryIO:
    try:
        if source == _STANDARD_INPUT:
            if os.isatty(_STDIN_FILENO):
                raise StartupError(
                    "a backup is not typed, and standard input is a terminal",
                    remedy="name a file, or send it in from one",
                    exit_code=_EX_USAGE,
                )
            return os.fdopen(os.dup(_STDIN_FILENO), "rb")
        return Path(source).open("rb")
    except OSError as error:
        raise _refuse(source, error) from error


def _spool(file: BinaryIO) -> BinaryIO:
    """Return something that can be read more than once."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (whoever is given it closes it)
    # The rest of an endless stream that is no backup need not be seen, nor kept.
    beginning = file.read(len(MAGIC))
    require_backup(beginning)
    copy.write(beginning)
    shutil.copyfileobj(file, copy)
    return copy


def _tell(backup: Backup, contents: Contents, location: SqliteFile | PostgresqlServer) -> None:
    header = backup.header
    tell_done(
        f"restored the store to {location.place}: "
        f"{count_of(contents.versions, 'version')} of {count_of(contents.keys, 'key')}, "
        f"{contents.destroyed:,} of them destroyed"
    )
    tell_done(
        f"as of {header.made_at}: generation {header.generation}, root key {header.root_key_id}"
    )
    for line in _advise(contents, location):
        tell_done(line, "")


def _advise(contents: Contents, location: SqliteFile | PostgresqlServer) -> Iterator[str]:
    if not isinstance(location, SqliteFile):
        yield f"let the daemon's role use it: {APPLY_GRANTS}"
    yield ""
    yield "Whatever was made or changed since then is gone:"
    yield "  what was encrypted under a version made since then can't be opened;"
    yield "  a version disabled or destroyed since then can be used again."
    if contents.scheduled:
        yield "These versions were going to be destroyed, and soon will be, once a sidecar runs:"
        for place in contents.scheduled:
            yield f"  keyside keys cancel-destroy {place}    keeps it"
    yield "Counts of messages are those of the backup: a key may roll over a little late."
    yield "Restart every sidecar: one that still runs refuses a store that has gone back."


def _refuse(source: str, error: OSError) -> StartupError:
    return StartupError(
        f"the backup {source} can't be read: {error.strerror}",
        remedy="name a file that you may read",
        exit_code=_EX_NOINPUT,
    )
