"""What this process has already checked, and the way back that it refuses to go.

A snapshot is the store's own row with all ``keys`` rows, checked together. As long as the store's
row is the same (its MAC is), or their digest in it is, so are they, and reading a version checks
three rows, not all.

The store's generation only grows. A process that has seen one refuses a store with a smaller one,
and one with the same number but other content: someone put an older copy back, or let two copies
grow apart. It goes on refusing until the store is at least where it was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
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
    """The newest state of the store that this process knew of at some moment.

    Args:
        generation: The store's.
        mac: Of the store's own row.
        era: How often everything had been forgotten: what a transaction reads that began before
            that must not be remembered after it.
    """

    generation: int
    mac: bytes
    era: int = 0


class Memory:
    """Remembers snapshots and indexes for the threads of this process.

    Args:
        meta: The store's own row, checked, as first seen.
    """

    def __init__(self, meta: Row) -> None:
        self._lock = threading.Lock()
        self._mark = Mark(meta["generation"], meta["mac"])
        self._snapshot: Snapshot | None = None
        self._indexes: dict[str, VersionIndex] = {}

    def mark(self) -> Mark:
        """Return what a transaction that begins after this call must be at least as new as."""
        with self._lock:
            return self._mark

    def load_snapshot(self, reader: Reader) -> Snapshot:
        """Return the snapshot for the transaction that ``reader`` is in.

        Raises:
            StoreTampered: Something does not fit, or the store has gone back.
        """
        meta, mark = reader.read_meta(), reader.mark
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
        if snapshot is not None and snapshot.meta["keys_digest"] == meta["keys_digest"]:
            # The digest's random mask is new whenever a key changes: these are the same rows.
            fresh = Snapshot(meta, snapshot.keys)
        else:
            fresh = Snapshot(meta, reader.read_keys(meta))
        self.remember(reader, fresh)
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
            self._keep(reader, fresh)
        return fresh

    def remember(
        self, reader: Reader, snapshot: Snapshot, index: VersionIndex | None = None
    ) -> None:
        """Take note of a state that ``reader`` has read, or that was committed after it."""
        with self._lock:
            generation = snapshot.meta["generation"]
            if generation > self._mark.generation:
                self._mark = Mark(generation, snapshot.meta["mac"], self._mark.era)
            if reader.mark.era == self._mark.era and (
                self._snapshot is None or generation > self._snapshot.meta["generation"]
            ):
                self._snapshot = snapshot
            if index is not None:
                self._keep(reader, index)

    def forget(self) -> None:
        """Check everything anew at the next use; the mark stays."""
        with self._lock:
            self._mark = replace(self._mark, era=self._mark.era + 1)
            self._snapshot = None
            self._indexes.clear()

    def _keep(self, reader: Reader, index: VersionIndex) -> None:
        known = self._indexes.get(index.key_name)
        if reader.mark.era == self._mark.era and (
            known is None or known.generation < index.generation
        ):
            self._indexes[index.key_name] = index
