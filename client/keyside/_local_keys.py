"""The data keys of a local cipher: which may be used now, and when they are forgotten.

    sealing   none → one, until its bound of messages, bytes or age is reached, or the process forks
    opening   one per wrapping header, until its age is reached; a bounded number, oldest first out

Expired keys go at the first use after the first of them has expired; an idle cipher holds its keys
until it is used, told to forget them or collected. The interpreter can't wipe what it lets go. A
fork by C code that Python is not told of takes along the keys for opening, until their age; never
a nonce: the sealer finds out by itself.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside._clock import read_clock
from keyside.envelope import (
    MAX_BYTES_PER_SEALER,
    MAX_MESSAGES_PER_SEALER,
    suite_by_name,
)
from keyside.envelope.direct import DirectSealer
from keyside.envelope.forks import MARKS, set_mark
from keyside.envelope.keys import Unshareable
from keyside.errors import InvalidArgument, UnexpectedAnswer

if TYPE_CHECKING:
    from keyside.data_keys import IssuedDataKey, OpenedDataKey
    from keyside.envelope import DataKey
    from keyside.envelope.direct import DirectKeys

DEFAULT_MAX_CACHED: Final = 1000
_READY_PER_KEY: Final = 4
_NO_BEGINNING: Final = b"no envelope begins with this"


class Ready:
    """What opens envelopes that begin in some way, and which of it was used last.

    It is replaced as a whole: who still holds one that was let go of brings nothing back.
    """

    __slots__ = ("by_beginning", "latest")

    def __init__(self) -> None:
        self.by_beginning: dict[bytes, DirectKeys] = {}
        self.latest: tuple[bytes, DirectKeys | None] = (_NO_BEGINNING, None)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a cipher's user allows; the sidecar may allow less.

    Args:
        max_age_s: Seconds to keep a key at most; ``None`` leaves it to the sidecar.
        max_messages: Messages to seal under one data key at most; likewise.
        max_bytes: Bytes to seal under one data key at most; likewise.
        max_cached: Data keys to keep for opening at most.

    Raises:
        InvalidArgument: A bound is not above 0; all that are wrong are named.
    """

    max_age_s: float | None
    max_messages: int | None
    max_bytes: int | None
    max_cached: int

    def __post_init__(self) -> None:
        wrong = [
            name
            for name in ("max_age_s", "max_messages", "max_bytes", "max_cached")
            if (bound := getattr(self, name)) is not None and not bound > 0
        ]
        if wrong:
            raise InvalidArgument(f"{', '.join(wrong)}: a bound is above 0")


class LocalKeys(Unshareable):
    """One cipher's keys, within their bounds. Safe to share between threads; empty after a fork.

    Args:
        bounds: What its user allows.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._max_age_s = math.inf if bounds.max_age_s is None else bounds.max_age_s
        self._max_messages = bounds.max_messages or MAX_MESSAGES_PER_SEALER
        self._max_bytes = bounds.max_bytes or MAX_BYTES_PER_SEALER
        self._max_cached = bounds.max_cached
        self.epoch = 0
        self.forget_after_fork()
        _ALL.add(self)

    def forget(self) -> None:
        """Let go of all keys, also of those that were asked for and are not here yet."""
        if MARKS[0] != self.mark:
            self.forget_after_fork()
            return
        with self._lock:
            self._reset()

    def forget_after_fork(self) -> None:
        """Let go of all keys, and of the lock: a thread that this process lacks may hold it."""
        # Re-entrant: a signal handler may seal, open or forget.
        self._lock = threading.RLock()
        self._reset()

    def _reset(self) -> None:
        self.mark = set_mark()
        self.epoch += 1
        self.sealer: DirectSealer | None = None
        self._sealer_until = math.inf
        self._data_keys: dict[bytes, tuple[DataKey, float]] = {}
        self.ready = Ready()
        self.expires_at = math.inf

    def refresh(self) -> None:
        """Let go of the keys whose age is reached, and of all that a fork brought along."""
        if MARKS[0] != self.mark:
            self.forget_after_fork()
        now = read_clock()
        if now < self.expires_at:
            return
        with self._lock:
            if now >= self._sealer_until:
                self.sealer, self._sealer_until = None, math.inf
            data_keys = self._data_keys
            expired = [header for header, (_, until) in data_keys.items() if now >= until]
            for header in expired:
                del data_keys[header]
            if expired:
                self.ready = Ready()
            self._note_next()

    def use_for_sealing(self, issued: IssuedDataKey, asked_at: float, epoch: int) -> DirectSealer:
        """Seal under this key from now on, unless keys were forgotten since it was asked for.

        Args:
            issued: From the sidecar.
            asked_at: When it was asked for: its age is counted from then.
            epoch: The one in which it was asked for.

        Raises:
            UnexpectedAnswer: It can't seal anything.
        """
        if issued.data_key is None or issued.max_messages < 1 or issued.max_bytes < 1:
            raise UnexpectedAnswer("the sidecar's answer holds no data key that can seal")
        sealer = DirectSealer(
            issued.wrapped,
            issued.data_key,
            suite_by_name(issued.suite),
            max_messages=min(self._max_messages, issued.max_messages),
            max_bytes=min(self._max_bytes, issued.max_bytes),
        )
        with self._lock:
            if epoch == self.epoch:
                self.sealer = sealer
                self._sealer_until = asked_at + min(self._max_age_s, issued.max_age_s)
                self._note_next()
        return sealer

    def use_for_opening(
        self, header: bytes, opened: OpenedDataKey, asked_at: float, epoch: int
    ) -> None:
        """Open what begins with ``header`` with this key; see ``use_for_sealing``."""
        until = asked_at + min(self._max_age_s, opened.max_age_s)
        with self._lock:
            if epoch != self.epoch:
                return
            while len(self._data_keys) >= self._max_cached:
                oldest = next(iter(self._data_keys))
                del self._data_keys[oldest]
                self.ready = Ready()
            self._data_keys[header] = (opened.data_key, until)
            self._note_next()

    def find(self, header: bytes) -> DataKey | None:
        """Return the data key that a wrapping header holds, if it is here and not too old."""
        found = self._data_keys.get(header)
        return found[0] if found is not None and read_clock() < found[1] else None

    def keep_ready(self, beginning: bytes, header: bytes, ready: DirectKeys) -> None:
        """Open what begins so with these keys, as long as the data key is kept.

        Args:
            beginning: ``header``, and the payload header through its salt.
            header: The wrapping header.
            ready: What has opened such an envelope.
        """
        with self._lock:
            # Salts come from whoever made the envelopes: never more than some are kept.
            if len(self.ready.by_beginning) >= _READY_PER_KEY * self._max_cached:
                self.ready = Ready()
            if header in self._data_keys:
                self.ready.by_beginning[beginning] = ready

    def _note_next(self) -> None:
        untils = [until for _, until in self._data_keys.values()]
        self.expires_at = min(self._sealer_until, *untils, math.inf)


_ALL: Final[weakref.WeakSet[LocalKeys]] = weakref.WeakSet()


def _forget_all() -> None:
    for keys in list(_ALL):
        keys.forget_after_fork()


os.register_at_fork(after_in_child=_forget_all)
