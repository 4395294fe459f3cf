"""What this process has already checked, and the way back that it refuses to go.

A snapshot is the store's own row with all ``keys`` rows, checked together. As long as the store's
row is the same (its MAC is), so are they, and reading a version checks three rows, not all.

The store's generation only grows. A process that has seen one refuses a store with a smaller one,
and one with the same number but other content: someone put an older copy back, or let two copies
grow apart. It goes on refusing until the store is at least where it was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyside_sidecar.errors import StoreTampered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.store.reader import Reader, VersionIndex

    Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store's own row, and the ``keys`` rows by name, checked against it."""

    meta: Row
    keys: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest state of the store that this process knew of at some moment."""

    generation: int
    mac: bytes


class Memory:
    """Remembers snapshots and indexes for the threads of this process.

    Args:
        meta: The store's own row, checked, as first seen.
    """

    def __init__(self, meta: Row) -> None:
        self._lock = threading.Lock()
        self._mark = _mark(meta)
        self._snapshot: Snapshot | None = None
        self._indexes: dict[str, VersionIndex] = {}

    def mark(self) -> Mark:
        """Return what a transaction that begins after this call must be at least as new as."""
        with self._lock:
            return self._mark

    def remember(self, snapshot: Snapshot, index: VersionIndex | None = None) -> None:
        """Take note of a state that was read, or that this process has committed."""
        with self._lock:
            generation = snapshot.meta["generation"]
            if generation > self._mark.generation:
                self._mark = _mark(snapshot.meta)
            if self._snapshot is None or generation > self._snapshot.meta["generation"]:
                self._snapshot = snapshot
            if index is not None:
                self._keep(index)

    def load_snapshot(self, reader: Reader, mark: Mark) -> Snapshot:
        """Return the snapshot for the transaction that ``reader`` is in.

        Args:
            reader: Reads.
            mark: Taken before the transaction began.

        Raises:
            StoreTampered: Something does not fit, or the store has gone back.
        """
        meta = reader.read_meta()
        if meta["generation"] < mark.generation:
            raise StoreTampered(
                f"generation {meta['generation']}, older than {mark.generation} seen before,"
            )
        if meta["generation"] == mark.generation and meta["mac"] != mark.mac:
            raise StoreTampered(f"generation {mark.generation}, different from that seen before,")
        with self._lock:
            snapshot = self._snapshot
        if snapshot is not None and snapshot.meta["mac"] == meta["mac"]:
            return snapshot
        fresh = Snapshot(meta, reader.read_keys(meta))
        self.remember(fresh)
        return fresh

    def load_index(self, reader: Reader, key: Row) -> VersionIndex:
        """Return the checked index of the versions of ``key``, a row of the snapshot.

        Raises:
            StoreTampered: The versions are not the ones that the key has.
        """
        with self._lock:
            index = self._indexes.get(key["name"])
        if index is not None and index.key_mac == key["mac"]:
            return index
        fresh = reader.read_index(key)
        with self._lock:
            self._keep(fresh)
        return fresh

    def forget(self) -> None:
        """Check everything anew at the next use; the mark stays."""
        with self._lock:
            self._snapshot = None
            self._indexes.clear()

    def _keep(self, index: VersionIndex) -> None:
        known = self._indexes.get(index.key_name)
        if known is None or known.generation < index.generation:
            self._indexes[index.key_name] = index


def _mark(meta: Row) -> Mark:
    return Mark(meta["generation"], meta["mac"])
