"""Work that goes on to its end although whoever asked for it has gone."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from keyside_sidecar.server.pipeline.limit import Slot

T = TypeVar("T")

_SETTLE_S: Final = 1.0


class UnderWay:
    """What people have begun, of one worker."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T], slot: Slot) -> T:
        """Do something to its end, even if the caller goes away; return what it returns.

        Args:
            work: What to do.
            slot: The call's place among those in flight, held until the work is done.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        slot.hold()
        task.add_done_callback(partial(self._forget, slot))
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Wait for what is under way, for a while: its outcome belongs into the log.

        What takes longer is left, and the log says that its outcome is not known.
        """
        if self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=_SETTLE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _forget(self, slot: Slot, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        slot.leave()
        if not task.cancelled():
            task.exception()  # its caller may be gone
