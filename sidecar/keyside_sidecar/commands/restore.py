"""``keysided restore``: makes a store from a backup, where there is none."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keyside_sidecar.commands.accounts import find_account
from keyside_sidecar.commands.apart import settle_as
from keyside_sidecar.commands.init import acting_as
from keyside_sidecar.commands.server import APPLY_GRANTS
from keyside_sidecar.commands.stores import choose_store
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.errors import StartupError
from keyside_sidecar.store.backup import Backup
from keyside_sidecar.store.initialise import NewPostgresqlStore, make_file
from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from typing import BinaryIO

    from keyside_sidecar.config.store_url import PostgresqlServer
    from keyside_sidecar.store.examination import Contents

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
            backup = Backup.open(stack.enter_context(_spool(file)), open_custodian(config.root_key))
            contents = backup.examine()
            if isinstance(location, SqliteFile):
                make_file(location.path, os.geteuid(), os.getegid(), backup.write_into)
            elif new is not None:
                new.fill(backup.write_into)
        except OSError as error:
            raise _refuse(source, error) from error
    _tell(backup, contents, location)
    return 0


def _open(source: str) -> BinaryIO:
    try:
        if source == _STANDARD_INPUT:
            return os.fdopen(os.dup(_STDIN_FILENO), "rb")
        return Path(source).open("rb")
    except OSError as error:
        raise _refuse(source, error) from error


def _spool(file: BinaryIO) -> BinaryIO:
    """Return something that can be read more than once."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (whoever is given it closes it)
    shutil.copyfileobj(file, copy)
    return copy


def _tell(backup: Backup, contents: Contents, location: SqliteFile | PostgresqlServer) -> None:
    header = backup.header
    click.echo(
        f"restored the store to {location.place}: {contents.versions:,} versions of "
        f"{contents.keys:,} keys, {contents.destroyed:,} of them destroyed"
    )
    click.echo(
        f"as of {header.made_at}: generation {header.generation}, root key {header.root_key_id}"
    )
    if not isinstance(location, SqliteFile):
        click.echo(f"let the daemon's role use it: {APPLY_GRANTS}")
    click.echo("")
    click.echo("Whatever was made or changed since then is gone:")
    click.echo("  what was encrypted under a version made since then can't be opened;")
    click.echo("  a version disabled or destroyed since then can be used again.")
    if contents.scheduled:
        click.echo(
            "These versions were going to be destroyed, and soon will be, once a sidecar runs:"
        )
        for place in contents.scheduled:
            click.echo(f"  keyside keys cancel-destroy {place}    keeps it")
    click.echo("Counts of messages are those of the backup: a key may roll over a little late.")
    click.echo("Restart every sidecar: one that still runs refuses a store that has gone back.")


def _refuse(source: str, error: OSError) -> StartupError:
    return StartupError(
        f"the backup {source} can't be read: {error.strerror}",
        remedy="name a file that you may read",
        exit_code=_EX_NOINPUT,
    )
