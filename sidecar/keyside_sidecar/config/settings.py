"""The settings, as the rest of the sidecar sees them: plain, frozen, in seconds and bytes.

Nothing here validates: ``loader.py`` is the one way from a file to a ``Config``. In the file a
duration is named like its field but without ``_s``: the unit is written, ``membership_ttl = "5s"``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from keyside_sidecar.config.places import Places

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from keyside.names import KeyName

MIB: Final = 1 << 20
DAY_S: Final = 86_400.0
DEFAULT_SUITE_NAME: Final = "AES-256-GCM"

LogLevel = Literal["debug", "info", "warning", "error"]
MembershipSource = Literal["account", "process"]
PersonLogins = Literal["refuse", "allow-own", "off"]
Provider = Literal["file"]
ServiceCalls = Literal["each", "summary"]
OnAuditFailure = Literal["refuse", "buffer"]


@dataclass(frozen=True, slots=True)
class Principals:
    """Groups and users, by name (str) or by number (int)."""

    groups: tuple[str | int, ...] = ()
    users: tuple[str | int, ...] = ()


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """``[sidecar]``: the socket, the processes and the limits."""

    socket: Path
    workers: int = 1
    user: str | int | None = None
    group: str | int | None = None
    drain_timeout_s: float = 10.0
    reflection: bool = False
    max_plaintext_bytes: int = MIB
    max_batch_bytes: int = 8 * MIB
    max_connections: int = 1024
    max_connections_per_uid: int = 256
    max_calls: int = 1024
    max_calls_per_uid: int = 256
    log_level: LogLevel = "info"


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """``[identity]``: how a caller's groups are known, and what a person's login may do."""

    membership: MembershipSource = "account"
    membership_ttl_s: float = 5.0
    membership_stale_max_s: float = 60.0
    person_logins: PersonLogins = "refuse"
    connection_max_age_s: float = 300.0


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """``[store]``: where key versions are kept, wrapped. The URL may hold a password: no repr."""

    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RootKeySettings:
    """``[root_key]``: who keeps the key that wraps key versions at rest."""

    provider: Provider
    path: Path


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """``[audit]``: where the audit log is, what it records, and what happens if it can't.

    ``checkpoint_command`` and ``checkpoint_syslog`` are the second place for checkpoints, out of
    the reach of whoever can change the log.
    """

    path: Path
    service_calls: ServiceCalls = "each"
    on_failure: OnAuditFailure = "refuse"
    buffer_records: int = 100_000
    timeout_s: float = 2.0
    checkpoint_every_s: float = 60.0
    checkpoint_syslog: bool = True
    checkpoint_command: tuple[str, ...] = ()
    rotate_bytes: int = 64 * MIB
    rotate_every_s: float = DAY_S


@dataclass(frozen=True, slots=True)
class KeySettings:
    """``[keys.NAME]``: one key's policy and suite.

    ``encrypt_groups`` and ``decrypt_groups`` narrow: empty means not narrowed. (The file can't say
    an empty list; leaving the setting out is the only way to an empty tuple.)
    """

    name: KeyName
    allow_groups: tuple[str | int, ...] = ()
    allow_users: tuple[str | int, ...] = ()
    encrypt_groups: tuple[str | int, ...] = ()
    decrypt_groups: tuple[str | int, ...] = ()
    allow_data_keys: bool = False
    data_key_max_age_s: float = 300.0
    suite: str = DEFAULT_SUITE_NAME
    rotate_every_s: float = 90 * DAY_S
    rotate_after_messages: int | None = None
    rotate_after_bytes: int | None = None
    propagation_s: float = 60.0
    destroy_after_s: float = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """``[[elevation.levels]]``: one level of approval. Neither setting has a default."""

    group: str | int
    approvals: int


@dataclass(frozen=True, slots=True)
class ElevationSettings:
    """``[elevation]``: who may ask for access to a key, who decides, and for how long it lasts."""

    requesters: tuple[str | int, ...]
    levels: tuple[LevelSettings, ...]
    pam_service: str = "keyside"
    pam_timeout_s: float = 10.0
    max_duration_s: float = 4 * 3600.0
    request_ttl_s: float = DAY_S
    max_open_requests: int = 8
    rollover_after_grant: bool = False
    shared_ids: bool = False
    notify: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """One whole, valid configuration file.

    Args:
        path: Where it was read.
        digest: SHA-256 of the file's bytes, in hex.
        warnings: What is legal but weakens the protection or has no effect; for the log, ``check``
            and ``status``.
        places: The line of each setting, for problems that show only later.
        elevation: None where nobody can get access.
        people: ``[people]``: the accounts of each person who has several.
    """

    sidecar: SidecarSettings
    identity: IdentitySettings
    store: StoreSettings
    root_key: RootKeySettings
    audit: AuditSettings
    operators: Principals
    auditors: Principals
    keys: Mapping[str, KeySettings]
    path: Path
    digest: str
    warnings: tuple[str, ...] = ()
    places: Places = field(default_factory=Places, repr=False, compare=False)
    elevation: ElevationSettings | None = None
    people: Mapping[str, tuple[str | int, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
