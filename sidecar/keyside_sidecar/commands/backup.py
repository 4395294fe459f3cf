"""``keysided backup``: the whole store as it is at one moment, in one file, while it is served."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from keyside._standard_streams import require_output, tell_done
from keyside.quantities import count_of
from keyside_sidecar.commands.accounts import find_account
from keyside_sidecar.commands.apart import continue_as, leaving_as_it_was, settle_as
from keyside_sidecar.commands.drafts import Draft
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.errors import StartupError
from keyside_sidecar.store import Store
from keyside_sidecar.store.backup import write_backup
from keyside_sidecar.store.location import locate_store

if TYPE_CHECKING:
    from typing import BinaryIO

    from keyside_sidecar.config import Config

_EX_USAGE: Final = 64
_EX_CANTCREAT: Final = 73
_STANDARD_OUTPUT: Final = "-"


def run_backup(config_path: Path, destination: str) -> int:
    """Back the store up.

    Args:
        config_path: The configuration file.
        destination: A new file, made by whoever runs this and readable by nobody else; or ``-`` for
            standard output.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: The file exists or can't be written, standard output is a terminal, or the
            store does not hold what it should. There is no backup then.
        StoreUnavailable: The store is away.
        CustodyError: The root key can't be used, or a version does not unwrap.
    """
    config = load_config(config_path)
    account = find_account(config)
    if destination == _STANDARD_OUTPUT:
        if sys.stdout.isatty():
            raise StartupError(
                "a backup is not written to a terminal",
                remedy="name a file, or send it into one",
                exit_code=_EX_USAGE,
            )
        require_output()
        settle_as(account)
        return _print(config)
    with Draft(Path(destination)) as draft:
        code = continue_as(account)
        if code is None:
            with os.fdopen(draft.descriptor, "wb", closefd=False) as file:
                _write(config, file, destination)
        if code or (code is None and account is not None):
            return code or 0
        size = draft.publish()
    tell_done(f"wrote {count_of(size, 'byte')} to {destination}")
    return 0


def _print(config: Config) -> int:
    """Write to standard output what was found to be whole before."""
    with tempfile.TemporaryFile() as file:
        _write(config, file, _STANDARD_OUTPUT)
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return 0


def _write(config: Config, file: BinaryIO, name: str) -> None:
    store = Store.open(config.store.url, open_custodian(config.root_key))
    try:
        with leaving_as_it_was("there is no backup"):
            header, contents = write_backup(
                store.session, _find_version(), datetime.now(UTC), file.write
            )
        file.flush()
    except OSError as error:
        raise _refuse(name, error) from error
    finally:
        store.close()
    store_facts = (
        f"the store in {locate_store(config.store.url).place} as of {header.made_at}, generation "
        f"{header.generation}: {count_of(contents.versions, 'version')} of "
        f"{count_of(contents.keys, 'key')}, {contents.destroyed:,} of them destroyed"
    )
    lines = (
        store_facts,
        f"It can be restored only with the root key {header.root_key_id}. Keep that elsewhere:",
        "  whoever has both can decrypt everything.",
        "A version that is destroyed from now on can be brought back with this backup.",
    )
    if name == _STANDARD_OUTPUT:
        click.echo("\n".join(lines), err=True)
    else:
        tell_done("\n".join(lines), "")


def _find_version() -> str:
    try:
        return version("keyside")
    except PackageNotFoundError:
        return "0"


def _refuse(destination: str, error: OSError) -> StartupError:
    name = "standard output" if destination == _STANDARD_OUTPUT else destination
    return StartupError(
        f"the backup can't be written to {name}: {error.strerror}",
        remedy="see that there is room, and begin anew",
        exit_code=_EX_CANTCREAT,
    )
