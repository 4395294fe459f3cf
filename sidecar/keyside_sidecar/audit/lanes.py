"""What a worker has to say to the recorder and is not known to be on the disk yet.

put ──► waiting ──take──► under way ──acknowledge──► done
           ▲                  │
           └─────restart──────┘      (another recorder: the former one's acknowledgements end)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyside_sidecar.audit.wire import FULL_PACKET_BYTES, MAX_PACKET_RECORDS

if TYPE_CHECKING:
    import asyncio


@dataclass(slots=True, eq=False)
class Item:
    """One record on its way.

    Args:
        body: Its text.
        since_s: When it was given, on the monotonic clock.
        waiter: Who waits for it, if somebody does.
    """

    body: str
    since_s: float
    waiter: asyncio.Future[None] | None = None


class Lane:
    """Records of one kind, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[Item] = deque()
        self._under_way: deque[Item] = deque()
        self._acknowledged = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._waiting)

    @property
    def waiting_count(self) -> int:
        """How many are still to be sent."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float | None:
        """When the oldest record was given that is not on the disk."""
        if self._under_way:
            return self._under_way[0].since_s
        return self._waiting[0].since_s if self._waiting else None

    def put(self, item: Item) -> None:
        """Add a record."""
        self._waiting.append(item)
        self.size_bytes += len(item.body)

    def peek(self) -> list[Item]:
        """Return the next records that go into one packet together."""
        taken: list[Item] = []
        size = 0
        for item in self._waiting:
            size += len(item.body) + 1
            if taken and (size > FULL_PACKET_BYTES or len(taken) == MAX_PACKET_RECORDS):
                break
            taken.append(item)
        return taken

    def mark_sent(self, count: int) -> None:
        """Take note that the next ``count`` records were sent."""
        for _ in range(count):
            self._under_way.append(self._waiting.popleft())

    def acknowledge(self, total: int) -> int:
        """Take note that ``total`` records are on the disk since the last restart.

        Returns:
            How many of them were not known to be.
        """
        count = 0
        while self._acknowledged < total and self._under_way:
            item = self._under_way.popleft()
            self.size_bytes -= len(item.body)
            self._acknowledged += 1
            count += 1
            if item.waiter is not None and not item.waiter.done():
                item.waiter.set_result(None)
        return count

    def restart(self) -> None:
        """Have everything sent again that is not known to be on the disk."""
        self._under_way.extend(self._waiting)
        self._waiting, self._under_way = self._under_way, deque()
        self._acknowledged = 0

    def withdraw(self, item: Item) -> bool:
        """Take back a record that was not sent yet; return whether that was so."""
        try:
            self._waiting.remove(item)
        except ValueError:
            return False
        self.size_bytes -= len(item.body)
        return True
