"""Look-ups of versions that are not in memory: one at a time for each, and few that are in vain."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import UnknownVersion
from keyside_sidecar.keys.cache import AbsenceMemory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside.names import KeyName
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.keys.cache import VersionCache
    from keyside_sidecar.store import OpenedVersion

_ABSENCES: Final = 4096
_ABSENCE_TTL_S: Final = 5.0


@dataclass(slots=True)
class _Flight:
    """A look-up under way, and the ids that its callers name: all but one of them are made up."""

    task: asyncio.Task[OpenedVersion]
    wanted: set[bytes]


class Lookups:
    """Loads versions into the cache: those that were asked for by their own id, and no others.

    Whoever may ask for one key could otherwise name its numbers with made-up ids, and so drive the
    versions of other keys out of the cache, which all keys share.

    Args:
        load: Asks the store for a version.
        cache: Where to put it.
        clock: For how long an absence is remembered.
    """

    def __init__(
        self,
        load: Callable[[KeyName, int], Awaitable[OpenedVersion]],
        cache: VersionCache,
        clock: Clock,
    ) -> None:
        self._load = load
        self._cache = cache
        self._clock = clock
        self._absences = AbsenceMemory(_ABSENCES, _ABSENCE_TTL_S)
        self._flights: dict[tuple[KeyName, int], _Flight] = {}
        self._epochs: Counter[KeyName] = Counter()

    def would_ask(self, key: KeyName, number: int, version_id: bytes) -> bool:
        """Return whether :meth:`find` would ask the store now."""
        return not self._absences.holds(key, number, version_id, self._clock.monotonic_s())

    async def find(self, key: KeyName, number: int, version_id: bytes) -> OpenedVersion:
        """Return a version from the store, however many callers want it at the same time.

        Args:
            key: The key's name.
            number: The version's number.
            version_id: The version's id.

        Raises:
            UnknownVersion: The key has no version of that number and id, or had none a moment ago.
            SidecarError: Whatever ``load`` raises.
        """
        if not self.would_ask(key, number, version_id):
            raise UnknownVersion(key, number)
        try:
            return await self._fetch(key, number, version_id)
        except UnknownVersion:
            self._absences.add(key, number, version_id, self._clock.monotonic_s())
            raise

    def overtake(self, key: KeyName) -> None:
        """Have the look-ups of a key that are under way done again: it has changed meanwhile."""
        self._epochs[key] += 1

    def cancel(self) -> None:
        """End all look-ups that are under way."""
        for flight in list(self._flights.values()):
            flight.task.cancel()

    async def _fetch(self, key: KeyName, number: int, version_id: bytes) -> OpenedVersion:
        # A look-up that is under way may have begun before the version was made for which this
        # one is wanted. One that began after this call can't have.
        began_earlier = (key, number) in self._flights
        try:
            found = await self._fly(key, number, version_id)
        except UnknownVersion:
            if not began_earlier:
                raise
            found = await self._fly(key, number, version_id)
        if found.info.version_id != version_id:
            raise UnknownVersion(key, number)
        return found

    async def _fly(self, key: KeyName, number: int, version_id: bytes) -> OpenedVersion:
        flight = self._flights.get((key, number))
        if flight is None:
            wanted: set[bytes] = set()
            task = asyncio.create_task(self._look_up(key, number, wanted))
            flight = self._flights[key, number] = _Flight(task, wanted)
            task.add_done_callback(partial(self._land, (key, number)))
        flight.wanted.add(version_id)
        # A caller that goes away doesn't take the look-up from the others.
        return await asyncio.shield(flight.task)

    def _land(self, place: tuple[KeyName, int], task: asyncio.Task[OpenedVersion]) -> None:
        self._flights.pop(place, None)
        if not task.cancelled():
            task.exception()  # seen, even where every caller has gone

    async def _look_up(self, key: KeyName, number: int, wanted: set[bytes]) -> OpenedVersion:
        while True:
            epoch = self._epochs[key]
            found = await self._load(key, number)
            if epoch == self._epochs[key]:
                # Here, not in find(): a refresh may come before the callers have woken up.
                if found.info.version_id in wanted:
                    self._cache.put(found)
                return found
