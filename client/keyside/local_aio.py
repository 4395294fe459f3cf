"""Sealing and opening in the caller's own process, for asyncio; ``keyside.local`` for threads."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from keyside import _fork
from keyside._clock import read_clock
from keyside._local_cipher import SEAL_TRIES, LocalSteps, ToOpen, ToSeal, seal_contended
from keyside._local_keys import DEFAULT_MAX_CACHED, Bounds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from keyside.aio import AsyncClient
    from keyside.envelope import DataKey
    from keyside.envelope.direct import DirectSealer

_Key = TypeVar("_Key")


class AsyncLocalCipher:
    """Seals and opens under data keys from the sidecar, without a call for each message.

    Guarantees, bounds and envelopes are those of ``keyside.LocalCipher``; methods are the same,
    awaited. Where a key is at hand they don't give way to other tasks. Tasks that need a key at
    once make one call between them; one that is cancelled while it waits takes it from no other.
    Bound to the event loop of its client.

    Args:
        client: Asks for the data keys; stays the caller's to close.
        key: As for ``keyside.LocalCipher``.
        max_age_s: As for ``keyside.LocalCipher``.
        max_messages: As for ``keyside.LocalCipher``.
        max_bytes: As for ``keyside.LocalCipher``.
        max_cached: As for ``keyside.LocalCipher``.

    Raises:
        InvalidArgument: The key's name or a bound is not valid.
    """

    def __init__(
        self,
        client: AsyncClient,
        key: str,
        *,
        max_age_s: float | None = None,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        max_cached: int = DEFAULT_MAX_CACHED,
    ) -> None:
        bounds = Bounds(max_age_s, max_messages, max_bytes, max_cached)
        self._steps = _AsyncSteps(client, key, bounds)

    def __repr__(self) -> str:
        return f"<keyside.AsyncLocalCipher {self.key}>"

    @property
    def key(self) -> str:
        """The key's name."""
        return self._steps.key

    async def seal(
        self,
        plaintext: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return an envelope of ``plaintext``; see ``keyside.LocalCipher.seal``."""
        made: bytes | Awaitable[bytes] = self._steps.seal(plaintext, context)
        return made if isinstance(made, bytes) else await made

    async def open(
        self,
        envelope: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> bytes:
        """Return what an envelope holds; see ``keyside.LocalCipher.open``."""
        opened: bytes | Awaitable[bytes] = self._steps.open(envelope, context)
        return opened if isinstance(opened, bytes) else await opened

    async def seal_into(
        self,
        plaintext: bytes | bytearray | memoryview,
        buffer: bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Write an envelope to a buffer's beginning; see ``keyside.LocalCipher.seal_into``."""
        made: int | Awaitable[int] = self._steps.seal_into(plaintext, buffer, context)
        return made if isinstance(made, int) else await made

    async def open_into(
        self,
        envelope: bytes | bytearray | memoryview,
        buffer: bytearray | memoryview,
        context: Mapping[str, str] | None = None,
    ) -> int:
        """Write what an envelope holds to a buffer; see ``keyside.LocalCipher.open_into``."""
        opened: int | Awaitable[int] = self._steps.open_into(envelope, buffer, context)
        return opened if isinstance(opened, int) else await opened

    def sealed_length(self, length: int) -> int:
        """Return how long the envelope of a plaintext of ``length`` bytes is."""
        return self._steps.sealed_length(length)

    def forget_keys(self) -> None:
        """Let go of all data keys now; the next message asks for a new one."""
        self._steps.forget_keys()


class _AsyncSteps(LocalSteps):
    """The steps, with something to await where a key is not at hand."""

    def __init__(self, client: AsyncClient, key: str, bounds: Bounds) -> None:
        super().__init__(key, bounds)
        self._client = client
        self._generation = _fork.generation()
        self._under_way: dict[object, asyncio.Task[object]] = {}

    async def _seal_later(self, wanted: ToSeal) -> bytes | int:
        spent = wanted.spent
        for _ in range(SEAL_TRIES):
            flight = ("seal", self._keys.epoch)
            sealer = await self._share(flight, partial(self._renew_sealer, spent))
            made = self._finish_seal(wanted, sealer)
            if made is not None:
                return made
            spent = sealer
        raise seal_contended()

    async def _renew_sealer(self, spent: DirectSealer | None) -> DirectSealer:
        there = self._keys.sealer
        if there is not None and there is not spent:
            return there
        asked_at, epoch = read_clock(), self._keys.epoch
        issued = await self._client.generate_data_key(self.key)
        return self._take_issued(issued, asked_at, epoch)

    async def _open_later(self, wanted: ToOpen) -> bytes | int:
        flight = (wanted.header, self._keys.epoch)
        data_key = await self._share(flight, partial(self._ask_data_key, wanted.header))
        return self._finish_open(wanted, data_key)

    async def _ask_data_key(self, header: bytes) -> DataKey:
        asked_at, epoch = read_clock(), self._keys.epoch
        opened = await self._client.decrypt_data_key(header)
        self._keys.use_for_opening(header, opened, asked_at, epoch)
        return opened.data_key

    async def _share(
        self, name: object, call: Callable[[], Coroutine[object, object, _Key]]
    ) -> _Key:
        if self._generation != _fork.generation():
            self._generation, self._under_way = _fork.generation(), {}
        task = self._under_way.get(name)
        if task is None or task.done():
            task = self._under_way[name] = asyncio.create_task(call())
            task.add_done_callback(partial(self._land, name))
        # Whoever is cancelled stops waiting; the call goes on for the others.
        return cast("_Key", await asyncio.shield(task))

    def _land(self, name: object, task: asyncio.Task[object]) -> None:
        self._under_way.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more
