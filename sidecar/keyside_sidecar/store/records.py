"""What the store tells about keys and versions. Facts only: no key material, no MACs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyside.envelope import VersionKey
    from keyside.names import KeyName, VersionNumber

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class VersionState(enum.StrEnum):
    """What a version may be used for; ``keys/states.py`` says what leads where."""

    PENDING = "PENDING"
    CURRENT = "CURRENT"
    ARCHIVED = "ARCHIVED"
    DISABLED = "DISABLED"
    DESTROYED = "DESTROYED"


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """The store itself.

    Args:
        store_id: 16 random bytes.
        generation: Grows by one with every change to any row.
        root_key_id: The root key that its MACs are made under.
        created_at: When ``keysided init`` made it.
    """

    store_id: bytes
    generation: int
    root_key_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key.

    Args:
        name: Its name.
        current_number: The version that encrypts.
        version_count: How many versions there are, in any state; also the highest number.
        created_at: When the key was made.
        rotated_at: When the current version became current.
    """

    name: KeyName
    current_number: VersionNumber
    version_count: int
    created_at: datetime
    rotated_at: datetime


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a key.

    Args:
        key_name: The key it belongs to.
        number: 1, 2, 3 …; never reused.
        version_id: 16 random bytes.
        state: What it may be used for.
        created_at: When it was made.
        activated_at: When it became current; None for one that never was.
        archived_at: When it was archived; None for one that was not.
        made_by_uid: The operator's uid; None where the sidecar made it by itself.
    """

    key_name: KeyName
    number: VersionNumber
    version_id: bytes
    state: VersionState
    created_at: datetime
    activated_at: datetime | None
    archived_at: datetime | None
    made_by_uid: int | None


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version with its material; ``material`` is None where it is destroyed."""

    info: VersionInfo
    material: VersionKey | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A key with its current version, unwrapped."""

    info: KeyInfo
    current: OpenedVersion


@dataclass(frozen=True, slots=True)
class StoredRotation:
    """What a rotation made: the key as it is now, its new version, and the one that it replaced."""

    key: KeyInfo
    version: OpenedVersion
    previous: VersionInfo


@dataclass(frozen=True, slots=True)
class Changes:
    """The generation of the store now, and the keys that changed since some earlier one."""

    generation: int
    keys: tuple[KeyName, ...]


def to_microseconds(moment: datetime) -> int:
    """Return microseconds since 1970, as both databases keep them.

    Args:
        moment: Aware.
    """
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """Return the moment, in UTC, that ``value`` microseconds after 1970 is."""
    return _EPOCH + value * _MICROSECOND
