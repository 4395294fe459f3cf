"""Who works when: long work takes turns, so that short calls are answered in between.

A worker has one event loop. A batch works for about a millisecond, then waits for its next turn;
one turn is given in a round of the loop, however many batches there are. A short call takes several
rounds, and threads of gRPC's own between them. So turns are shorter while there are such calls, and
none is given while one is under way, from its arrival at the relay to its answer; but not for long,
so that batches go on however many short calls there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Final

_TURN_S: Final = 0.001
_SHARED_TURN_S: Final = 0.0005
# A short call that takes longer waits for something else than the loop.
_SHORT_S: Final = 0.005
# So long after a short call was seen, others are expected.
_SHARED_S: Final = 0.05
# So long it takes from the relay to gRPC's saying that there is a call.
_ARRIVAL_S: Final = 0.0005
# Rounds of the loop after the last short call has ended, in which its answer leaves.
_ROUNDS_AFTER: Final = 2
# So long a turn is held back for short calls at most.
_HELD_S: Final = 0.002
# Of one account: more would gain no speed, and each holds its whole message.
_BATCHES_PER_UID: Final = 4


class Turns:
    """Gives turns, in the order in which they are asked for. For one event loop.

    Attributes:
        short: How many short calls have arrived and have no answer yet.
    """

    def __init__(self) -> None:
        self.short = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False
        self._short_until = 0.0
        self._shared_until = 0.0
        self._arrival_until = 0.0
        self._held_until = 0.0
        self._turn_s = _TURN_S
        self._rounds_left = 0
        self._batches = 0
        self._by_uid: dict[int, tuple[asyncio.Semaphore, int]] = {}

    def expect_short(self) -> None:
        """Take note that what may be a short call has arrived, and is not in flight yet."""
        if self._batches:
            self._arrival_until = perf_counter() + _ARRIVAL_S

    def begin_short(self) -> None:
        """Count a short call that has arrived, until ``end_short``."""
        self.short += 1
        if self._batches:
            self._short_until = perf_counter() + _SHORT_S

    def end_short(self) -> None:
        """Take note that a short call has its answer, or none is coming soon."""
        self.short -= 1

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
        self._arrival_until = 0.0  # a small batch looks like a short call to the relay
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
        return perf_counter() + self._turn_s

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # Whoever has just been given a turn has it next; the loop sees what arrived after that.
        loop.call_soon(loop.call_soon, self._begin_holding, loop)

    def _begin_holding(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look for short calls: the last turn has ended, and the loop has come round."""
        now = perf_counter()
        self._held_until = now + _HELD_S
        self._rounds_left = _ROUNDS_AFTER if now < self._shared_until else 0
        self._give_when_quiet(loop)

    def _give_when_quiet(self, loop: asyncio.AbstractEventLoop) -> None:
        now = perf_counter()
        if self.short and now < self._short_until:
            self._shared_until = now + _SHARED_S
            self._rounds_left = _ROUNDS_AFTER
        is_late = now >= self._held_until
        if not is_late and (self._rounds_left or now < self._arrival_until):
            self._rounds_left = max(0, self._rounds_left - 1)
            loop.call_soon(self._give_when_quiet, loop)
            return
        self._rounds_left = 0
        is_shared = now < self._shared_until and not is_late
        self._turn_s = _SHARED_TURN_S if is_shared else _TURN_S
        self._give(loop)

    def _give(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # its call may have been cancelled
                first.set_result(None)
                break
        self._is_due = bool(self._waiting)
        if self._is_due:
            self._schedule(loop)


class Pace:
    """Work that takes turns.

    Args:
        turns: Gives them.
        at_once_s: So long it works before it takes the first one.
    """

    __slots__ = ("_turns", "_until")

    def __init__(self, turns: Turns, at_once_s: float = 0.0) -> None:
        self._turns = turns
        self._until = perf_counter() + at_once_s

    async def pause(self) -> None:
        """Take another turn, if this one is over."""
        if perf_counter() > self._until:
            self._until = await self._turns.take()
