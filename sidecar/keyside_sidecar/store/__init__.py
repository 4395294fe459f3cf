"""Key versions at rest: wrapped by the root key, authenticated row by row (I5, I6, I10)."""

from keyside_sidecar.store.initialise import initialise_store, migrate_store
from keyside_sidecar.store.records import (
    ChangedVersion,
    Changes,
    KeyInfo,
    LoadedKey,
    OpenedVersion,
    SidecarInfo,
    StoredRotation,
    StoreMeta,
    VersionInfo,
    VersionState,
    VersionUsage,
)
from keyside_sidecar.store.store import Store

__all__ = [
    "ChangedVersion",
    "Changes",
    "KeyInfo",
    "LoadedKey",
    "OpenedVersion",
    "SidecarInfo",
    "Store",
    "StoreMeta",
    "StoredRotation",
    "VersionInfo",
    "VersionState",
    "VersionUsage",
    "initialise_store",
    "migrate_store",
]
