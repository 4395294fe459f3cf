"""The data key of one stream: asked for, charged for what it seals, asked for again when it is old.

A stream has a derived key of its own, good for 16 TiB (docs/envelope.md). What the sidecar says a
data key may seal is what it has charged to the version; a longer stream has more charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from keyside._clock import read_clock
from keyside.envelope import DEFAULT_SEGMENT_BYTES, SegmentOpener, SegmentSealer, suite_by_name
from keyside.envelope.keys import Unshareable
from keyside.errors import UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.data_keys import IssuedDataKey, OpenedDataKey


class KeySource(Protocol):
    """What is needed of a client."""

    def generate_data_key(self, key: str, *, wrapped_only: bool = False) -> IssuedDataKey:
        """Return a new data key."""

    def decrypt_data_key(self, wrapped: bytes) -> OpenedDataKey:
        """Return a wrapped data key."""


class StreamSealer(Unshareable):
    """Seals one stream under a data key of its own.

    Args:
        source: Gives the data key.
        key: The key's name.
        context: Bound to the stream.

    Raises:
        InvalidArgument: The key's name or the context is not valid.
        KeysideError: What the source raised.
    """

    def __init__(self, source: KeySource, key: str, context: Mapping[str, str]) -> None:
        issued = source.generate_data_key(key)
        if issued.data_key is None or issued.key != key:
            raise UnexpectedAnswer("the sidecar's answer holds no data key of this key")
        self._source = source
        self._key = key
        self._charged_bytes = issued.max_bytes
        suite = suite_by_name(issued.suite)
        self._sealer = SegmentSealer(
            issued.data_key, context, suite, segment_size=DEFAULT_SEGMENT_BYTES
        )
        self.header = issued.wrapped + self._sealer.header

    def seal_run(self, plaintext: memoryview, buffer: memoryview, *, is_last: bool) -> int:
        """Seal the next segments into a buffer and return their length; see ``SegmentSealer``.

        Raises:
            LimitExceeded: The stream has reached 16 TiB, or this is a forked child.
            KeysideError: More had to be charged, and the source refused.
        """
        while len(plaintext) > self._charged_bytes:
            more = self._source.generate_data_key(self._key, wrapped_only=True).max_bytes
            if more < 1:
                raise UnexpectedAnswer("the sidecar's answer holds no data key that can seal")
            self._charged_bytes += more
        self._charged_bytes -= len(plaintext)
        return self._sealer.seal_run(plaintext, buffer, is_last=is_last)


class StreamOpener(Unshareable):
    """Opens one stream; asks for its data key again when that has reached its age.

    Args:
        source: Gives the data key.
        wrapped: The wrapping header.
        header: The payload header.
        context: The pairs that the stream was sealed with.

    Raises:
        EnvelopeRejected: That is no segmented payload of this context and data key.
        KeysideError: What the source raised.
    """

    def __init__(
        self, source: KeySource, wrapped: bytes, header: bytes, context: Mapping[str, str]
    ) -> None:
        self._source = source
        self._wrapped = wrapped
        self._header = header
        self._context = dict(context)
        self._until = 0.0
        self._opener = self._ask()

    def open_run(self, index: int, sealed: memoryview, buffer: memoryview, *, is_last: bool) -> int:
        """Open segments into a buffer and return their length; see ``SegmentOpener``.

        Raises:
            EnvelopeRejected: A segment does not open.
            KeysideError: The data key is too old, and the source refused to give it again.
        """
        if read_clock() >= self._until:
            self._opener = self._ask()
        return self._opener.open_run(index, sealed, buffer, is_last=is_last)

    def _ask(self) -> SegmentOpener:
        asked_at = read_clock()
        opened = self._source.decrypt_data_key(self._wrapped)
        self._until = asked_at + opened.max_age_s
        return SegmentOpener(opened.data_key, self._header, self._context)
