"""``keysided migrate``: brings the store's schema to this program's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside._standard_streams import tell_done
from keyside_sidecar.commands.accounts import act_as, find_account
from keyside_sidecar.commands.server import APPLY_GRANTS
from keyside_sidecar.commands.stores import choose_store
from keyside_sidecar.config import load_config
from keyside_sidecar.store import migrate_store, schema
from keyside_sidecar.store.location import SqliteFile, locate_store

if TYPE_CHECKING:
    from pathlib import Path


def run_migrate(config_path: Path, store_url: str | None = None) -> int:
    """Migrate the store, all of the way or not at all, and say what was done.

    Sidecars of the older program that run meanwhile go on reading, and refuse to write.

    Args:
        config_path: The configuration file.
        store_url: As for ``init``; without it, the command acts as the sidecar's account.

    Raises:
        ConfigError: The configuration is wrong.
        StartupError: The URL or the account can't be used.
        StoreUnavailable: The store is away, or does not let the role change tables.
        StoreSchemaError: The store is newer than this program, or is none.
    """
    config = load_config(config_path)
    url = choose_store(config, store_url)
    if store_url is None:
        act_as(find_account(config))
    location = locate_store(url)
    before = migrate_store(url)
    if before is None:
        tell_done(f"the store in {location.place} has schema {schema.HEAD} already")
        return 0
    tell_done(f"migrated the store in {location.place} from schema {before} to {schema.HEAD}")
    if not isinstance(location, SqliteFile):
        tell_done(f"let the daemon's role use what is new: {APPLY_GRANTS}")
    return 0
