"""Versions in memory, and look-ups that came to nothing. Both are bounded; neither does I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyside.names import KeyName
    from keyside_sidecar.store import OpenedVersion


class VersionCache:
    """The versions used last, current ones apart.

    Args:
        capacity: At most so many.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._versions: OrderedDict[tuple[KeyName, int], OpenedVersion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._versions)

    def get(self, key: KeyName, number: int) -> OpenedVersion | None:
        """Return a version, which counts as a use; None if it isn't here."""
        found = self._versions.get((key, number))
        if found is not None:
            self._versions.move_to_end((key, number))
        return found

    def put(self, version: OpenedVersion) -> None:
        """Take a version in, as the one used last; the one not used for longest may go."""
        place = (version.info.key_name, int(version.info.number))
        self._versions[place] = version
        self._versions.move_to_end(place)
        while len(self._versions) > self._capacity:
            self._versions.popitem(last=False)

    def replace(self, version: OpenedVersion) -> None:
        """Exchange what is known of a version that is here; its turn to go stays the same."""
        place = (version.info.key_name, int(version.info.number))
        if place in self._versions:
            self._versions[place] = version

    def drop(self, key: KeyName, number: int) -> None:
        """Forget a version, if it is here."""
        self._versions.pop((key, number), None)

    def list_versions(self, key: KeyName) -> list[OpenedVersion]:
        """Return all versions of a key that are here; counts as no use."""
        return [v for (name, _), v in self._versions.items() if name == key]


class AbsenceMemory:
    """Versions that the store did not have, or not under that id, when it was asked.

    Remembered by number *and* id: the id of a version that is made later is random, so an answer
    that is remembered here can't be wrong about it.

    Args:
        capacity: At most so many.
        ttl_s: For so long, in seconds: a store that was restored may have what was absent.
    """

    def __init__(self, capacity: int, ttl_s: float) -> None:
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._until: OrderedDict[tuple[KeyName, int, bytes], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def holds(self, key: KeyName, number: int, version_id: bytes, now_s: float) -> bool:
        """Return whether the version was absent a short while ago."""
        return now_s < self._until.get((key, number, version_id), now_s)

    def add(self, key: KeyName, number: int, version_id: bytes, now_s: float) -> None:
        """Remember that the version is absent."""
        place = (key, number, version_id)
        self._until[place] = now_s + self._ttl_s
        self._until.move_to_end(place)
        while len(self._until) > self._capacity:
            self._until.popitem(last=False)
