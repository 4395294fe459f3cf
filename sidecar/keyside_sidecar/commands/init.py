"""``keysided init``: the root key and an empty store, made once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import create_root_key_file, open_custodian
from keyside_sidecar.errors import StartupError
from keyside_sidecar.store import initialise_store
from keyside_sidecar.store.location import parse_store_url, require_safe_directory

if TYPE_CHECKING:
    from pathlib import Path

_EX_CANTCREAT: Final = 73


def run_init(config_path: Path) -> int:
    """Make what is missing of nothing: neither root key nor store may exist.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: Something is there already, or can't be made. Nothing was overwritten.
        CustodyError: The root key's directory is not safe.
    """
    config = load_config(config_path)
    account = find_account(config)
    uid = account.uid if account else os.geteuid()
    gid = account.gid if account else os.getegid()
    root_key, store = config.root_key.path, parse_store_url(config.store.url)
    for existing, what in ((root_key, "a root key"), (store, "a store")):
        if os.path.lexists(existing):
            raise StartupError(
                f"there is {what} at {existing} already; nothing was changed",
                remedy="if this host was set up before, there is nothing to do; a new root key "
                "could not open an old store",
                exit_code=_EX_CANTCREAT,
            )
    # The store's directory is the account's, because SQLite writes beside the store. The root
    # key's may be root's. Root never makes files in a directory that somebody else can change.
    require_safe_directory(store.parent, frozenset({uid}))
    key_id = None
    if _owner_of(root_key.parent) != uid:
        key_id = create_root_key_file(root_key, uid, gid)
    act_as(account)
    if key_id is None:
        key_id = create_root_key_file(root_key, uid, gid)
    try:
        initialise_store(config.store.url, open_custodian(config.root_key), uid=uid, gid=gid)
    except BaseException:
        # Nothing is wrapped under it yet, and leaving it would make the next init refuse.
        try:
            root_key.unlink()
        except OSError:
            click.echo(f"keysided: remove the unused root key {root_key} by hand", err=True)
        raise
    click.echo(f"made the root key {key_id} in {root_key}")
    click.echo(f"made the store in {store}")
    click.echo("")
    click.echo("Back up the root key now, and not in the same place as the store:")
    click.echo("  without the root key, everything that is ever encrypted here is lost;")
    click.echo("  with both of them, whoever has the backup can decrypt it.")
    return 0


def _owner_of(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None
