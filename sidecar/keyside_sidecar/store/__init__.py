"""Key versions at rest: wrapped by the root key, authenticated row by row (I5, I6, I10)."""

from keyside_sidecar.store.initialise import initialise_store, migrate_store
from keyside_sidecar.store.records import (
    Changes,
    KeyInfo,
    LoadedKey,
    OpenedVersion,
    StoredRotation,
    StoreMeta,
    VersionInfo,
    VersionState,
)
from keyside_sidecar.store.store import Store

__all__ = [
    "Changes",
    "KeyInfo",
    "LoadedKey",
    "OpenedVersion",
    "Store",
    "StoreMeta",
    "StoredRotation",
    "VersionInfo",
    "VersionState",
    "initialise_store",
    "migrate_store",
]
