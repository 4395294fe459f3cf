"""The supervisor's event loop: descriptors and timers, nothing else.

It is not asyncio, so that the process can fork at any time.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_S: Final = 60.0


class Loop:
    """Calls handlers when descriptors are ready and timers are due, one at a time."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, handler: Callable[[], None], *, writable: bool = False) -> None:
        """Call ``handler`` whenever ``fd`` is readable, or writable too if asked; replaces."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writable else 0)
        try:
            self._selector.modify(fd, events, handler)
        except KeyError:
            self._selector.register(fd, events, handler)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, before it is closed; one that isn't watched is ignored."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call ``act`` once, in ``delay_s`` seconds."""
        self._timers.append((time.monotonic() + delay_s, act))

    def turn(self) -> None:
        """Wait for something to happen, and handle it."""
        now_s = time.monotonic()
        due_s = min((at for at, _ in self._timers), default=now_s + _IDLE_S)
        for key, _events in self._selector.select(max(0.0, due_s - now_s)):
            # An earlier handler of this turn may have closed what this event is about.
            if self._selector.get_map().get(key.fd) is key:
                handler: Callable[[], None] = key.data
                handler()
        now_s = time.monotonic()
        due = [act for at, act in self._timers if at <= now_s]
        self._timers = [(at, act) for at, act in self._timers if at > now_s]
        for act in due:
            act()

    def close(self) -> None:
        """Release the selector; the descriptors stay as they are."""
        self._selector.close()
