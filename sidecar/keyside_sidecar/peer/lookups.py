"""Threads for calls that may never return.

The event loop's own executor won't do: its threads are joined when the process exits, and four
calls that hang would keep it from ever running a fifth. These are daemon threads, and one that has
hung for long is given up: it stays, until its call returns, but another takes its place.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.clock import Clock

GIVEN_UP_AFTER_S: Final = 15.0
_GIVEN_UP_PER_THREAD: Final = 4


class LookupThreads:
    """A few daemon threads that work off a queue, oldest job first. Starts them when needed.

    Args:
        threads: How many work at once; at most five times as many exist, where all others hang.
        clock: Tells how long a call has been hanging.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        self._wanted = threads
        self._clock = clock
        self._condition = threading.Condition()
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._idle = 0
        # Since when each thread that isn't idle has been at its job.
        self._busy: dict[threading.Thread, float] = {}
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread run ``job``, which must not raise."""
        with self._condition:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._condition.notify()
            elif self._may_start():
                thread = threading.Thread(target=self._work, name="lookup", daemon=True)
                self._busy[thread] = self._clock.monotonic_s()
                try:
                    thread.start()
                except RuntimeError:  # no more threads for now: the job stays in the queue
                    del self._busy[thread]

    def close(self) -> None:
        """Drop what is queued and end the threads that aren't inside a call. Waits for nothing."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._condition.notify_all()

    def _may_start(self) -> bool:
        given_up_before = self._clock.monotonic_s() - GIVEN_UP_AFTER_S
        given_up = sum(since <= given_up_before for since in self._busy.values())
        total = self._idle + len(self._busy)
        limit = self._wanted + min(given_up, self._wanted * _GIVEN_UP_PER_THREAD)
        return not self._closed and total < limit

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._condition:
                self._busy.pop(me, None)
                if self._idle + len(self._busy) >= self._wanted and not self._jobs:
                    return  # it was given up, and others have taken its place
                self._idle += 1
                while not self._jobs and not self._closed:
                    self._condition.wait()
                self._idle -= 1
                if self._closed:
                    return
                job = self._jobs.popleft()
                self._busy[me] = self._clock.monotonic_s()
            job()
            del job
