"""A batch of any length, cut into calls that a sidecar accepts. Pure; reads lazily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from keyside.batch_results import BatchResult
from keyside.errors import InvalidArgument, KeysideError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

    from keyside._bulk_messages import BatchKind

_Result = TypeVar("_Result", bound=BatchResult)

MAX_ITEMS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024
CALLS_IN_FLIGHT: Final = 2
_LEAST_BYTES: Final = 65_536
_ITEM_OVERHEAD: Final = 8


class ChunkLimits:
    """How much goes into one call: what sidecars accept unless configured, or what they taught."""

    def __init__(self) -> None:
        self.max_items = MAX_ITEMS
        self.max_bytes = MAX_BYTES

    def learn(self, chunk: Chunk[Any]) -> None:
        """Ask for less at once from now on: this much was refused for its size."""
        self.max_items = min(self.max_items, max(1, len(chunk.items) // 2))
        self.max_bytes = min(self.max_bytes, max(_LEAST_BYTES, chunk.size // 2))


@dataclass(slots=True)
class Chunk(Generic[_Result]):
    """The items of one call, and those between them that can't be sent.

    Args:
        kind: The call.
        items: The items' messages.
        failures: What became of items that are no items, by their place among all.
        size: The messages' bytes.
        is_whole: It was filled up to the limits, and is no part of another.
    """

    kind: BatchKind[_Result]
    items: list[Message]
    failures: dict[int, _Result]
    size: int = 0
    is_whole: bool = True

    def merge(self, results: Iterable[_Result]) -> list[_Result]:
        """Return the results of the items that were sent, and the failures at their places."""
        if not self.failures:
            return list(results)
        sent = iter(results)
        return [
            failure if (failure := self.failures.get(place)) is not None else next(sent)
            for place in range(len(self.items) + len(self.failures))
        ]

    def halves(self) -> tuple[Chunk[_Result], Chunk[_Result]]:
        """Return its items in two; the failures stay with the whole."""
        middle = len(self.items) // 2
        return self._part(self.items[:middle]), self._part(self.items[middle:])

    def _part(self, items: Sequence[Message]) -> Chunk[_Result]:
        size = sum(item.ByteSize() for item in items)
        return Chunk(self.kind, list(items), {}, size, is_whole=False)


class Chunker(Generic[_Result]):
    """Fills one chunk after the other; reads from the caller's items no further than it must.

    Args:
        kind: The call.
        limits: What goes into one call at the time it is filled.
    """

    def __init__(self, kind: BatchKind[_Result], limits: ChunkLimits) -> None:
        self._kind = kind
        self._limits = limits
        self._chunk = self._empty()

    def add(self, given: object) -> Chunk[_Result] | None:
        """Take an item in; return the chunk that is full because of it."""
        try:
            item = self._kind.make_item(given)
        except InvalidArgument as error:
            chunk = self._chunk
            chunk.failures[len(chunk.items) + len(chunk.failures)] = self._kind.make_failure(error)
            return self._take() if len(chunk.failures) >= MAX_ITEMS else None
        size = item.ByteSize() + _ITEM_OVERHEAD
        full = None
        if self._chunk.items and (
            len(self._chunk.items) >= self._limits.max_items
            or self._chunk.size + size > self._limits.max_bytes
        ):
            full = self._take()
        self._chunk.items.append(item)
        self._chunk.size += size
        return full

    def rest(self) -> Chunk[_Result] | None:
        """Return what is left at the end; ``None`` where that is nothing."""
        chunk = self._take()
        return chunk if chunk.items or chunk.failures else None

    def _take(self) -> Chunk[_Result]:
        chunk, self._chunk = self._chunk, self._empty()
        return chunk

    def _empty(self) -> Chunk[_Result]:
        return Chunk(self._kind, [], {})


def is_too_large(error: KeysideError) -> bool:
    """Return whether a call was refused for how much was in it."""
    if isinstance(error, InvalidArgument):
        return any(field == "items" for field, _ in error.violations)
    return error.reason == "MESSAGE_TOO_LARGE"
