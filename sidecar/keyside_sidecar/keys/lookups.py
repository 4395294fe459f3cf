"""Look-ups of versions that are not in memory: one at a time for each, and few that are in vain."""

from __future__ import annotations

import asyncio
from collections import Counter
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


class Lookups:
    """Loads versions into the cache.

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
        self._flights: dict[tuple[KeyName, int], asyncio.Task[OpenedVersion]] = {}
        self._epochs: Counter[KeyName] = Counter()

    async def find(self, key: KeyName, number: int, version_id: bytes) -> OpenedVersion:
        """Return a version from the store, however many callers want it at the same time.

        Args:
            key: The key's name.
            number: The version's number.
            version_id: The id that is looked for; the version found may have another.

        Raises:
            UnknownVersion: The key has no version of that number, or had none a moment ago.
            SidecarError: Whatever ``load`` raises.
        """
        if self._absences.holds(key, number, version_id, self._clock.monotonic_s()):
            raise UnknownVersion(key, number)
        # A look-up that is under way may have begun before the version was made for which this
        # one is wanted. One that began after this call can't have.
        began_earlier = (key, number) in self._flights
        try:
            return await self._fly(key, number)
        except UnknownVersion:
            if not began_earlier:
                self._absences.add(key, number, version_id, self._clock.monotonic_s())
                raise
        try:
            return await self._fly(key, number)
        except UnknownVersion:
            self._absences.add(key, number, version_id, self._clock.monotonic_s())
            raise

    def overtake(self, key: KeyName) -> None:
        """Have the look-ups of a key that are under way done again: it has changed meanwhile."""
        self._epochs[key] += 1

    def cancel(self) -> None:
        """End all look-ups that are under way."""
        for flight in list(self._flights.values()):
            flight.cancel()

    async def _fly(self, key: KeyName, number: int) -> OpenedVersion:
        flight = self._flights.get((key, number))
        if flight is None:
            flight = asyncio.create_task(self._look_up(key, number))
            self._flights[key, number] = flight
            flight.add_done_callback(partial(self._land, (key, number)))
        # A caller that goes away doesn't take the look-up from the others.
        return await asyncio.shield(flight)

    def _land(self, place: tuple[KeyName, int], flight: asyncio.Task[OpenedVersion]) -> None:
        self._flights.pop(place, None)
        if not flight.cancelled():
            flight.exception()  # seen, even where every caller has gone

    async def _look_up(self, key: KeyName, number: int) -> OpenedVersion:
        while True:
            epoch = self._epochs[key]
            found = await self._load(key, number)
            if epoch == self._epochs[key]:
                self._cache.put(found)
                return found
