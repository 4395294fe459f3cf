"""Answers that are ready in one round of the event loop leave it together.

Calls that arrive together are worked on one after the other, and only then are their answers
handed to gRPC, instead of a call being worked on, handed over, and the next one begun: gRPC's code
and ours each find their own instructions and data in the processor's caches then, and not the
other's (ADR 13).
"""

from __future__ import annotations

import asyncio


class Rounds:
    """Holds answers back until the round is over. For one event loop."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def end(self) -> None:
        """Wait until what else is ready in this round has been worked on."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._release)
        self._waiting.append(mine)
        await mine

    def _release(self) -> None:
        released, self._waiting = self._waiting, []
        for each in released:
            if not each.done():  # its call may have been cancelled
                each.set_result(None)
