"""How much one account may ask for that costs others something: a token bucket for each.

A bucket is charged for what comes to nothing (an envelope that names an unknown version costs a
look in the store before it fails) or leaves a record each time (what people do). When it is empty,
that account has to wait until it fills again; nobody else has to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

    from keyside_sidecar.clock import Clock

_MAX_BUCKETS: Final = 4096


class Allowance:
    """Token buckets by name, such as a uid; each is kept only while it is not full.

    Args:
        clock: For refilling.
        burst: How much a full bucket holds.
        per_second: How much comes in.
    """

    def __init__(self, clock: Clock, *, burst: float, per_second: float) -> None:
        self._clock = clock
        self._burst = burst
        self._per_second = per_second
        self._spent: dict[Hashable, tuple[float, float]] = {}

    def has_some(self, whose: Hashable) -> bool:
        """Return whether there is some left."""
        return self._level(whose) >= 1.0

    def refill(self, whose: Hashable) -> None:
        """Let everything be forgotten that was counted."""
        self._spent.pop(whose, None)

    def charge(self, whose: Hashable) -> None:
        """Count one."""
        if len(self._spent) >= _MAX_BUCKETS and whose not in self._spent:
            self._spent = {
                known: spent
                for known, spent in self._spent.items()
                if self._level(known) < self._burst
            }
        level = max(0.0, self._level(whose) - 1.0)
        self._spent[whose] = (level, self._clock.monotonic_s())

    def _level(self, whose: Hashable) -> float:
        spent = self._spent.get(whose)
        if spent is None:
            return self._burst
        level, at_s = spent
        return min(self._burst, level + (self._clock.monotonic_s() - at_s) * self._per_second)
