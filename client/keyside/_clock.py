"""The clock by which data keys age: it goes on while the host is suspended, and never back."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime


def read_clock() -> float:
    """Return seconds since the host was started."""
    return clock_gettime(CLOCK_BOOTTIME)
