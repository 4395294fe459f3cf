"""How often a uid may fail: three times, then less and less often.

The first three failures cost nothing but PAM's own delay. From then on each failure makes the next
try wait: 5 s, 10 s, 20 s … 15 min. Whoever has not failed for five minutes beyond that wait starts
afresh, and so does whoever succeeds; nobody else's success changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FREE_FAILURES: Final = 3
FIRST_WAIT_S: Final = 5.0
MAX_WAIT_S: Final = 900.0
MEMORY_S: Final = 300.0
MAX_UIDS: Final = 4096
"""More uids than this aren't remembered. While so many have failed lately, others have to wait."""

_MAX_DOUBLINGS: Final = 10


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    last_s: float

    @property
    def wait_until_s(self) -> float:
        if self.count < FREE_FAILURES:
            return self.last_s
        doublings = min(self.count - FREE_FAILURES, _MAX_DOUBLINGS)
        return self.last_s + min(FIRST_WAIT_S * (1 << doublings), MAX_WAIT_S)

    @property
    def forgotten_at_s(self) -> float:
        return self.wait_until_s + MEMORY_S


class FailureLimits:
    """Counts failures for each uid.

    Args:
        clock: Seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[int, _Failures] = {}

    def wait_s(self, uid: int) -> float:
        """Return in how many seconds ``uid`` may try again; 0 where it may now."""
        failures, now_s = self._failures.get(uid), self._clock()
        if failures is None:
            if len(self._failures) >= MAX_UIDS:
                self._forget(now_s)
            return FIRST_WAIT_S if len(self._failures) >= MAX_UIDS else 0.0
        return max(0.0, failures.wait_until_s - now_s)

    def note_failure(self, uid: int) -> None:
        """Count a failure."""
        now_s = self._clock()
        before = self._failures.pop(uid, None)
        count = before.count if before is not None and before.forgotten_at_s > now_s else 0
        self._failures[uid] = _Failures(count + 1, now_s)

    def note_success(self, uid: int) -> None:
        """Forget a uid's failures."""
        self._failures.pop(uid, None)

    def _forget(self, now_s: float) -> None:
        self._failures = {
            uid: each for uid, each in self._failures.items() if each.forgotten_at_s > now_s
        }
