"""What the sidecar tells about keys and about itself: plain, frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from keyside.errors import KeysideError


class KeyVersionState(enum.Enum):
    """What a key version may be used for."""

    UNKNOWN = "UNKNOWN"
    """A state that this client is too old to know."""
    PENDING = "PENDING"
    """Made, not yet used."""
    CURRENT = "CURRENT"
    """Encrypts and decrypts."""
    ARCHIVED = "ARCHIVED"
    """Decrypts only."""
    DISABLED = "DISABLED"
    """Refused; can be enabled again."""
    DESTROYED = "DESTROYED"
    """Its material is gone for ever."""


@dataclass(frozen=True, slots=True)
class VersionUsage:
    """How much a version was used; the last minute may be missing.

    Args:
        last_sealed_at: When something was last sealed under it, in UTC; ``None`` for never.
        last_opened_at: When something was last opened under it; ``None`` for never.
        messages: Envelopes sealed under it, at most.
        plaintext_bytes: Bytes of plaintext sealed under it, at most.
    """

    last_sealed_at: datetime | None
    last_opened_at: datetime | None
    messages: int
    plaintext_bytes: int


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version of a key.

    Args:
        number: 1, 2, 3 ...; never reused.
        id: 32 hexadecimal digits that name this version's material for ever.
        state: What it may be used for.
        created_at: When it was made, in UTC.
        activated_at: When it became current; ``None`` if it never was.
        archived_at: When it was archived; ``None`` if it was not.
        made_by_uid: Who made it; ``None`` where the sidecars did so by themselves.
        disabled_at: When it was disabled; ``None`` while it is not.
        disabled_by_uid: By whom.
        destroy_requested_at: When its destruction was asked for; ``None`` where it was not.
        destroy_requested_by_uid: By whom.
        destroy_in: While its destruction is scheduled: how long the sidecars must still run
            before it. Time in which none of them runs does not count.
        destroyed_at: When its material was destroyed.
        usage: How much it was used; ``None`` where the sidecar does not say, as in its answers to
            changes.
    """

    number: int
    id: str
    state: KeyVersionState
    created_at: datetime | None
    activated_at: datetime | None
    archived_at: datetime | None
    made_by_uid: int | None = None
    disabled_at: datetime | None = None
    disabled_by_uid: int | None = None
    destroy_requested_at: datetime | None = None
    destroy_requested_by_uid: int | None = None
    destroy_in: timedelta | None = None
    destroyed_at: datetime | None = None
    usage: VersionUsage | None = None


@dataclass(frozen=True, slots=True)
class RolloverPolicy:
    """When a key rolls over by itself: at whichever is reached first.

    Args:
        rotate_every: How long a version stays current.
        rotate_after_messages: How many envelopes are sealed under it; ``None`` for any number.
        rotate_after_bytes: How many bytes of plaintext are; ``None`` for any number.
        propagation: How long a successor exists before it becomes current.
    """

    rotate_every: timedelta
    rotate_after_messages: int | None
    rotate_after_bytes: int | None
    propagation: timedelta


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Args:
        name: The key's name.
        current_version: The number of the version that encrypts.
        version_count: How many versions there are, in any state.
        created_at: When the key was made, in UTC.
        rotated_at: When the current version became current.
        suite: What seals fresh data, such as ``"AES-256-GCM"``.
        pending_version: The number of the version that will be current next, where it has been
            made already; else ``None``.
        rollover: When it rolls over by itself; ``None`` where the sidecar does not say.
        next_rollover_at: When its age will roll it over, unless it is used up earlier.
        change_refused: What any change of its versions would raise, because this caller may make
            none; ``None`` where they may, or where the sidecar is too old to say.
    """

    name: str
    current_version: int
    version_count: int
    created_at: datetime | None
    rotated_at: datetime | None
    suite: str
    pending_version: int | None = None
    rollover: RolloverPolicy | None = None
    next_rollover_at: datetime | None = None
    change_refused: KeysideError | None = None


@dataclass(frozen=True, slots=True)
class SidecarProcess:
    """A process of some sidecar on the same store.

    Args:
        host: The host's name.
        pid: Its process id there.
        seen_at: When it last wrote to the store, by the store's clock.
    """

    host: str
    pid: int
    seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rollover did.

    Args:
        key: The key now.
        version: The version that is current now.
        previous: The one that was: archived, or disabled where it was compromised.
        unacknowledged: With ``compromised``: processes that may still use what was disabled.
    """

    key: Key
    version: KeyVersion
    previous: KeyVersion
    unacknowledged: tuple[SidecarProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What a change of one version did.

    Args:
        version: The version now.
        unacknowledged: Processes that have not acknowledged the change: cut off from the store and
            serving as before, or ended without a word.
    """

    version: KeyVersion
    unacknowledged: tuple[SidecarProcess, ...] = ()


class Serving(enum.Enum):
    """Whether the sidecar answers encryption calls."""

    UNKNOWN = "UNKNOWN"
    """An answer that this client is too old to know."""
    STARTING = "STARTING"
    YES = "YES"
    DEGRADED = "DEGRADED"
    """Serving, with something that needs attention."""
    DRAINING = "DRAINING"
    NO = "NO"


class Severity(enum.Enum):
    """How grave a problem is."""

    UNKNOWN = "UNKNOWN"
    """From a sidecar that does not say, or says what this client is too old to know."""
    NOTE = "NOTE"
    """To know; it alone degrades nothing."""
    WARNING = "WARNING"
    """Weakens what is protected, or will matter later."""
    ERROR = "ERROR"
    """Fails now."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, or that weakens the protection by configuration.

    Args:
        reason: A constant such as ``"STORE_UNAVAILABLE"``.
        summary: One sentence; may be ``""`` for a caller who is allowed nothing.
        remedy: What to do about it, or ``""``.
        since: Since when, in UTC.
        blocking: It keeps some call from being served.
        severity: How grave it is.
    """

    reason: str
    summary: str
    remedy: str
    since: datetime | None
    blocking: bool
    severity: Severity = Severity.UNKNOWN


@dataclass(frozen=True, slots=True)
class Caller:
    """This process as the kernel and the name service describe it to the sidecar.

    Args:
        pid: Process id, in the sidecar's namespace.
        uid: User id.
        gid: Group id.
        account: The account's name; ``""`` where the uid has none or it was not looked up.
        login_uid: Whose login the process belongs to; ``None`` for nobody's.
        refused: Why this caller is refused encryption whatever the policy, or ``""``.
        remedy: What to do about that.
    """

    pid: int
    uid: int
    gid: int
    account: str
    login_uid: int | None
    refused: str
    remedy: str


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """A key that this caller may see, and whether its current version is in memory."""

    name: str
    current_version: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Status:
    """How the sidecar is.

    Args:
        serving: Whether it answers encryption calls.
        version: The program's version; ``""`` for a caller who is allowed nothing.
        started_at: When it started, in UTC.
        problems: What is wrong.
        you: Who it thinks is asking; ``None`` if it does not say.
        keys: The keys that this caller may see.
    """

    serving: Serving
    version: str
    started_at: datetime | None
    problems: tuple[Problem, ...]
    you: Caller | None
    keys: tuple[KeyStatus, ...]

    @property
    def is_serving(self) -> bool:
        """Whether encryption calls are answered, with or without something to attend to."""
        return self.serving in {Serving.YES, Serving.DEGRADED}
