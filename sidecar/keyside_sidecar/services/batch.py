"""One batch: how its items are judged, how they take turns, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from keyside.envelope import parse_wrapping_header
from keyside.envelope.header import AFTER_PREFIX
from keyside_sidecar.errors import Refused
from keyside_sidecar.services.encryption import Opened, Renewed, Sealed
from keyside_sidecar.services.failures import Failure
from keyside_sidecar.services.turns import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyside.envelope import VersionKey, WrappingHeader
    from keyside.names import KeyName
    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.errors import RequestError
    from keyside_sidecar.services.tally import Tally
    from keyside_sidecar.services.turns import Turns

T = TypeVar("T")

Outcome: TypeAlias = "Sealed | Opened | Renewed | Failure"


class Sink(Protocol):
    """Takes what becomes of the items, in their order."""

    def add(self, outcome: Outcome) -> None:
        """Take the next item's outcome."""

    def end_turn(self) -> None:
        """Make of what was added whatever is to be made of it: the turn is over."""


class Outcomes:
    """A sink that keeps what it takes, until a grant's uses are counted."""

    def __init__(self) -> None:
        self.found: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.found.append(outcome)

    def end_turn(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Batch:
    """How a batch's items are judged, and counted.

    Args:
        decide: Says why the caller may not do this with a key; None where it may.
        tally: Counts what becomes of the items.
        refused: Items that are refused whatever ``decide`` says, by their place.
        uses: How many of a grant's uses it came to.
    """

    decide: Callable[[KeyName], Reason | None]
    tally: Tally
    refused: Mapping[int, Exception] = field(default_factory=dict)
    uses: int = 0

    def withdraw(self, outcome: Outcome, error: Exception) -> Failure:
        """Take back what an item came to; return what it tells instead.

        Args:
            outcome: What it came to; no failure.
            error: The error.
        """
        if isinstance(outcome, Renewed):
            previous = outcome.previous
            place = str(previous.key_name), int(previous.number)
            self.tally.count(*place, -1, new_version=int(outcome.version.number))
        elif not isinstance(outcome, Failure):
            self.tally.count(outcome.version.key_name, int(outcome.version.number), -1)
        return self.tally.fail(error)


@dataclass(slots=True)
class Group:
    """Items with which the same is done.

    Args:
        version: The version that wraps, or wrapped, their data keys.
        act: Is given an item's place, and returns what it came to. What it raises is the item's
            failure.
        new: The version that they are rewrapped to.
        done: With how many it succeeded.
    """

    version: VersionKey
    act: Callable[[int], Outcome]
    new: VersionKey | None = None
    done: int = 0


class Work(Pace):
    """The work on a batch, a turn at a time: sort the items into groups, then ``run``.

    Args:
        batch: The batch.
        turns: Says when to work.
        count: How many items there are.
        find_stop: Says why a version may not be used any more; asked again in each turn.
    """

    __slots__ = (
        *("_batch", "_failures", "_find_stop", "_groups", "_known", "_owners", "_versions"),
    )

    def __init__(
        self,
        batch: Batch,
        turns: Turns,
        count: int,
        *,
        find_stop: Callable[[VersionKey], RequestError | None],
    ) -> None:
        super().__init__(turns)
        self._find_stop = find_stop
        self._batch = batch
        self._groups: list[Group] = []
        self._owners: list[Group | None] = [None] * count
        self._failures: dict[int, Failure] = {}
        self._known: dict[bytes, VersionKey] = {}
        self._versions: set[VersionKey] = set()

    async def sort(self, keys: Iterable[T]) -> dict[T, list[int]]:
        """Return the items' places by what they have in common; those refused fail.

        Args:
            keys: What each item has.
        """
        found: dict[T, list[int]] = {}
        refused = self._batch.refused
        for place, key in enumerate(keys):
            if perf_counter() > self._until:
                self._until = await self._turns.take()
            if place in refused:
                self.fail((place,), refused[place])
            elif key in found:
                found[key].append(place)
            else:
                found[key] = [place]
        return found

    def read_header(self, raw: bytes) -> WrappingHeader:
        """Read a wrapping header, and judge the key that it names.

        Raises:
            EnvelopeRejected: It is none.
            Refused: The caller may not do this with the key.
        """
        header = parse_wrapping_header(raw)
        self.require(header.key_name)
        return header

    def recall(self, raw: bytes) -> VersionKey | None:
        """Return the version of an earlier header that named the same one, in the same suite.

        The key was judged then. What is compared is all of a header that comes before its salt,
        with the length of the key's name in it.
        """
        return self._known.get(raw[:-AFTER_PREFIX])

    def remember(self, raw: bytes, version: VersionKey) -> None:
        """Have later headers that name a version found by :meth:`recall`."""
        self._known[raw[:-AFTER_PREFIX]] = version

    def require(self, key: KeyName) -> None:
        """Judge a key.

        Raises:
            Refused: The caller may not do this with it.
        """
        reason = self._batch.decide(key)
        if reason is not None:
            raise Refused(reason)

    def fail(self, places: Iterable[int], error: Exception) -> None:
        """Have items tell an error."""
        for place in places:
            self._failures[place] = self._batch.tally.fail(error)

    def add(self, group: Group, places: Iterable[int] = ()) -> Group:
        """Have a group done, with the items in those places."""
        self._groups.append(group)
        self._versions.add(group.version)
        if group.new is not None:
            self._versions.add(group.new)
        for place in places:
            self._owners[place] = group
        return group

    def join(self, group: Group, place: int) -> None:
        """Put one more item into a group that was added."""
        self._owners[place] = group

    async def run(self, sink: Sink) -> None:
        """Do what there is to do, in the items' order.

        Args:
            sink: Is given what became of each item.
        """
        add, fail = sink.add, self._batch.tally.fail
        stopped = self._find_stopped()
        for place, group in enumerate(self._owners):
            if perf_counter() > self._until:
                sink.end_turn()
                self._until = await self._turns.take()
                stopped = self._find_stopped()
            if group is None:
                add(self._failures[place])
                continue
            try:
                if stopped:
                    _require_going(group, stopped)
                outcome = group.act(place)
            except Exception as error:  # noqa: BLE001  (the table names every kind)
                add(fail(error))
            else:
                add(outcome)
                group.done += 1
        sink.end_turn()

    def _find_stopped(self) -> dict[VersionKey, RequestError]:
        """Return the versions that were disabled, or destroyed, since they were found."""
        found = ((version, self._find_stop(version)) for version in self._versions)
        return {version: error for version, error in found if error is not None}

    def count(self) -> list[VersionKey]:
        """Count what succeeded (tally.py); return the versions under which something did."""
        used = [group for group in self._groups if group.done]
        for group in used:
            version = group.version
            self._batch.tally.count(
                version.key_name,
                int(version.number),
                group.done,
                new_version=0 if group.new is None else int(group.new.number),
            )
        return [group.version for group in used]


def _require_going(group: Group, stopped: Mapping[VersionKey, RequestError]) -> None:
    for version in (group.version, group.new):
        if version is not None and version in stopped:
            raise stopped[version]
