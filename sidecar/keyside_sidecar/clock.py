"""Time, passed in: the one place that reads clocks.

Three clocks, for three questions. ``now`` answers *when* (records, schedules) and may jump.
``monotonic_s`` answers *how long* and counts time asleep as well (CLOCK_BOOTTIME), so that a
membership does not outlive a suspend.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the rest of the sidecar may know about time."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""

    def monotonic_s(self) -> float:
        """Return seconds since some fixed instant; never goes back, counts time asleep."""


class SystemClock:
    """The host's clocks."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return CLOCK_BOOTTIME, in seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
