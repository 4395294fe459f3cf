"""Threads for calls that may never return, and the bounded queue of those that wait for one.

The event loop's own executor won't do: its threads are joined when the process exits, and four
calls that hang would keep it from ever running a fifth. These are daemon threads, and one that has
hung for long is given up: it stays, until its call returns, but another takes its place.
"""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.clock import Clock

GIVEN_UP_AFTER_S: Final = 15.0
_GIVEN_UP_PER_THREAD: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Something to run once in a thread.

    Args:
        run: What to run; must not raise.
        drop: Called instead where there is no room for it, by the thread that submits.
    """

    run: Callable[[], None]
    drop: Callable[[], None]


class FairQueue:
    """A bounded queue that serves its shares in turn, and each share's jobs oldest first.

    When it is full, the longest share loses its newest job, unless the job that comes would make
    its own share as long: then that one finds no room. So a share that floods crowds out itself
    only, while there are fewer shares than places. (McKenney, "Stochastic Fairness Queueing",
    1990: buffer stealing.) Not safe for threads.

    Args:
        capacity: How many jobs it holds, of all shares together. At least 1.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._shares: collections.OrderedDict[int, collections.deque[Job]] = (
            collections.OrderedDict()
        )
        self._count = 0

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return self._count

    def put(self, job: Job, share: int) -> Job | None:
        """Add a job; return the one that there is no room for, this or another, if any."""
        dropped = None
        if self._count >= self._capacity:
            longest = max(self._shares.values(), key=len)
            if len(self._shares.get(share, ())) + 1 >= len(longest):
                return job
            dropped = longest.pop()
            self._count -= 1
        self._shares.setdefault(share, collections.deque()).append(job)
        self._count += 1
        return dropped

    def take(self) -> Job:
        """Remove the next job. There must be one."""
        share, jobs = self._shares.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._shares[share] = jobs
        self._count -= 1
        return job

    def clear(self) -> None:
        """Forget all jobs."""
        self._shares.clear()
        self._count = 0


class LookupThreads:
    """A few daemon threads that work off a :class:`FairQueue`. Starts them when needed.

    Args:
        threads: How many work at once; at most five times as many exist, where all others hang.
        clock: Tells how long a call has been hanging.
        capacity: How many jobs may wait for a thread.
    """

    def __init__(self, threads: int, clock: Clock, capacity: int) -> None:
        self._wanted = threads
        self._clock = clock
        self._condition = threading.Condition()
        self._jobs = FairQueue(capacity)
        self._idle = 0
        # Since when each thread that isn't idle has been at its job.
        self._busy: dict[threading.Thread, float] = {}
        self._closed = False

    def submit(self, job: Job, share: int = 0) -> None:
        """Have a thread run ``job``, or drop it or another at once where there is no room.

        Args:
            job: What to run.
            share: On whose behalf: the shares take turns.
        """
        with self._condition:
            dropped = self._jobs.put(job, share)
            self._wake_or_start()
        if dropped is not None:
            dropped.drop()

    def relieve(self) -> None:
        """Start a thread in the place of one that was given up, if there are jobs that wait."""
        with self._condition:
            self._wake_or_start()

    def all_busy(self) -> bool:
        """Tell whether as many threads as there should be are inside a call, and none is idle."""
        with self._condition:
            return self._idle == 0 and len(self._busy) >= self._wanted

    def close(self) -> None:
        """Drop what is queued and end the threads that aren't inside a call. Waits for nothing."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._condition.notify_all()

    def _wake_or_start(self) -> None:
        if self._idle >= len(self._jobs):
            self._condition.notify()
        elif self._may_start():
            thread = threading.Thread(target=self._work, name="lookup", daemon=True)
            self._busy[thread] = self._clock.monotonic_s()
            try:
                thread.start()
            except RuntimeError:  # no more threads for now: the job stays in the queue
                del self._busy[thread]

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
                job = self._jobs.take()
                self._busy[me] = self._clock.monotonic_s()
            job.run()
            del job
