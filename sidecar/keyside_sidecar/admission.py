"""Which worker gets a connection, and whether it is taken at all. Pure: no sockets here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_KEPT_FOR_INSIDERS: Final = 4


@dataclass(slots=True)
class Ledger:
    """The open connections of the host, by uid and by worker.

    Args:
        max_connections: At most this many in all.
        max_connections_per_uid: At most this many for one uid.
    """

    max_connections: int
    max_connections_per_uid: int
    _owners: dict[int, tuple[int, int]] = field(default_factory=dict)
    _by_uid: dict[int, int] = field(default_factory=dict)
    _by_worker: dict[int, int] = field(default_factory=dict)
    _next_number: int = 1

    def has_room(self, uid: int, *, insider: bool = True) -> bool:
        """Return whether one more connection of ``uid`` may be taken.

        Args:
            uid: Whose.
            insider: Policy may allow the caller something. The last quarter of the room is kept
                for those, so that strangers can't take it all, however many uids they have.
        """
        room = self.max_connections
        if not insider:
            room -= room // _KEPT_FOR_INSIDERS
        return len(self._owners) < room and self._by_uid.get(uid, 0) < self.max_connections_per_uid

    def add(self, uid: int, worker: int) -> int:
        """Count a connection and return its number."""
        number = self._next_number
        self._next_number += 1
        self._owners[number] = (uid, worker)
        self._by_uid[uid] = self._by_uid.get(uid, 0) + 1
        self._by_worker[worker] = self._by_worker.get(worker, 0) + 1
        return number

    def remove(self, number: int, *, worker: int | None = None) -> None:
        """Forget a connection; one that is not known, or not ``worker``'s, is ignored."""
        owner = self._owners.get(number)
        if owner is None or worker not in {None, owner[1]}:
            return
        del self._owners[number]
        uid, worker = owner
        _decrement(self._by_uid, uid)
        _decrement(self._by_worker, worker)

    def remove_worker(self, worker: int) -> None:
        """Forget all connections of a worker that has ended."""
        for number in [n for n, (_uid, owner) in self._owners.items() if owner == worker]:
            self.remove(number)

    def serves(self, uid: int, worker: int) -> bool:
        """Return whether a worker has a connection of ``uid``."""
        return (uid, worker) in self._owners.values()

    def least_loaded(self, workers: list[int]) -> int:
        """Return the worker with the fewest connections, the longest unused first."""
        return min(workers, key=lambda worker: self._by_worker.get(worker, 0))

    def count(self) -> int:
        """Return how many connections are open."""
        return len(self._owners)


def _decrement(counts: dict[int, int], key: int) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
