"""How many calls are in flight, per uid and in all, so that one account can't starve the rest."""

from __future__ import annotations

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused


class CallLimits:
    """Counts calls in flight in one worker.

    Args:
        max_calls: At most this many in all.
        max_calls_per_uid: At most this many for one uid.
    """

    __slots__ = ("_by_uid", "_max_calls", "_max_calls_per_uid", "_total")

    def __init__(self, max_calls: int, max_calls_per_uid: int) -> None:
        self._max_calls = max_calls
        self._max_calls_per_uid = max_calls_per_uid
        self._total = 0
        self._by_uid: dict[int, int] = {}

    def enter(self, uid: int) -> None:
        """Count a call that begins.

        Raises:
            Refused: A limit is reached; the call is not counted.
        """
        mine = self._by_uid.get(uid, 0)
        if mine >= self._max_calls_per_uid or self._total >= self._max_calls:
            raise Refused(Reason.TOO_MANY_CALLS)
        self._by_uid[uid] = mine + 1
        self._total += 1

    def leave(self, uid: int) -> None:
        """Count a call that ended."""
        self._total -= 1
        left = self._by_uid[uid] - 1
        if left:
            self._by_uid[uid] = left
        else:
            del self._by_uid[uid]
