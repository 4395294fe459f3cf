"""What this process has seen in the tables outside the store's generation, where values only grow.

A row there that is smaller than it was before was put back from the past. "Before" means before the
transaction that reads it began: another thread may see a newer one at the same time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import StoreTampered

if TYPE_CHECKING:
    from collections.abc import Hashable

_REMEMBERED: Final = 65_536


class Witness:
    """Remembers values that only grow, for the threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._seen: OrderedDict[Hashable, tuple[int, tuple[int, ...]]] = OrderedDict()

    def begin(self) -> int:
        """Return a mark to be taken before a transaction begins."""
        with self._lock:
            return self._sequence

    def has_seen(self, place: Hashable, since: int) -> bool:
        """Return whether a row was there before the mark ``since``."""
        with self._lock:
            seen = self._seen.get(place)
        return seen is not None and seen[0] <= since

    def notice(self, place: Hashable, values: tuple[int, ...], since: int, name: str) -> None:
        """Take note of a row's values.

        Args:
            place: Names the row.
            values: Those that only grow.
            since: The mark from before the transaction that has read or written them.
            name: Names the row in the error.

        Raises:
            StoreTampered: One of them was greater before that.
        """
        with self._lock:
            known = self._seen.get(place)
            number, seen = known or (0, values)
            if number <= since and any(
                now < before for now, before in zip(values, seen, strict=True)
            ):
                raise StoreTampered(f"{name}, which has gone back,")
            highest = tuple(map(max, values, seen))
            if known is None or highest != seen:
                self._sequence += 1
                self._seen[place] = (self._sequence, highest)
            self._seen.move_to_end(place)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
