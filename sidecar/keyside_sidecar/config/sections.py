"""Each table of the file: its settings, their bounds, and what must fit together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from keyside.errors import InvalidArgument
from keyside.names import KeyName, parse_key_name
from keyside_sidecar.config import values
from keyside_sidecar.config.reader import Table
from keyside_sidecar.config.settings import (
    DAY_S,
    MIB,
    AuditSettings,
    ElevationSettings,
    IdentitySettings,
    KeySettings,
    LevelSettings,
    Principals,
    RootKeySettings,
    SidecarSettings,
    StoreSettings,
)
from keyside_sidecar.config.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

# Defaults stand in ``settings.py`` alone; here they are read from an instance.
_SIDECAR: Final = SidecarSettings(socket=Path("/"))
_IDENTITY: Final = IdentitySettings()
_MAX_WORKERS: Final = 64
_MAX_LIMIT: Final = 65536
_MAX_PLAINTEXT_BYTES: Final = 16 * MIB
_MAX_BATCH_BYTES: Final = 64 * MIB
_MAX_DRAIN_S: Final = 600
_MIN_TTL_S: Final = 0.001
_MAX_TTL_S: Final = 60
_MAX_STALE_S: Final = 600
_MAX_AGE_S: Final = 86_400
_MIN_ROTATE_S: Final = 3600
_MAX_ROTATE_S: Final = 3650 * DAY_S
_LONG_ROTATE_S: Final = 730 * DAY_S
_MIN_ROTATE_MESSAGES: Final = 1000
_MAX_ROTATE_MESSAGES: Final = 10**15
_MAX_ROTATE_BYTES: Final = 1 << 50
_MIN_DESTROY_S: Final = 7 * DAY_S  # I5: no setting lowers it
_MAX_DESTROY_S: Final = 3650 * DAY_S
_MAX_DATA_KEY_AGE_S: Final = 3600
_TABLES: Final = {
    "sidecar": SidecarSettings,
    "identity": IdentitySettings,
    "store": StoreSettings,
    "root_key": RootKeySettings,
    "audit": AuditSettings,
    "elevation": ElevationSettings,
    "elevation.levels": LevelSettings,
    "keys.NAME": KeySettings,
}
# Where each setting belongs, for those that stand in another table.
SETTINGS_OF: Final = {
    table: tuple(field.name.removesuffix("_s") for field in fields(kind) if field.name != "name")
    for table, kind in _TABLES.items()
}


def read_sidecar(table: Table) -> SidecarSettings:
    """Read ``[sidecar]``."""
    default = _SIDECAR
    count = values.parse_int_in(1, _MAX_LIMIT)
    user: str | int | None = table.get("user", values.parse_principal, default.user)
    group: str | int | None = table.get("group", values.parse_principal, default.group)
    if group is not None and not table.has("user"):
        table.problem('has no effect without "user"; give both', "group")
    if user in (0, "root"):
        table.problem("must be an ordinary account, not root: the workers hold the keys", "user")
    limits: dict[str, int] = {}
    for total_name in ("max_connections", "max_calls"):
        uid_name = f"{total_name}_per_uid"
        total = table.get(total_name, count, getattr(default, total_name))
        per_uid = table.get(uid_name, count, min(getattr(default, uid_name), total))
        if per_uid > total:
            table.problem(
                f"must be at most {total_name}, which is {total}, not {per_uid}", uid_name
            )
        limits |= {total_name: total, uid_name: per_uid}
    max_plaintext_bytes = table.get(
        "max_plaintext_bytes",
        values.parse_size_in(1, _MAX_PLAINTEXT_BYTES),
        default.max_plaintext_bytes,
    )
    max_batch_bytes = table.get(
        "max_batch_bytes",
        values.parse_size_in(MIB, _MAX_BATCH_BYTES),
        max(default.max_batch_bytes, max_plaintext_bytes),
    )
    if max_batch_bytes < max_plaintext_bytes:
        table.problem(
            f"must be at least max_plaintext_bytes, which is {format_size(max_plaintext_bytes)}",
            "max_batch_bytes",
        )
    settings = SidecarSettings(
        socket=table.require("socket", values.parse_socket_path, default.socket),
        workers=table.get("workers", values.parse_int_in(1, _MAX_WORKERS), default.workers),
        user=user,
        group=group,
        drain_timeout_s=table.get(
            "drain_timeout", values.parse_duration_in(0, _MAX_DRAIN_S), default.drain_timeout_s
        ),
        reflection=table.get("reflection", values.parse_bool, default.reflection),
        max_plaintext_bytes=max_plaintext_bytes,
        max_batch_bytes=max_batch_bytes,
        max_connections=limits["max_connections"],
        max_connections_per_uid=limits["max_connections_per_uid"],
        max_calls=limits["max_calls"],
        max_calls_per_uid=limits["max_calls_per_uid"],
        log_level=table.get("log_level", values.parse_log_level, default.log_level),
    )
    _finish(table)
    return settings


def read_identity(table: Table) -> IdentitySettings:
    """Read ``[identity]``."""
    default = _IDENTITY
    settings = IdentitySettings(
        membership=table.get("membership", values.parse_membership, default.membership),
        membership_ttl_s=table.get(
            "membership_ttl",
            values.parse_duration_in(_MIN_TTL_S, _MAX_TTL_S),
            default.membership_ttl_s,
        ),
        membership_stale_max_s=table.get(
            "membership_stale_max",
            values.parse_duration_in(_MIN_TTL_S, _MAX_STALE_S),
            default.membership_stale_max_s,
        ),
        person_logins=table.get("person_logins", values.parse_person_logins, default.person_logins),
        connection_max_age_s=table.get(
            "connection_max_age",
            values.parse_duration_in(1, _MAX_AGE_S),
            default.connection_max_age_s,
        ),
    )
    if settings.membership_stale_max_s < settings.membership_ttl_s:
        table.problem(
            f"must be at least membership_ttl, which is "
            f"{format_duration(settings.membership_ttl_s)}",
            "membership_stale_max",
        )
    unused = {
        "account": ("connection_max_age",),
        "process": ("membership_ttl", "membership_stale_max"),
    }
    for name in unused[settings.membership]:
        if table.has(name):
            table.warn(f'has no effect with membership = "{settings.membership}"', name)
    if settings.person_logins == "off":
        table.warn(
            "people's logins are not told from services: whoever can become a service's account "
            "can decrypt",
            "person_logins",
        )
    _finish(table)
    return settings


def read_store(table: Table) -> StoreSettings:
    """Read ``[store]``."""
    settings = StoreSettings(url=table.require("url", values.parse_store_url, ""))
    _finish(table)
    return settings


def read_root_key(table: Table) -> RootKeySettings:
    """Read ``[root_key]``."""
    settings = RootKeySettings(
        provider=table.require("provider", values.parse_provider, "file"),
        path=table.require("path", values.parse_path, Path("/")),
    )
    _finish(table)
    return settings


def read_principals(table: Table) -> Principals:
    """Read ``[operators]`` or ``[auditors]``."""
    settings = Principals(
        groups=_read_names(table, "groups", "mail-services"),
        users=_read_names(table, "users", "mail-gateway"),
    )
    _finish(table)
    return settings


def read_keys(top: Table) -> Mapping[str, KeySettings]:
    """Read every ``[keys.NAME]``."""
    keys: dict[str, KeySettings] = {}
    for text, content in top.tables("keys").items():
        table = Table(top.report, ("keys", text), content)
        try:
            name = parse_key_name(text)
        except InvalidArgument as error:
            table.problem(str(error))
            name = KeyName(text)  # its settings' problems are worth knowing at the same time
        if isinstance(content, dict):
            keys[name] = _read_key(table, name)
    return MappingProxyType(keys)


def _read_key(table: Table, name: KeyName) -> KeySettings:
    default = KeySettings(name)
    settings = KeySettings(
        name=name,
        allow_groups=_read_names(table, "allow_groups", "mail-services"),
        allow_users=_read_names(table, "allow_users", "mail-gateway"),
        encrypt_groups=_read_names(table, "encrypt_groups", "mail-writers"),
        decrypt_groups=_read_names(table, "decrypt_groups", "mail-readers"),
        allow_data_keys=table.get("allow_data_keys", values.parse_bool, default.allow_data_keys),
        data_key_max_age_s=table.get(
            "data_key_max_age",
            values.parse_duration_in(1, _MAX_DATA_KEY_AGE_S),
            default.data_key_max_age_s,
        ),
        suite=table.get("suite", values.parse_suite, default.suite),
        rotate_every_s=table.get(
            "rotate_every",
            values.parse_duration_in(_MIN_ROTATE_S, _MAX_ROTATE_S),
            default.rotate_every_s,
        ),
        rotate_after_messages=table.get(
            "rotate_after_messages",
            values.parse_int_in(_MIN_ROTATE_MESSAGES, _MAX_ROTATE_MESSAGES),
            default.rotate_after_messages,
        ),
        rotate_after_bytes=table.get(
            "rotate_after_bytes",
            values.parse_size_in(MIB, _MAX_ROTATE_BYTES),
            default.rotate_after_bytes,
        ),
        propagation_s=table.get(
            "propagation", values.parse_duration_in(0, DAY_S), default.propagation_s
        ),
        destroy_after_s=table.get(
            "destroy_after",
            values.parse_duration_in(_MIN_DESTROY_S, _MAX_DESTROY_S),
            default.destroy_after_s,
        ),
    )
    _check_rollover(table, settings)
    for narrowing in ("encrypt_groups", "decrypt_groups"):
        if table.has(narrowing) and table.is_empty(narrowing):
            # Read as "not narrowed" it would open what its author meant to close.
            table.problem("must name a group; leave it out to not narrow", narrowing)
    if table.has("data_key_max_age") and not settings.allow_data_keys:
        table.warn("has no effect without allow_data_keys = true", "data_key_max_age")
    if table.is_empty("allow_groups") and table.is_empty("allow_users"):
        table.problem("allows nobody: give allow_groups or allow_users")
    _finish(table)
    return settings


def _check_rollover(table: Table, settings: KeySettings) -> None:
    rotate_every = format_duration(settings.rotate_every_s)
    if settings.propagation_s * 2 > settings.rotate_every_s:
        table.problem(
            f"must be at most half of rotate_every, which is {rotate_every}",
            "propagation",
        )
    if settings.rotate_every_s > _LONG_ROTATE_S:
        table.warn(
            f"is {rotate_every}: all that is sealed in that time depends on one version",
            "rotate_every",
        )


def _read_names(table: Table, key: str, example: str) -> tuple[str | int, ...]:
    return table.get_items(key, values.parse_principal, shape=f'["{example}"] or [1001]')


def _finish(table: Table) -> None:
    table.finish({name: known for name, known in SETTINGS_OF.items() if name != table.path[0]})
