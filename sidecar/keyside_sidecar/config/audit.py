"""``[audit]``: the settings of the audit log, and their bounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside_sidecar.config import values
from keyside_sidecar.config.sections import SETTINGS_OF
from keyside_sidecar.config.settings import DAY_S, MIB, AuditSettings

if TYPE_CHECKING:
    from keyside_sidecar.config.reader import Table

_DEFAULT: Final = AuditSettings(path=Path("/"))
_MIN_BUFFER: Final = 1000
_MAX_BUFFER: Final = 1_000_000
_MIN_TIMEOUT_S: Final = 0.2
_MAX_TIMEOUT_S: Final = 30
_MIN_CHECKPOINT_S: Final = 1
_MAX_CHECKPOINT_S: Final = 3600
_MAX_ROTATE_BYTES: Final = 16384 * MIB
_MIN_ROTATE_S: Final = 60
_MAX_ROTATE_S: Final = 366 * DAY_S


def read_audit(table: Table) -> AuditSettings:
    """Read ``[audit]``."""
    default = _DEFAULT
    settings = AuditSettings(
        path=table.require("path", values.parse_log_path, default.path),
        service_calls=table.get("service_calls", values.parse_service_calls, default.service_calls),
        on_failure=table.get("on_failure", values.parse_on_audit_failure, default.on_failure),
        buffer_records=table.get(
            "buffer_records",
            values.parse_int_in(_MIN_BUFFER, _MAX_BUFFER),
            default.buffer_records,
        ),
        timeout_s=table.get(
            "timeout",
            values.parse_duration_in(_MIN_TIMEOUT_S, _MAX_TIMEOUT_S),
            default.timeout_s,
        ),
        checkpoint_every_s=table.get(
            "checkpoint_every",
            values.parse_duration_in(_MIN_CHECKPOINT_S, _MAX_CHECKPOINT_S),
            default.checkpoint_every_s,
        ),
        checkpoint_syslog=table.get(
            "checkpoint_syslog", values.parse_bool, default.checkpoint_syslog
        ),
        checkpoint_command=table.get(
            "checkpoint_command", values.parse_command, default.checkpoint_command
        ),
        rotate_bytes=table.get(
            "rotate_bytes", values.parse_size_in(MIB, _MAX_ROTATE_BYTES), default.rotate_bytes
        ),
        rotate_every_s=table.get(
            "rotate_every",
            values.parse_duration_in(_MIN_ROTATE_S, _MAX_ROTATE_S),
            default.rotate_every_s,
        ),
    )
    if not settings.checkpoint_syslog and not settings.checkpoint_command:
        table.warn(
            "checkpoints go to no second place: whoever can write to the log can cut off its "
            "end unnoticed",
            "checkpoint_syslog",
        )
    table.finish({name: known for name, known in SETTINGS_OF.items() if name != "audit"})
    return settings
