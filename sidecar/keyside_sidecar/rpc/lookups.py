"""Limits how often one account can make the sidecar look for versions that do not exist.

An envelope that names an unknown version costs a look in the store before it fails. A token
bucket per uid is charged for each such failure; when it is empty, versions that are not in memory
are not looked for until it fills again. Versions in memory are never affected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyside_sidecar.clock import Clock

_BURST: Final = 100.0
_PER_SECOND: Final = 10.0
_MAX_UIDS: Final = 4096


class LookupLimit:
    """A token bucket per uid, kept only while it is not full.

    Args:
        clock: For refilling.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spent: dict[int, tuple[float, float]] = {}

    def may_look(self, uid: int) -> bool:
        """Return whether ``uid`` may cause a look in the store now."""
        return self._level(uid) >= 1.0

    def charge(self, uid: int) -> None:
        """Count a look that found nothing."""
        if len(self._spent) >= _MAX_UIDS and uid not in self._spent:
            self._spent = {
                known: spent for known, spent in self._spent.items() if self._level(known) < _BURST
            }
        level = max(0.0, self._level(uid) - 1.0)
        self._spent[uid] = (level, self._clock.monotonic_s())

    def _level(self, uid: int) -> float:
        spent = self._spent.get(uid)
        if spent is None:
            return _BURST
        level, at_s = spent
        return min(_BURST, level + (self._clock.monotonic_s() - at_s) * _PER_SECOND)
