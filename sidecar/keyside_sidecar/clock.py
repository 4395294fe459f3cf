"""Time, passed in: the one place that reads clocks.

Three clocks, for three questions. ``now`` answers *when* (records, schedules) and may jump.
``monotonic_s`` answers *how long* and counts time asleep as well (CLOCK_BOOTTIME), so that a
membership does not outlive a suspend. A ``BootClock`` answers *how long* across processes: it is
the same clock, with a name for what it counts from.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
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


@dataclass(frozen=True, slots=True)
class BootTime:
    """How long a host has been up.

    Args:
        boot: Tells this boot from all others of this and every other host.
        passed_us: What has passed since then, asleep or awake, in microseconds.
    """

    boot: str
    passed_us: int


class BootClock(Protocol):
    """A clock that nobody can set, which all processes of one boot share."""

    def read(self) -> BootTime:
        """Return how long the host has been up."""


class HostBootClock:
    """This host's CLOCK_BOOTTIME, as this process's time namespace shows it."""

    def __init__(self) -> None:
        self._boot = _describe_boot()

    def read(self) -> BootTime:
        """Return how long the host has been up."""
        return BootTime(self._boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)


def _describe_boot() -> str:
    """Return the boot's random id, and which time namespace shifts its clock, and by how much.

    A time namespace (time_namespaces(7)) has a CLOCK_BOOTTIME of its own: two that differ must not
    be taken for one, nor one for another that was given its number later.
    """
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()]
    with suppress(OSError):  # kernels before 5.6 have none
        parts.append(os.readlink("/proc/self/ns/time"))  # noqa: PTH115
        parts.extend(Path("/proc/self/timens_offsets").read_text("ascii").split())
    return " ".join(parts)
