"""Receive: a call's one message, within a time limit.

One clock for all calls, ticking once a second: a timer of its own for each call costs more than
the rest of receiving it. So a limit of n seconds is kept within n to n + 1.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from keyside_sidecar.peer.connection import Connection

_TICK_S: Final = 1.0
# How long a call's message may take to arrive.
_LIMIT_S: Final = 10
_PUBLIC_LIMIT_S: Final = 2


class Arrivals:
    """The messages that one worker is waiting for."""

    def __init__(self) -> None:
        self._now = 0
        self._due: dict[asyncio.Task[Any], int] = {}
        self._late: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Tick for ever, and end the calls whose message is late."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._now += 1
            for task, due in tuple(self._due.items()):
                if due < self._now and task not in self._late:
                    self._late.add(task)
                    task.cancel()

    async def receive(self, message: Awaitable[object], limit_s: int) -> bytes:
        """Return a call's one message, unparsed.

        Args:
            message: What reads it; gives something else than bytes where the caller has sent none.
            limit_s: How long it may take, in seconds.

        Raises:
            BadRequest: It did not come, or not in time.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (the transport runs each call in a task)
        self._due[task] = self._now + limit_s
        try:
            data = await message
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise BadRequest("request", f"did not arrive within {limit_s} s") from None
        finally:
            del self._due[task]
            self._late.discard(task)
        if not isinstance(data, bytes):
            raise BadRequest("request", "has no message")
        return data


def limit_of(connection: Connection) -> int:
    """Return how long a message may take on a connection, in seconds.

    A caller who is allowed nothing gets little time.
    """
    return _PUBLIC_LIMIT_S if connection.public_only else _LIMIT_S
