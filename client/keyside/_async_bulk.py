"""Many items in few calls, and data keys, for asyncio; ``keyside._bulk`` has it for threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from keyside._async_connection import AsyncConnection
from keyside.batch_results import BatchResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from keyside._bulk_messages import BatchKind
    from keyside._chunks import Chunk, ChunkLimits
    from keyside.batch_results import OpenedResult, SealedResult
    from keyside.credential import Credential, Metadata
    from keyside.data_keys import IssuedDataKey, OpenedDataKey

_Result = TypeVar("_Result", bound=BatchResult)
_Given: TypeAlias = tuple[str, bytes] | tuple[str, bytes, Mapping[str, str] | None]
_Wanted: TypeAlias = bytes | tuple[bytes] | tuple[bytes, Mapping[str, str] | None]


class AsyncBulkCalls(AsyncConnection):
    """The calls for many items, and those for data keys; see ``AsyncClient``."""

    def encrypt_batch(
        self,
        items: Iterable[_Given] | AsyncIterable[_Given],
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[SealedResult]:
        """Seal many plaintexts; what ``encrypt`` does for each, for a fraction of the time.

        Items are read as they are needed, put into calls of at most 10,000 items and 8 MiB (less
        where the sidecar accepts less), of which two are under way at a time. The envelopes of
        one key in one call share a data key.

        Args:
            items: (key, plaintext) or (key, plaintext, context), with any mix of keys and
                contexts; each as for ``encrypt``. May be an asynchronous iterable.
            credential: A grant's, instead of the client's; each item is one use.
            timeout_s: For each call, instead of the client's.

        Returns:
            An asynchronous iterator of as many results in the same order. An item that fails harms
            no other: its result has the ``error``, and its ``envelope`` raises it.

        Raises:
            KeysideError: As for ``encrypt``. The iterator raises what concerns a whole call, such
                as ``Unavailable``; results that it gave before stay good.
        """
        from keyside._bulk_messages import ENCRYPT

        return self._run_batch(ENCRYPT, items, credential, timeout_s)

    def decrypt_batch(
        self,
        items: Iterable[_Wanted] | AsyncIterable[_Wanted],
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[OpenedResult]:
        """Open many envelopes; what ``decrypt`` does for each.

        Args:
            items: Envelopes, or (envelope, context); each as for ``decrypt``. May be asynchronous.
            credential: A grant's, instead of the client's; each item is one use.
            timeout_s: For each call, instead of the client's.

        Returns:
            An asynchronous iterator of results, as for ``encrypt_batch``; each has its
            ``plaintext``.

        Raises:
            KeysideError: As for ``encrypt_batch``.
        """
        from keyside._bulk_messages import DECRYPT

        return self._run_batch(DECRYPT, items, credential, timeout_s)

    def rewrap_batch(
        self,
        envelopes: Iterable[bytes] | AsyncIterable[bytes],
        *,
        credential: Credential | str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[SealedResult]:
        """Move the data keys of many envelopes under the current versions, as ``rewrap`` does.

        Args:
            envelopes: Envelopes, or their wrapping headers alone. May be asynchronous.
            credential: A grant's, instead of the client's; each item is one use.
            timeout_s: For each call, instead of the client's.

        Returns:
            An asynchronous iterator of results, as for ``encrypt_batch``.

        Raises:
            KeysideError: As for ``encrypt_batch``.
        """
        from keyside._bulk_messages import REWRAP

        return self._run_batch(REWRAP, envelopes, credential, timeout_s)

    async def generate_data_key(
        self, key: str, *, wrapped_only: bool = False, timeout_s: float | None = None
    ) -> IssuedDataKey:
        """Get a new data key, for sealing in this process; ``AsyncLocalCipher`` does so by itself.

        Its whole bound of messages is charged to the key's version, and a record says who got it.
        No grant covers it.

        Args:
            key: The key's name.
            wrapped_only: Leave the key itself out: for a process that only stores it.
            timeout_s: For this call, instead of the client's.

        Raises:
            NotPermitted: Policy refuses: reason ``DATA_KEYS_NOT_ALLOWED`` where the key's policy
                has no ``allow_data_keys``.
            KeysideError: As for ``encrypt``.
        """
        from keyside._bulk_messages import generate_request, read_issued

        request = generate_request(key, wrapped_only=wrapped_only)
        return read_issued(
            await self._call(
                lambda link, limit_s: link.encryption.GenerateDataKey(request, timeout=limit_s),
                timeout_s,
            ),
            wrapped_only=wrapped_only,
        )

    async def decrypt_data_key(
        self, wrapped: bytes, *, timeout_s: float | None = None
    ) -> OpenedDataKey:
        """Get the data key of an envelope, for opening in this process.

        Args:
            wrapped: A wrapping header, or an envelope that begins with it.
            timeout_s: For this call, instead of the client's.

        Raises:
            EnvelopeRejected: It does not open; deliberately no more is said.
            VersionUnusable: Its key version is disabled or destroyed.
            NotPermitted: As for ``generate_data_key``.
            KeysideError: As for ``encrypt``.
        """
        from keyside._bulk_messages import read_opened, unwrap_request

        request = unwrap_request(wrapped)
        return read_opened(
            await self._call(
                lambda link, limit_s: link.encryption.DecryptDataKey(request, timeout=limit_s),
                timeout_s,
            )
        )

    def _run_batch(
        self,
        kind: BatchKind[_Result],
        items: Iterable[object] | AsyncIterable[object],
        credential: Credential | str | None,
        timeout_s: float | None,
    ) -> AsyncIterator[_Result]:
        from keyside._chunks import ChunkLimits

        metadata = self._metadata(credential)
        limits = ChunkLimits()

        async def run(chunk: Chunk[_Result]) -> list[_Result]:
            return chunk.merge(await self._run_chunk(chunk, limits, metadata, timeout_s))

        return _run_in_order(_cut(kind, limits, _iterate(items)), run)

    async def _run_chunk(
        self,
        chunk: Chunk[_Result],
        limits: ChunkLimits,
        metadata: Metadata,
        timeout_s: float | None,
    ) -> list[_Result]:
        from keyside._chunks import is_too_large
        from keyside.errors import KeysideError

        kind = chunk.kind
        if not chunk.items:
            return []
        request = kind.make_request(chunk.items)
        try:
            return kind.read_results(
                await self._call(
                    lambda link, limit_s: getattr(link.encryption, kind.method)(
                        request, timeout=limit_s, metadata=metadata
                    ),
                    timeout_s,
                    repeatable=not metadata,
                ),
                len(chunk.items),
            )
        except KeysideError as error:
            if not is_too_large(error):
                raise
            if len(chunk.items) == 1:
                return [kind.make_failure(error)]
        # From a whole call only: one item that is too large alone says nothing of the others.
        if chunk.is_whole:
            limits.learn(chunk)
        return [
            result
            for half in chunk.halves()
            for result in await self._run_chunk(half, limits, metadata, timeout_s)
        ]


def _iterate(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        return aiter(items)
    given = iter(items)

    async def iterate() -> AsyncIterator[object]:
        for item in given:
            yield item

    return iterate()


async def _cut(
    kind: BatchKind[_Result], limits: ChunkLimits, given: AsyncIterator[object]
) -> AsyncIterator[Chunk[_Result]]:
    from keyside._chunks import Chunker

    chunker = Chunker(kind, limits)
    async for item in given:
        if (full := chunker.add(item)) is not None:
            yield full
    if (rest := chunker.rest()) is not None:
        yield rest


async def _run_in_order(
    chunks: AsyncIterator[Chunk[_Result]],
    run: Callable[[Chunk[_Result]], Coroutine[Any, Any, list[_Result]]],
) -> AsyncIterator[_Result]:
    """Yield the results in order, with a bounded number of calls under way.

    What the caller's input raises comes after the results of the calls that were made before.
    """
    from keyside._chunks import CALLS_IN_FLIGHT

    under_way: deque[asyncio.Task[list[_Result]]] = deque()
    failure: Exception | None = None
    more = True
    try:
        while more or under_way:
            try:
                chunk = await anext(chunks, None) if more else None
            except Exception as error:  # noqa: BLE001  (raised below, in its turn)
                chunk, failure = None, error
            if chunk is None:
                more = False
            else:
                under_way.append(asyncio.create_task(run(chunk)))
                del chunk
                if len(under_way) < CALLS_IN_FLIGHT:
                    continue
            if under_way:
                for result in await under_way.popleft():
                    yield result
        if failure is not None:
            raise failure
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
