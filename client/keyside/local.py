"""Sealing and opening in the caller's own process; ``keyside.local_aio`` has it for asyncio."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from keyside import _fork
from keyside._clock import read_clock
from keyside._local_cipher import SEAL_TRIES, LocalSteps, ToOpen, ToSeal, seal_contended
from keyside._local_keys import DEFAULT_MAX_CACHED, Bounds
from keyside.errors import KeysideError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside.client import Client
    from keyside.envelope import DataKey
    from keyside.envelope.direct import DirectSealer

_Key = TypeVar("_Key")


class LocalCipher(LocalSteps):
    """Seals and opens under data keys from the sidecar, without a call for each message.

    Envelopes are those of ``Client.encrypt``: what either seals the other opens. The key's policy
    must have ``allow_data_keys``. May be shared by threads; several that need a key at once make
    one call between them.

    A data key is kept for as long as the key's ``data_key_max_age`` (5 minutes unless configured)
    and no longer. So late may a rollover, a disabled version, a withdrawn permission or a removal
    from the group reach this process; call ``forget_keys`` where you know better. Data keys do not
    survive a fork. What is sealed and opened under them is not recorded; that they were handed out
    is. Sealing and opening have their own, so that opening needs the permission to decrypt also
    for what this process has sealed.

    Where this process's memory is copied while it runs (a virtual machine that is cloned or
    resumed from a snapshot), call ``forget_keys`` in the copy, or nonces repeat.

    Args:
        client: Asks for the data keys; stays the caller's to close.
        key: The key's name. Envelopes of other keys are refused.
        max_age_s: Keep data keys for a shorter time than the sidecar allows; seconds.
        max_messages: Seal fewer messages under one data key than the sidecar allows (2**20 unless
            the key rolls over by messages).
        max_bytes: Seal fewer bytes under one data key than the sidecar allows (64 GiB).
        max_cached: Data keys to keep for opening; the oldest goes first.

    Raises:
        InvalidArgument: The key's name or a bound is not valid.
    """

    def __init__(
        self,
        client: Client,
        key: str,
        *,
        max_age_s: float | None = None,
        max_messages: int | None = None,
        max_bytes: int | None = None,
        max_cached: int = DEFAULT_MAX_CACHED,
    ) -> None:
        super().__init__(key, Bounds(max_age_s, max_messages, max_bytes, max_cached))
        self._client = client
        self._flights = _Flights()

    def _seal_later(self, wanted: ToSeal) -> bytes | int:
        spent = wanted.spent
        for _ in range(SEAL_TRIES):
            flight = ("seal", self._keys.epoch)
            sealer = self._flights.share(flight, partial(self._renew_sealer, spent))
            made = self._finish_seal(wanted, sealer)
            if made is not None:
                return made
            spent = sealer
        raise seal_contended()

    def _renew_sealer(self, spent: DirectSealer | None) -> DirectSealer:
        there = self._keys.sealer
        if there is not None and there is not spent:
            return there
        asked_at, epoch = read_clock(), self._keys.epoch
        return self._take_issued(self._client.generate_data_key(self.key), asked_at, epoch)

    def _open_later(self, wanted: ToOpen) -> bytes | int:
        flight = (wanted.header, self._keys.epoch)
        data_key = self._flights.share(flight, lambda: self._ask_data_key(wanted.header))
        return self._finish_open(wanted, data_key)

    def _ask_data_key(self, header: bytes) -> DataKey:
        there = self._keys.find(header)
        if there is not None:
            return there
        asked_at, epoch = read_clock(), self._keys.epoch
        opened = self._client.decrypt_data_key(header)
        self._keys.use_for_opening(header, opened, asked_at, epoch)
        return opened.data_key


class _Flights:
    """Calls under way; whoever wants the same waits for the same one. Starts anew after a fork."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._generation = _fork.generation()
        self._lock = threading.RLock()  # re-entrant: a signal handler may seal or open
        self._under_way: dict[object, tuple[Future[object], int]] = {}

    def share(self, name: object, call: Callable[[], _Key]) -> _Key:
        """Return what ``call`` returned, here or in the thread that makes it already.

        A signal handler that interrupts that very thread makes a call of its own.

        Raises:
            KeysideError: What it raised.
        """
        if self._generation != _fork.generation():
            self._begin()
        while True:
            with self._lock:
                flight = self._under_way.get(name)
                if flight is None:
                    own: Future[object] = Future()
                    self._under_way[name] = own, threading.get_ident()
                    break
            shared, caller = flight
            if caller == threading.get_ident():
                return call()
            try:
                return cast("_Key", shared.result())
            except _Abandoned:
                continue
        try:
            answer = call()
        except BaseException as error:
            shown = error if isinstance(error, KeysideError) else _Abandoned()
            self._land(name)
            own.set_exception(shown)
            raise
        self._land(name)
        own.set_result(answer)
        return answer

    def _land(self, name: object) -> None:
        with self._lock:
            self._under_way.pop(name, None)


class _Abandoned(Exception):
    """The thread that made the call was interrupted: it says nothing about the call."""
