"""Limit: how many calls are in flight, per uid and in all, so that no account starves the rest.

Callers who are allowed nothing have budgets of their own: however many uids a stranger has, what
they keep open takes nothing from services. Their health watches, which last, are counted apart
from their other calls, which don't, so that a probe is answered even then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.peer.connection import Connection

_PUBLIC_CALLS: Final = 1024
_PUBLIC_CALLS_PER_UID: Final = 16
_PUBLIC_WATCHES: Final = 256
_PUBLIC_WATCHES_PER_UID: Final = 4


class Limits:
    """All the budgets of one worker.

    Args:
        max_calls: For callers who are allowed something, in all.
        max_calls_per_uid: For one of them.
    """

    __slots__ = ("_calls", "_public_calls", "_public_watches")

    def __init__(self, max_calls: int, max_calls_per_uid: int) -> None:
        self._calls = CallLimits(max_calls, max_calls_per_uid)
        self._public_calls = CallLimits(_PUBLIC_CALLS, _PUBLIC_CALLS_PER_UID)
        self._public_watches = CallLimits(_PUBLIC_WATCHES, _PUBLIC_WATCHES_PER_UID)

    def enter(self, connection: Connection, *, lasting: bool = False) -> Slot:
        """Count a call that begins; return its place, to be left when it ends.

        Args:
            connection: Whose.
            lasting: It ends when the caller likes.

        Raises:
            Refused: A limit is reached; the call is not counted.
        """
        if not connection.public_only:
            budget = self._calls
        else:
            budget = self._public_watches if lasting else self._public_calls
        uid = connection.caller.uid
        budget.enter(uid)
        return Slot(budget, uid)


class Slot:
    """A call's place in a budget, until nobody holds it any more.

    What a caller has begun may have to go on although the caller has gone (under_way.py): it
    holds the place as well, or calls that are broken off at once would cost nothing.

    Args:
        budget: Where the call is counted.
        uid: Whose it is.
    """

    __slots__ = ("_after", "_budget", "_holders", "_uid")

    def __init__(self, budget: CallLimits, uid: int) -> None:
        self._budget = budget
        self._uid = uid
        self._holders = 1
        self._after: Callable[[], None] | None = None

    def hold(self) -> None:
        """Keep the place until :meth:`leave` is called once more."""
        self._holders += 1

    def leave(self) -> None:
        """Give the place up, if nobody else holds it."""
        self._holders -= 1
        if not self._holders:
            self._budget.leave(self._uid)
            if self._after is not None:
                self._after()

    def then(self, after: Callable[[], None]) -> None:
        """Have something done when the place is given up."""
        self._after = after


class CallLimits:
    """Counts calls in flight in one worker.

    Args:
        max_calls: At most this many in all.
        max_calls_per_uid: At most this many for one uid.
    """

    __slots__ = ("_by_uid", "_max_calls", "_max_calls_per_uid", "total")

    def __init__(self, max_calls: int, max_calls_per_uid: int) -> None:
        self._max_calls = max_calls
        self._max_calls_per_uid = max_calls_per_uid
        self.total = 0
        self._by_uid: dict[int, int] = {}

    def enter(self, uid: int) -> None:
        """Count a call that begins.

        Raises:
            Refused: A limit is reached; the call is not counted.
        """
        mine = self._by_uid.get(uid, 0)
        if mine >= self._max_calls_per_uid or self.total >= self._max_calls:
            raise Refused(Reason.TOO_MANY_CALLS)
        self._by_uid[uid] = mine + 1
        self.total += 1

    def leave(self, uid: int) -> None:
        """Count a call that ended."""
        self.total -= 1
        left = self._by_uid[uid] - 1
        if left:
            self._by_uid[uid] = left
        else:
            del self._by_uid[uid]
