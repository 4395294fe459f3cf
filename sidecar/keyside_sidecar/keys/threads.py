"""Threads for calls that may block or hang: never the event loop's, and never in the way of exit.

``concurrent.futures`` joins its threads when the interpreter ends, so that one hung call to a
database keeps a stopping sidecar alive. These are daemon threads.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyside_sidecar.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MAX_WAITING: Final = 1024


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class StoreThreads:
    """A few threads that run calls to the store, for one event loop.

    Args:
        name: For the threads' names.
        count: How many.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._waiting = 0

    async def run(self, function: Callable[[], T], *, timeout_s: float) -> T:
        """Return what ``function`` returns, run on one of the threads.

        A call that hasn't begun when the time is up is never begun. One that has begun goes on,
        and what becomes of it is not known here.

        Raises:
            StoreUnavailable: It did not end in time, or too many are waiting already.
            Exception: Whatever ``function`` raises.
        """
        if max(self._waiting, self._queue.qsize()) >= _MAX_WAITING:
            raise StoreUnavailable("too many calls are waiting for the store")
        self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting += 1
        self._queue.put(_Job(function, future, loop))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise StoreUnavailable(f"the store did not answer within {timeout_s:g} s") from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads end once they are done; waits for none of them."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _start(self) -> None:
        while len(self._threads) < self._count:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=_serve, args=(self._queue,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)


def _serve(queue: SimpleQueue[_Job | None]) -> None:
    while (job := queue.get()) is not None:
        if job.future.cancelled():
            continue
        try:
            result, error = job.function(), None
        except BaseException as caught:  # noqa: BLE001  (it belongs to the waiting coroutine)
            result, error = None, caught
        try:
            job.loop.call_soon_threadsafe(_settle, job.future, result, error)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            return
        del job, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
