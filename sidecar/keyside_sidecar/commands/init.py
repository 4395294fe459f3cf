"""``keysided init``: the root key, an empty store and the audit log, made once.

Interrupted at any point, it goes on from there when it is run again (``progress.py``).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from keyside._standard_streams import tell_done
from keyside_sidecar import hardening
from keyside_sidecar.audit.creation import create_log
from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.commands.progress import find_progress
from keyside_sidecar.commands.server import APPLY_GRANTS
from keyside_sidecar.commands.stores import choose_store
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import create_root_key_file, open_custodian
from keyside_sidecar.errors import CustodyError, StartupError
from keyside_sidecar.store import initialise_store
from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.config import Config
    from keyside_sidecar.config.store_url import PostgresqlServer
    from keyside_sidecar.supervisor import Account


def run_init(config_path: Path, store_url: str | None = None, *, only_audit: bool = False) -> int:
    """Make root key, store and audit log, or go on where an earlier run was interrupted.

    Args:
        config_path: The configuration file.
        only_audit: Make the audit log only: root key and store are there, or come from elsewhere.
        store_url: The same PostgreSQL database by another role, which may make tables there; it
            is connected to as whoever runs this, and not as the sidecar's account.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: All is there, or what is there is no interrupted run (``progress.py``), or
            something can't be made. Nothing was overwritten.
        StoreUnavailable: The server is away, or does not let the role make tables.
        CustodyError: The root key's directory is not safe.
    """
    hardening.harden_process()  # it makes a root key
    config = load_config(config_path)
    url = choose_store(config, store_url)
    account = find_account(config)
    if only_audit:
        act_as(account)
        _make_audit_log(config)
        return 0
    location = locate_store(url)
    with ExitStack() as stack:
        connect_as = account if store_url is None else None
        progress = find_progress(config, url, account, connect_as=connect_as, stack=stack)
        hardening.harden_process()  # changing the effective uid may have undone it
        _settle_root_key(config.root_key.path, account, progress.root_key)
        if not progress.has_store:
            try:
                if progress.server is not None:
                    progress.server.make(open_custodian(config.root_key))
                else:
                    initialise_store(
                        url, open_custodian(config.root_key), uid=os.geteuid(), gid=os.getegid()
                    )
            except BaseException as error:
                # Nothing is wrapped under it yet. But one that was there before stays, and so does
                # this one where the store may be there after all: somebody may use it by now.
                if progress.root_key is None and _is_surely_absent(location, error):
                    _remove_root_key(config)
                raise
            tell_done(f"made the store in {location.place}")
    if not isinstance(location, SqliteFile):
        tell_done(f"let the daemon's role use it: {APPLY_GRANTS}")
    _make_audit_log(config)
    tell_done("")
    tell_done("Back up the root key now, and not in the same place as the store:", "")
    tell_done("  without the root key, everything that is ever encrypted here is lost;", "")
    tell_done("  with both of them, whoever has the backup can decrypt it.", "")
    return 0


def _make_audit_log(config: Config) -> None:
    def announce(public_key: bytes) -> None:
        tell_done(f"made the audit log in {config.audit.path}")
        tell_done(f"its first public key is {public_key.hex()}")
        tell_done(
            "  keep that apart from this host: keyside audit verify --public-key needs it", ""
        )

    create_log(config.audit, announce)


def _is_surely_absent(location: SqliteFile | PostgresqlServer, error: BaseException) -> bool:
    if isinstance(location, SqliteFile):
        return not os.path.lexists(location.path)
    # Refused by us or by the server, and not an answer to the commit that got lost.
    return isinstance(error, (StartupError, CustodyError)) or "permission denied" in str(error)


def _settle_root_key(path: Path, account: Account | None, found: str | None) -> None:
    """Make the root key unless there is one, and become the account.

    Its directory may be root's; but root never makes files where somebody else can change them.

    Args:
        path: Where it is.
        account: Whom to become.
        found: The id of one that is there.
    """
    if found is not None:
        act_as(account)
        tell_done(f"goes on with the root key {found} in {path}")
        return
    uid = account.uid if account else os.geteuid()
    gid = account.gid if account else os.getegid()
    if _owner_of(path.parent) == uid:
        act_as(account)
        key_id = create_root_key_file(path, uid, gid)
    else:
        key_id = create_root_key_file(path, uid, gid)
        act_as(account)
    tell_done(f"made the root key {key_id} in {path}")


def _remove_root_key(config: Config) -> None:
    path = config.root_key.path
    try:
        path.unlink()
    except OSError:
        click.echo(f"keysided: remove the unused root key {path} by hand", err=True)


def _owner_of(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None
