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
        pending_number: The version that will be current next, where it has been made already.
    """

    name: KeyName
    current_number: VersionNumber
    version_count: int
    created_at: datetime
    rotated_at: datetime
    pending_number: VersionNumber | None = None


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
        created_observed_s: The store's observed time (observed.py) when it was made; None where
            that was not recorded yet.
        activated_observed_s: The same, when it became current.
        disabled_at: When it was disabled; None while it is not.
        disabled_by_uid: By whom.
        destroy_requested_at: When its destruction was asked for; None where none is scheduled.
        destroy_requested_by_uid: By whom.
        destroy_due_s: The observed time at which it is destroyed.
        destroyed_at: When its material was destroyed.
    """

    key_name: KeyName
    number: VersionNumber
    version_id: bytes
    state: VersionState
    created_at: datetime
    activated_at: datetime | None = None
    archived_at: datetime | None = None
    made_by_uid: int | None = None
    created_observed_s: float | None = None
    activated_observed_s: float | None = None
    disabled_at: datetime | None = None
    disabled_by_uid: int | None = None
    destroy_requested_at: datetime | None = None
    destroy_requested_by_uid: int | None = None
    destroy_due_s: float | None = None
    destroyed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class VersionUsage:
    """How much a version was used, as far as the store has been told.

    Args:
        messages: Envelopes sealed under it, at most.
        plaintext_bytes: Bytes of plaintext sealed under it, at most.
        last_sealed_at: Last sealed under; None for never.
        last_opened_at: Last opened under; None for never.
    """

    messages: int = 0
    plaintext_bytes: int = 0
    last_sealed_at: datetime | None = None
    last_opened_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SidecarInfo:
    """A process of some sidecar that is registered with the store.

    Args:
        sidecar_id: 16 random bytes, its own.
        host: The host's name.
        pid: Its process id there.
        registered_at: When it registered, by the store's clock.
        seen_at: When it last wrote, by the store's clock.
        generation_seen: The generation of the store that it has taken in.
        root_key_ids: The root keys that it could use.
        ended_at: When it withdrew, or was seen to be gone; None while it is neither.
    """

    sidecar_id: bytes
    host: str
    pid: int
    registered_at: datetime
    seen_at: datetime
    generation_seen: int
    root_key_ids: tuple[str, ...]
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OpenedVersion:
    """A version with its material; ``material`` is None where it is destroyed."""

    info: VersionInfo
    material: VersionKey | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A key as a sidecar needs it in memory.

    Args:
        info: What there is to say of it.
        current: Its current version, unwrapped.
        pending: Its successor, unwrapped, where it has one already.
        scheduled: The versions whose destruction is scheduled.
    """

    info: KeyInfo
    current: OpenedVersion
    pending: OpenedVersion | None = None
    scheduled: tuple[VersionInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredRotation:
    """What a rotation made: the key as it is now, its new version, and the one that it replaced.

    ``generation`` is the store's that holds it.
    """

    key: KeyInfo
    version: OpenedVersion
    previous: VersionInfo
    generation: int


@dataclass(frozen=True, slots=True)
class ChangedVersion:
    """A version as an operator's change has left it, and the store's generation that holds that."""

    version: VersionInfo
    generation: int


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
