"""``keysided init``: the root key, an empty store and the audit log, made once."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import click

from keyside_sidecar import hardening
from keyside_sidecar.audit.creation import (
    create_log,
    require_no_log,
    require_safe_log_directory,
)
from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.commands.server import APPLY_GRANTS
from keyside_sidecar.commands.stores import choose_store
from keyside_sidecar.config import load_config
from keyside_sidecar.custody import create_root_key_file, open_custodian
from keyside_sidecar.errors import CustodyError, StartupError
from keyside_sidecar.store import initialise_store
from keyside_sidecar.store.initialise import NewPostgresqlStore
from keyside_sidecar.store.location import SqliteFile, locate_store, require_safe_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyside_sidecar.config import Config
    from keyside_sidecar.config.store_url import PostgresqlServer
    from keyside_sidecar.supervisor import Account

_EX_CANTCREAT: Final = 73


def run_init(config_path: Path, store_url: str | None = None, *, only_audit: bool = False) -> int:
    """Make what is missing of nothing: neither root key nor store nor audit log may exist.

    Args:
        config_path: The configuration file.
        only_audit: Make the audit log only: root key and store are there, or come from elsewhere.
        store_url: The same PostgreSQL database by another role, which may make tables there; it
            is connected to as whoever runs this, and not as the sidecar's account.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: Something is there already, or can't be made. Nothing was overwritten.
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
    _require_absent(config.root_key.path, "a root key")
    require_no_log(config.audit.path)
    owner = account.uid if account else os.geteuid()
    require_safe_log_directory(config.audit.path.parent, owner)
    location = locate_store(url)
    with ExitStack() as stack:
        new = None
        if isinstance(location, SqliteFile):
            _require_absent(location.path, "a store")
            # The store's directory is the account's, because SQLite writes beside the store.
            uid = account.uid if account else os.geteuid()
            require_safe_directory(location.path.parent, frozenset({uid}))
        else:
            # Connected to before the root key is made: a server is often not ready for a store.
            with acting_as(account if store_url is None else None):
                new = stack.enter_context(NewPostgresqlStore(location))
        key_id = _make_root_key(config.root_key.path, account)
        try:
            if new is not None:
                new.make(open_custodian(config.root_key))
            else:
                initialise_store(
                    url, open_custodian(config.root_key), uid=os.geteuid(), gid=os.getegid()
                )
        except BaseException as error:
            # Nothing is wrapped under it yet, and leaving it would make the next init refuse. But
            # where the store may be there after all, a sidecar may have begun to use it.
            if _is_surely_absent(location, error):
                _remove_root_key(config)
            raise
    click.echo(f"made the root key {key_id} in {config.root_key.path}")
    click.echo(f"made the store in {location.place}")
    if not isinstance(location, SqliteFile):
        click.echo(f"let the daemon's role use it: {APPLY_GRANTS}")
    _make_audit_log(config)
    click.echo("")
    click.echo("Back up the root key now, and not in the same place as the store:")
    click.echo("  without the root key, everything that is ever encrypted here is lost;")
    click.echo("  with both of them, whoever has the backup can decrypt it.")
    return 0


def _make_audit_log(config: Config) -> None:
    public_key = create_log(config.audit)
    click.echo(f"made the audit log in {config.audit.path}")
    click.echo(f"its first public key is {public_key.hex()}")
    click.echo("  keep that apart from this host: keyside audit verify --public-key needs it")


def _is_surely_absent(location: SqliteFile | PostgresqlServer, error: BaseException) -> bool:
    if isinstance(location, SqliteFile):
        return not os.path.lexists(location.path)
    # Refused by us or by the server, and not an answer to the commit that got lost.
    return isinstance(error, (StartupError, CustodyError)) or "permission denied" in str(error)


@contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Be the account for a while: the server asks the kernel who connects (``peer``)."""
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


def _require_absent(path: Path, what: str) -> None:
    if os.path.lexists(path):
        raise StartupError(
            f"there is {what} at {path} already; nothing was changed",
            remedy="if this host was set up before, there is nothing to do; a new root key "
            "could not open an old store",
            exit_code=_EX_CANTCREAT,
        )


def _make_root_key(path: Path, account: Account | None) -> str:
    """Make the root key, and become the account.

    Its directory may be root's; but root never makes files where somebody else can change them.
    """
    uid = account.uid if account else os.geteuid()
    gid = account.gid if account else os.getegid()
    if _owner_of(path.parent) == uid:
        act_as(account)
        return create_root_key_file(path, uid, gid)
    key_id = create_root_key_file(path, uid, gid)
    act_as(account)
    return key_id


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
