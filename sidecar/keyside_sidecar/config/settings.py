"""The settings, as the rest of the sidecar sees them: plain, frozen, in seconds and bytes.

Nothing here validates: ``loader.py`` is the one way from a file to a ``Config``. In the file a
duration is named like its field but without ``_s``: the unit is written, ``membership_ttl = "5s"``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    suite: str = DEFAULT_SUITE_NAME
    rotate_every_s: float = 90 * DAY_S
    rotate_after_messages: int | None = None
    rotate_after_bytes: int | None = None
    propagation_s: float = 60.0
    destroy_after_s: float = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Config:
    """One whole, valid configuration file.

    Args:
        path: Where it was read.
        digest: SHA-256 of the file's bytes, in hex.
        warnings: What is legal but weakens the protection or has no effect; for the log, ``check``
            and ``status``.
        places: The line of each setting, for problems that show only later.
    """

    sidecar: SidecarSettings
    identity: IdentitySettings
    store: StoreSettings
    root_key: RootKeySettings
    operators: Principals
    auditors: Principals
    keys: Mapping[str, KeySettings]
    path: Path
    digest: str
    warnings: tuple[str, ...] = ()
    places: Places = field(default_factory=Places, repr=False, compare=False)
