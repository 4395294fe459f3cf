"""Who works when: long work takes turns, so that short calls are answered in between.

A worker has one event loop. A batch works for about a millisecond, then waits for its next turn;
one turn is given in a round of the loop, however many batches there are. A short call takes several
rounds, and threads of gRPC's own between them: while there are such calls, turns are shorter, and a
moment lies between two of them in which the loop has nothing to do but those calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TURN_S: Final = 0.001
_SHARED_TURN_S: Final = 0.0005
_MOMENT_S: Final = 0.0003
# So long after a short call was seen, others are expected.
_SHARED_S: Final = 0.05
# Of one account: more would gain no speed, and each holds its whole message.
_BATCHES_PER_UID: Final = 4


class Turns:
    """Gives turns, in the order in which they are asked for. For one event loop.

    Args:
        count_calls: Returns how many calls are in flight, batches among them.
    """

    def __init__(self, count_calls: Callable[[], int] = lambda: 0) -> None:
        self._count_calls = count_calls
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False
        self._shared_until = 0.0
        self._batches = 0
        self._by_uid: dict[int, tuple[asyncio.Semaphore, int]] = {}

    async def enter(self, uid: int) -> None:
        """Wait until one more batch of an account may be received and worked on, until ``leave``.

        Few may at once. The others are among the calls in flight (calls.py), and their messages
        are not received meanwhile.

        Args:
            uid: Whose.
        """
        gate, users = self._by_uid.get(uid) or (asyncio.Semaphore(_BATCHES_PER_UID), 0)
        self._by_uid[uid] = gate, users + 1
        self._batches += 1
        try:
            await gate.acquire()
        except BaseException:
            self._forget(uid)
            raise

    def leave(self, uid: int) -> None:
        """Let another batch of an account in."""
        gate, _users = self._by_uid[uid]
        gate.release()
        self._forget(uid)

    def _forget(self, uid: int) -> None:
        self._batches -= 1
        gate, users = self._by_uid[uid]
        if users > 1:
            self._by_uid[uid] = gate, users - 1
        else:
            del self._by_uid[uid]

    async def take(self) -> float:
        """Wait for a turn; return when it ends, by ``time.perf_counter``.

        Whoever has it works on without awaiting anything else, looks at the clock now and then, and
        takes another turn when this one has ended.
        """
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self._waiting.append(mine)
        if not self._is_due:
            self._is_due = True
            self._schedule(loop)
        await mine
        now = perf_counter()
        return now + (_SHARED_TURN_S if now < self._shared_until else _TURN_S)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        now = perf_counter()
        if self._count_calls() > self._batches:
            self._shared_until = now + _SHARED_S
        if now < self._shared_until:
            loop.call_later(_MOMENT_S, self._give, loop)
        else:
            loop.call_soon(self._give, loop)

    def _give(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # its call may have been cancelled
                first.set_result(None)
                break
        self._is_due = bool(self._waiting)
        if self._is_due:
            self._schedule(loop)
