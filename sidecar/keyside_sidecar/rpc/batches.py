"""Batches of EncryptionService: many items in one call, each of which answers for itself.

Items are worked on in groups: those to be sealed under one key share one data key, and envelopes
that begin with the same wrapping header have theirs unwrapped once. What takes long takes turns
(turns.py). An item's key is judged before its plaintext or envelope is used for anything; what is
wrong with an item becomes its own status, and the call succeeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.errors import BadRequest, Refused
from keyside_sidecar.rpc.batch import Group, Work
from keyside_sidecar.rpc.encryption_messages import copy_context, make_reference
from keyside_sidecar.rpc.fields import read_key_name
from keyside_sidecar.rpc.items import too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from keyside.envelope import Suite, VersionKey
    from keyside.names import KeyName
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.turns import Turns
    from keyside_sidecar.rpc.versions import Versions


class BatchServicer:
    """Seals, opens and rewraps many items for callers that policy lets do that with some key.

    Args:
        config: For the limits and each key's suite.
        keyring: The key versions.
        versions: Finds those that envelopes name.
        turns: Says when to work.
    """

    def __init__(self, config: Config, keyring: Keyring, versions: Versions, turns: Turns) -> None:
        self._max_plaintext_bytes = config.sidecar.max_plaintext_bytes
        self._max_batch_bytes = config.sidecar.max_batch_bytes
        self._suites: Mapping[str, Suite] = {
            name: suite_by_name(key.suite) for name, key in config.keys.items()
        }
        self._keyring = keyring
        self._versions = versions
        self._turns = turns

    async def batch_encrypt(self, call: Call, request: pb.BatchEncryptRequest) -> bytes:
        """Seal each plaintext under its key's current version; return a BatchEncryptResponse.

        Raises:
            BadRequest: There are too many items, or too many bytes in them.
        """
        work, items, sizes = self._begin(call, request), list(request.items), []

        def read_keys() -> Iterator[str]:
            for item in items:
                sizes.append(len(item.plaintext))
                yield item.key

        by_key = await work.sort(read_keys())
        self._require_size(sizes, "plaintexts")
        for text, places in by_key.items():
            await work.pause()
            kept: Sequence[int] = places
            try:
                key = read_key_name(text, "key")
                work.require(key)
                kept = self._keep_short(places, sizes, work)
                if not kept:
                    continue
                version = await self._charge(key, sum(sizes[place] for place in kept), len(kept))
            except Exception as error:  # noqa: BLE001  (the table names every kind)
                work.fail(kept, error)
                continue
            work.add(Group(version, self._make_sealer(version, items)), kept)
        answer = await work.run(pb.BatchEncryptResponse)
        work.count()
        return answer

    async def batch_decrypt(self, call: Call, request: pb.BatchDecryptRequest) -> bytes:
        """Open each envelope; return a BatchDecryptResponse.

        Raises:
            BadRequest: There are too many items, or too many bytes in them.
        """
        work, items = self._begin(call, request), list(request.items)
        envelopes: list[bytes] = []
        by_header = await work.sort(_cut_headers(items, envelopes))
        self._require_size(map(len, envelopes), "envelopes")
        alone: dict[VersionKey, Group] = {}
        for raw, places in by_header.items():
            await work.pause()
            try:
                version = work.recall(raw) or await self._find(raw, work)
                if len(places) > 1:
                    work.add(_open_shared(version, raw, items, envelopes), places)
                    continue
            except Exception as error:  # noqa: BLE001
                for place in places:
                    work.fail((place,), _choose_error(error, items[place].context))
                continue
            group = alone.get(version)
            if group is None:
                group = alone[version] = work.add(_open_alone(version, items, envelopes))
            work.join(group, places[0])
        answer = await work.run(pb.BatchDecryptResponse)
        for version in work.count():
            self._keyring.note_opened(version)
        return answer

    async def batch_rewrap(self, call: Call, request: pb.BatchRewrapRequest) -> bytes:
        """Move each envelope's data key under its key's current version; return the response.

        Raises:
            BadRequest: There are too many items, or too many bytes in them.
        """
        work, items = self._begin(call, request), list(request.items)
        envelopes: list[bytes] = []
        by_header = await work.sort(_cut_headers(items, envelopes))
        self._require_size(map(len, envelopes), "envelopes")
        for raw, places in by_header.items():
            await work.pause()
            try:
                old = work.recall(raw) or await self._find(raw, work)
                data_key, payload_at = unwrap_leading_header(old, raw)
                new = await self._charge(old.key_name, 0, len(places))
                wrapped = wrap_data_key(new, data_key, self._suites[old.key_name])
            except Exception as error:  # noqa: BLE001
                work.fail(places, error)
                continue
            work.add(_carry_over((old, new), envelopes, payload_at, wrapped), places)
        answer = await work.run(pb.BatchRewrapResponse)
        for version in work.count():
            self._keyring.note_opened(version)
        return answer

    def _begin(self, call: Call, request: Any) -> Work:
        """Return the work on a batch; the guard has seen to it that it has few enough items."""
        assert call.batch is not None  # noqa: S101  (the guard has made it)
        return Work(
            call.batch,
            call.connection.credential.uid,
            self._turns,
            len(request.items),
            find_stop=self._keyring.find_stop,
        )

    async def _find(self, raw: bytes, work: Work) -> VersionKey:
        """Return the version that a wrapping header names, where the caller may use its key."""
        header = work.read_header(raw)
        version = await self._versions.find(header, work.uid)
        work.remember(raw, version)
        return version

    async def _charge(self, key: KeyName, size_bytes: int, messages: int) -> VersionKey:
        version = self._keyring.charge(key, size_bytes, messages)
        if version is None:
            version = await self._keyring.reserve_and_charge(key, size_bytes, messages)
        return version

    def _make_sealer(
        self, version: VersionKey, items: Sequence[pb.BatchEncryptItem]
    ) -> Callable[[int, pb.BatchEncryptResult], None]:
        """Return what seals items under a version, with one data key for all of them."""
        suite, data_key = self._suites[version.key_name], generate_data_key()
        wrapped = wrap_data_key(version, data_key, suite)
        seal, reference = PayloadSealer(data_key, suite).seal, make_reference(version)

        def act(place: int, result: pb.BatchEncryptResult) -> None:
            item = items[place]
            result.envelope = wrapped + seal(item.plaintext, copy_context(item.context))
            result.version.CopyFrom(reference)

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


def _cut_headers(items: Iterable[Any], envelopes: list[bytes]) -> Iterator[bytes]:
    """Give what items' envelopes begin with, and keep the envelopes."""
    for item in items:
        envelope = item.envelope
        envelopes.append(envelope)
        yield cut_wrapping_header(envelope)


def _open_alone(
    version: VersionKey, items: Sequence[pb.BatchDecryptItem], envelopes: Sequence[bytes]
) -> Group:
    """Return the group of envelopes that have each a data key of their own."""
    reference = make_reference(version)

    def act(place: int, result: pb.BatchDecryptResult) -> None:
        context = copy_context(items[place].context)
        result.plaintext = open_envelope(version, envelopes[place], context)
        result.version.CopyFrom(reference)

    return Group(version, act)


def _open_shared(
    version: VersionKey,
    raw: bytes,
    items: Sequence[pb.BatchDecryptItem],
    envelopes: Sequence[bytes],
) -> Group:
    """Return the group of envelopes that begin with a wrapping header.

    Raises:
        EnvelopeRejected: The header does not open.
    """
    data_key, payload_at = unwrap_leading_header(version, raw)
    opener, reference = PayloadOpener(data_key), make_reference(version)

    def act(place: int, result: pb.BatchDecryptResult) -> None:
        context = copy_context(items[place].context)
        result.plaintext = opener.open(envelopes[place], context, offset=payload_at)
        result.version.CopyFrom(reference)

    return Group(version, act)


def _carry_over(
    versions: tuple[VersionKey, VersionKey],
    envelopes: Sequence[bytes],
    payload_at: int,
    wrapped: bytes,
) -> Group:
    """Return the group of envelopes whose wrapping header is replaced by another."""
    before, after = map(make_reference, versions)

    def act(place: int, result: pb.BatchRewrapResult) -> None:
        result.envelope = wrapped + take_payload(envelopes[place], payload_at)
        result.previous.CopyFrom(before)
        result.version.CopyFrom(after)

    return Group(versions[0], act, versions[1])


def _choose_error(error: Exception, pairs: Mapping[str, str]) -> Exception:
    """Return what an item is told: what is wrong with its context goes first, version known or not.

    But whoever may not use the key is told that alone.
    """
    if not isinstance(error, Refused):
        try:
            encode_context(copy_context(pairs))
        except InvalidArgument as wrong:
            return wrong
    return error
