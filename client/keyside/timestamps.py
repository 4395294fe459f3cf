"""Timestamps as text: RFC 3339 in UTC, to the second, ending in ``Z``; one form everywhere."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def format_timestamp(when: datetime) -> str:
    """Return a time as ``2026-07-05T09:00:00Z``.

    Args:
        when: An aware time in any zone; what lies below a second is left out.
    """
    return when.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
