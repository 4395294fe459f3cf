"""Batches: many items in one call, each of which answers for itself.

Items are worked on in groups: those to be sealed under one key share one data key, and envelopes
that begin with the same wrapping header have theirs unwrapped once. What takes long takes turns
(turns.py). An item's key is judged before its plaintext or envelope is used for anything; what is
wrong with an item is its own failure, and the call succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from keyside.envelope import (
    PayloadOpener,
    PayloadSealer,
    cut_wrapping_header,
    encode_context,
    generate_data_key,
    open_envelope,
    suite_by_name,
    take_payload,
    unwrap_leading_header,
    wrap_data_key,
)
from keyside.errors import InvalidArgument
from keyside.names import parse_key_name
from keyside_sidecar.errors import BadRequest, Refused
from keyside_sidecar.services.batch import Group, Work
from keyside_sidecar.services.encryption import Opened, Renewed, Sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from keyside.envelope import Suite, VersionKey
    from keyside.names import KeyName
    from keyside_sidecar.config import Config
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.batch import Batch, Sink
    from keyside_sidecar.services.shapes import Facts
    from keyside_sidecar.services.turns import Turns
    from keyside_sidecar.services.versions import Versions

MAX_ITEMS: Final = 10_000


class Items(Protocol):
    """What a batch holds, by place; read when an item's turn has come, and not before."""

    def __len__(self) -> int:
        """Return how many there are."""

    def context(self, place: int) -> Mapping[str, str]:
        """Return an item's context."""


class ItemsToSeal(Items, Protocol):
    """What BatchEncrypt holds."""

    def key(self, place: int) -> str:
        """Return the key's name, as the caller wrote it."""

    def plaintext(self, place: int) -> bytes:
        """Return what is to be sealed."""


class ItemsWithEnvelopes(Items, Protocol):
    """What BatchDecrypt holds, and BatchRewrap, whose items have no contexts."""

    def envelope(self, place: int) -> bytes:
        """Return the envelope."""


@dataclass(frozen=True, slots=True)
class _About:
    @property
    def key(self) -> None:
        """None: each item names its own."""
        return None


@dataclass(frozen=True, slots=True)
class SealMany(_About):
    """Seal many plaintexts."""

    items: ItemsToSeal

    def facts(self) -> Facts:
        """Return how many there are."""
        return {"count": len(self.items)}


@dataclass(frozen=True, slots=True)
class _WithEnvelopes(_About):
    items: ItemsWithEnvelopes

    def facts(self) -> Facts:
        """Return how many there are."""
        return {"count": len(self.items)}


@dataclass(frozen=True, slots=True)
class OpenMany(_WithEnvelopes):
    """Open many envelopes."""


@dataclass(frozen=True, slots=True)
class RewrapMany(_WithEnvelopes):
    """Rewrap many envelopes."""


@dataclass(frozen=True, slots=True)
class UnreadableMany(_About):
    """What came can't be read: it is recorded all the same, as a batch of nothing.

    Args:
        error: What is wrong with it.
    """

    error: BadRequest

    def facts(self) -> Facts:
        """Return that there is nothing."""
        return {"count": 0}


NOT_READ: Final = UnreadableMany(BadRequest("request", "was not read"))


class BatchService:
    """Seals, opens and rewraps many items for callers that policy lets do that with some key.

    Args:
        config: For the limits and each key's suite.
        versions: Has the versions, and counts what they seal.
        turns: Says when to work.
    """

    def __init__(self, config: Config, versions: Versions, turns: Turns) -> None:
        self._max_plaintext_bytes = config.sidecar.max_plaintext_bytes
        self._max_batch_bytes = config.sidecar.max_batch_bytes
        self._suites: Mapping[str, Suite] = {
            name: suite_by_name(key.suite) for name, key in config.keys.items()
        }
        self._versions = versions
        self._turns = turns

    async def batch_encrypt(
        self, _caller: Caller, batch: Batch, command: SealMany, sink: Sink
    ) -> None:
        """Seal each plaintext under its key's current version.

        Raises:
            BadRequest: There are too many bytes in the items.
        """
        items, sizes = command.items, []
        work = self._begin(batch, len(items))

        def read_keys() -> Iterator[str]:
            for place in range(len(items)):
                sizes.append(len(items.plaintext(place)))
                yield items.key(place)

        by_key = await work.sort(read_keys())
        self._require_size(sizes, "plaintexts")
        for text, places in by_key.items():
            await work.pause()
            kept: Sequence[int] = places
            try:
                key = read_key(text)
                work.require(key)
                kept = self._keep_short(places, sizes, work)
                if not kept:
                    continue
                size_bytes = sum(sizes[place] for place in kept)
                version = await self._versions.charge(key, size_bytes, len(kept))
            except Exception as error:  # noqa: BLE001  (the table names every kind)
                work.fail(kept, error)
                continue
            work.add(Group(version, self._make_sealer(version, items)), kept)
        await work.run(sink)
        work.count()

    async def batch_decrypt(
        self, caller: Caller, batch: Batch, command: OpenMany, sink: Sink
    ) -> None:
        """Open each envelope.

        Raises:
            BadRequest: There are too many bytes in the items.
        """
        items = command.items
        work = self._begin(batch, len(items))
        envelopes: list[bytes] = []
        by_header = await work.sort(_cut_headers(items, envelopes))
        self._require_size(map(len, envelopes), "envelopes")
        alone: dict[VersionKey, Group] = {}
        for raw, places in by_header.items():
            await work.pause()
            try:
                version = work.recall(raw) or await self._find(raw, work, caller)
                if len(places) > 1:
                    work.add(_open_shared(version, raw, items, envelopes), places)
                    continue
            except Exception as error:  # noqa: BLE001
                for place in places:
                    work.fail((place,), _choose_error(error, items, place))
                continue
            group = alone.get(version)
            if group is None:
                group = alone[version] = work.add(_open_alone(version, items, envelopes))
            work.join(group, places[0])
        await work.run(sink)
        for version in work.count():
            self._versions.note_opened(version)

    async def batch_rewrap(
        self, caller: Caller, batch: Batch, command: RewrapMany, sink: Sink
    ) -> None:
        """Move each envelope's data key under its key's current version.

        Raises:
            BadRequest: There are too many bytes in the items.
        """
        items = command.items
        work = self._begin(batch, len(items))
        envelopes: list[bytes] = []
        by_header = await work.sort(_cut_headers(items, envelopes))
        self._require_size(map(len, envelopes), "envelopes")
        for raw, places in by_header.items():
            await work.pause()
            try:
                old = work.recall(raw) or await self._find(raw, work, caller)
                data_key, payload_at = unwrap_leading_header(old, raw)
                new = await self._versions.charge(old.key_name, 0, len(places))
                wrapped = wrap_data_key(new, data_key, self._suites[old.key_name])
            except Exception as error:  # noqa: BLE001
                work.fail(places, error)
                continue
            work.add(_carry_over(old, new, envelopes, payload_at, wrapped), places)
        await work.run(sink)
        for version in work.count():
            self._versions.note_opened(version)

    def _begin(self, batch: Batch, count: int) -> Work:
        return Work(batch, self._turns, count, find_stop=self._versions.find_stop)

    async def _find(self, raw: bytes, work: Work, caller: Caller) -> VersionKey:
        """Return the version that a wrapping header names, where the caller may use its key."""
        header = work.read_header(raw)
        version = await self._versions.find(header, caller)
        work.remember(raw, version)
        return version

    def _make_sealer(self, version: VersionKey, items: ItemsToSeal) -> Callable[[int], Sealed]:
        """Return what seals items under a version, with one data key for all of them."""
        suite, data_key = self._suites[version.key_name], generate_data_key()
        wrapped = wrap_data_key(version, data_key, suite)
        seal = PayloadSealer(data_key, suite).seal

        def act(place: int) -> Sealed:
            payload = seal(items.plaintext(place), items.context(place))
            return Sealed(wrapped + payload, version)

        return act

    def _keep_short(self, places: Sequence[int], sizes: Sequence[int], work: Work) -> Sequence[int]:
        """Return the places of items that are not too large; the others fail."""
        limit = self._max_plaintext_bytes
        large = [place for place in places if sizes[place] > limit]
        for place in large:
            text = f"has {sizes[place]} bytes; at most {limit} are taken (max_plaintext_bytes)"
            work.fail((place,), BadRequest("plaintext", text))
        return places if not large else [place for place in places if sizes[place] <= limit]

    def _require_size(self, sizes: Iterable[int], what: str) -> None:
        """Refuse a batch of too many bytes.

        Raises:
            BadRequest: There are too many.
        """
        size_bytes = sum(sizes)
        if size_bytes > self._max_batch_bytes:
            raise too_large(f"have {size_bytes} bytes of {what}", self._max_batch_bytes)


def too_large(problem: str, max_batch_bytes: int) -> BadRequest:
    """Return what a batch over its limits is told."""
    return BadRequest(
        "items",
        f"{problem}; a batch takes at most {MAX_ITEMS} items and {max_batch_bytes} bytes of "
        "plaintexts, or of envelopes, in all (max_batch_bytes)",
    )


def read_key(text: str, field: str = "key") -> KeyName:
    """Return a key's name.

    Args:
        text: The name.
        field: The field that it comes from.

    Raises:
        BadRequest: It is no key's name.
    """
    try:
        return parse_key_name(text)
    except InvalidArgument as error:
        raise BadRequest(field, str(error), reason=error.reason) from None


def _cut_headers(items: ItemsWithEnvelopes, envelopes: list[bytes]) -> Iterator[bytes]:
    """Give what items' envelopes begin with, and keep the envelopes."""
    for place in range(len(items)):
        envelope = items.envelope(place)
        envelopes.append(envelope)
        yield cut_wrapping_header(envelope)


def _open_alone(
    version: VersionKey, items: ItemsWithEnvelopes, envelopes: Sequence[bytes]
) -> Group:
    """Return the group of envelopes that have each a data key of their own."""

    def act(place: int) -> Opened:
        return Opened(open_envelope(version, envelopes[place], items.context(place)), version)

    return Group(version, act)


def _open_shared(
    version: VersionKey, raw: bytes, items: ItemsWithEnvelopes, envelopes: Sequence[bytes]
) -> Group:
    """Return the group of envelopes that begin with a wrapping header.

    Raises:
        EnvelopeRejected: The header does not open.
    """
    data_key, payload_at = unwrap_leading_header(version, raw)
    opener = PayloadOpener(data_key)

    def act(place: int) -> Opened:
        context = items.context(place)
        return Opened(opener.open(envelopes[place], context, offset=payload_at), version)

    return Group(version, act)


def _carry_over(
    old: VersionKey,
    new: VersionKey,
    envelopes: Sequence[bytes],
    payload_at: int,
    wrapped: bytes,
) -> Group:
    """Return the group of envelopes whose wrapping header is replaced by another."""

    def act(place: int) -> Renewed:
        return Renewed(wrapped + take_payload(envelopes[place], payload_at), old, new)

    return Group(old, act, new)


def _choose_error(error: Exception, items: Items, place: int) -> Exception:
    """Return what an item is told: what is wrong with its context goes first, version known or not.

    But whoever may not use the key is told that alone.
    """
    if not isinstance(error, Refused):
        try:
            encode_context(items.context(place))
        except InvalidArgument as wrong:
            return wrong
    return error
