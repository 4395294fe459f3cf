"""Severity of every problem: one table, for ``status``, health, ``keysided check`` and the log.

NOTE is to know, and needs nothing done: the sidecar is not degraded by it. WARNING weakens what is
protected, or will matter later. ERROR is something that fails now. Only an ERROR may keep calls
from being served or turn health red.
"""

from __future__ import annotations

import enum
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Severity(enum.IntEnum):
    """How grave a problem is; a larger number is graver."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def log_level(self) -> int:
        """The level at which the log says so."""
        return _LOG_LEVELS[self]


_LOG_LEVELS: Final = {
    Severity.NOTE: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}

SEVERITIES: Final[Mapping[str, Severity]] = MappingProxyType(
    {
        # The host and the configuration.
        "MEMORY_NOT_LOCKED": Severity.NOTE,
        "KEYS_MAY_BE_SWAPPED": Severity.WARNING,
        "PERSON_LOGINS_OFF": Severity.WARNING,
        "PEER_PIDFD_FALLBACK": Severity.WARNING,
        "SOCKET_LOST": Severity.ERROR,
        "SOCKET_WAS_LOST": Severity.WARNING,
        "NAME_SERVICE_UNAVAILABLE": Severity.ERROR,
        # The store and the keys.
        "STORE_UNAVAILABLE": Severity.ERROR,
        "STORE_TAMPERED": Severity.ERROR,
        "STORE_SCHEMA": Severity.ERROR,
        "ROOT_KEY_UNUSABLE": Severity.ERROR,
        "ROOT_KEY_NOT_KEPT": Severity.ERROR,
        "KEYS_NOT_READY": Severity.ERROR,
        "ROLLOVER_FAILS": Severity.ERROR,
        "CLOCK_BEHIND": Severity.ERROR,
        "DESTRUCTION_SCHEDULED": Severity.WARNING,
        "MESSAGES_UNCOUNTED": Severity.WARNING,
        # The audit log.
        "AUDIT_NO_SPACE": Severity.ERROR,
        "AUDIT_WRITE_FAILED": Severity.ERROR,
        "AUDIT_NOT_RESPONDING": Severity.ERROR,
        "AUDIT_NO_RECORDER": Severity.ERROR,
        "AUDIT_BUFFER_FULL": Severity.ERROR,
        "AUDIT_UNAVAILABLE": Severity.ERROR,
        # A reload that was refused.
        "CONFIG_INVALID": Severity.ERROR,
        "CONFIG_NOT_READ": Severity.ERROR,
        "WORKERS_NOT_STARTED": Severity.ERROR,
    }
)


def severity_of(reason: str) -> Severity:
    """Return how grave a problem is; one that nobody listed is as grave as can be."""
    return SEVERITIES.get(reason, Severity.ERROR)
