"""Payloads in segments: any size in constant memory, from any segment, no end cut off unseen.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption
and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015): every segment is sealed under the stream's
own key with its index and whether it is the last as the nonce.

A sealer goes WRITING → FINISHED, with the last segment or with any failure to encrypt; there is
no way back, and no segment is sealed twice. An opener has no state: segments open in any order.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from os import urandom
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag

from keyside.envelope.context import digest_context, encode_context
from keyside.envelope.forks import mark_process
from keyside.envelope.framing import PREAMBLE, SALT_LENGTH, TAG_LENGTH, require_bytes
from keyside.envelope.keys import DataKey, Unshareable
from keyside.envelope.payload_header import (
    KIND_SEGMENTED,
    PayloadHeader,
    PayloadKeys,
    check_context,
    derive_segmented_keys,
    parse_payload_header,
    require_segment_size,
)
from keyside.envelope.suites import DEFAULT_SUITE, Aead, Suite, decrypt_or_wipe
from keyside.errors import EnvelopeRejected, InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_SEGMENT_BYTES: Final = 65536
MAX_STREAM_BYTES: Final = 2**44
"""The longest plaintext of a segmented payload, 16 TiB: the bound of its one derived key."""


def _encode_nonce(index: int, *, is_last: bool) -> bytes:
    return b"\x00\x00\x00" + index.to_bytes(8) + (b"\x01" if is_last else b"\x00")


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Where the segments of a payload of known length lie, counted from the end of its header.

    Args:
        segment_size: Plaintext bytes in every segment but the last.
        count: Number of segments, at least 1.
        plaintext_length: Plaintext bytes in all.
    """

    segment_size: int
    count: int
    plaintext_length: int

    @property
    def body_length(self) -> int:
        """All segments' bytes, tags included."""
        return self.plaintext_length + self.count * TAG_LENGTH

    def locate_segment(self, index: int) -> tuple[int, int]:
        """Return offset and length of a sealed segment within the body.

        Raises:
            InvalidArgument: There is no such segment.
        """
        if not 0 <= index < self.count:
            raise InvalidArgument("there is no such segment", reason="INVALID_SEGMENT_INDEX")
        stride = self.segment_size + TAG_LENGTH
        offset = index * stride
        return offset, min(stride, self.body_length - offset)

    def is_last(self, index: int) -> bool:
        """Return whether ``index`` is the last segment's."""
        return index == self.count - 1


def lay_out_plaintext(plaintext_length: int, segment_size: int) -> SegmentLayout:
    """Return the segments that a plaintext of a known length is sealed into.

    Raises:
        InvalidArgument: The length is outside 0 to 16 TiB, or the segment size is not possible.
    """
    require_segment_size(segment_size)
    if not 0 <= plaintext_length <= MAX_STREAM_BYTES:
        raise InvalidArgument(
            f"a segmented plaintext is at most {MAX_STREAM_BYTES} bytes",
            reason="PLAINTEXT_TOO_LARGE",
        )
    return SegmentLayout(
        segment_size, max(1, -(-plaintext_length // segment_size)), plaintext_length
    )


def lay_out_body(body_length: int, segment_size: int) -> SegmentLayout:
    """Return the segments that a payload body of a known length must consist of.

    This finds an end cut at an impossible place. An end cut between two segments is found by
    opening the layout's last segment *as the last*: whoever can seek does that first.

    Args:
        body_length: Bytes after the payload header.
        segment_size: From the payload header.

    Raises:
        EnvelopeRejected: No sealed plaintext has that length.
        InvalidArgument: The segment size is not possible.
    """
    require_segment_size(segment_size)
    stride = segment_size + TAG_LENGTH
    count = max(1, -(-body_length // stride))
    last_length = body_length - (count - 1) * stride
    plaintext_length = body_length - count * TAG_LENGTH
    # Only an empty plaintext has an empty last segment.
    if last_length < TAG_LENGTH + min(count - 1, 1) or plaintext_length > MAX_STREAM_BYTES:
        raise EnvelopeRejected
    return SegmentLayout(segment_size, count, plaintext_length)


class SegmentSealer(Unshareable):
    """Seals one stream, segment by segment, in order.

    Every sealer draws its own salt and so has its own key, whatever data key it shares. It
    refuses to go on in a forked child, where the same nonces would be used again. Only the last
    segment may be short, so whoever reads from a pipe reads one segment ahead to know the end.

    Args:
        data_key: The stream's data key; its wrapping header goes before ``header``.
        context: What the same pairs must be given for to open; see ``encode_context``.
        suite: What seals the segments.
        segment_size: Plaintext bytes in every segment but the last: a power of two from 4 KiB
            to 1 MiB.

    Raises:
        InvalidArgument: Context or segment size is not possible.
    """

    __slots__ = (
        "_aad",
        "_aead",
        "_finished",
        "_index",
        "_lock",
        "_max_segments",
        "_process",
        "header",
        "segment_size",
    )

    def __init__(
        self,
        data_key: DataKey,
        context: Mapping[str, str],
        suite: Suite = DEFAULT_SUITE,
        *,
        segment_size: int = DEFAULT_SEGMENT_BYTES,
    ) -> None:
        # First of all: a fork from here on copies the salt, and must be noticed.
        self._process = mark_process()
        require_segment_size(segment_size)
        encoded_context = encode_context(context)
        salted = bytes((suite.code, KIND_SEGMENTED)) + urandom(SALT_LENGTH)
        sequence = bytes(8)
        size = segment_size.to_bytes(4)
        pair = derive_segmented_keys(data_key.material, salted, sequence, size)
        keys = PayloadKeys(pair, suite)
        digest = digest_context(keys.context_key, sequence, encoded_context)
        self.header = salted + sequence + digest + size
        self.segment_size = segment_size
        self._aead = keys.aead
        self._aad = PREAMBLE + self.header
        self._max_segments = MAX_STREAM_BYTES // segment_size
        self._index = 0
        self._finished = False
        self._lock = threading.Lock()

    def seal_segment(self, plaintext: bytes, *, is_last: bool) -> bytes:
        """Return the next segment, sealed.

        Args:
            plaintext: ``segment_size`` bytes, or 1 to ``segment_size`` where last; empty only
                where the whole plaintext is.
            is_last: Whether this is the plaintext's end.

        Raises:
            InvalidArgument: The length is not possible here, or the last segment was sealed.
            LimitExceeded: The stream has reached 16 TiB, or this is a forked child.
        """
        require_bytes(plaintext, "a segment")
        # Looked at before the lock, which another thread may have held when this child forked,
        # and again within, because a signal handler may fork in between.
        self._require_own_process()
        with self._lock:
            self._require_own_process()
            index = self._index
            self._require_possible(index, len(plaintext), is_last=is_last)
            self._index = index + 1
            self._finished = True
            segment = self._aead.encrypt(
                _encode_nonce(index, is_last=is_last), plaintext, self._aad
            )
            self._finished = is_last
        return segment

    def seal_run(self, plaintext: memoryview, buffer: memoryview, *, is_last: bool) -> int:
        """Write the next segments, sealed, to a buffer's beginning and return their length.

        What ``seal_segment`` does for each of them, without a copy and for less than a
        microsecond beside the encryption.

        Args:
            plaintext: Whole segments, at least one; where last, the final one may be short, and
                the only one empty.
            buffer: Writable; 16 bytes longer for each segment.
            is_last: Whether this is the plaintext's end.

        Raises:
            InvalidArgument: The length is not possible here, or the last segment was sealed.
            LimitExceeded: The stream has reached 16 TiB, or this is a forked child.
        """
        size = self.segment_size
        count = max(1, -(-len(plaintext) // size))
        self._require_own_process()
        with self._lock:
            self._require_own_process()
            index = self._index
            tail = len(plaintext) - (count - 1) * size
            self._require_possible(index + count - 1, tail, is_last=is_last)
            self._index = index + count
            self._finished = True
            at = 0
            for number in range(count):
                segment = plaintext[number * size : (number + 1) * size]
                end = at + len(segment) + TAG_LENGTH
                nonce = _encode_nonce(index + number, is_last=is_last and number == count - 1)
                self._aead.encrypt_into(nonce, segment, self._aad, buffer[at:end])
                at = end
            self._finished = is_last
        return at

    def _require_own_process(self) -> None:
        if self._process != mark_process():
            raise LimitExceeded(
                "this sealer's process has forked",
                reason="SEALER_SPENT",
                remedy="start the stream again with a new sealer",
            )

    def _require_possible(self, index: int, length: int, *, is_last: bool) -> None:
        if self._finished:
            raise InvalidArgument("this stream has ended", reason="STREAM_ENDED")
        if index >= self._max_segments:
            raise LimitExceeded(
                f"a segmented plaintext is at most {MAX_STREAM_BYTES} bytes",
                reason="PLAINTEXT_TOO_LARGE",
            )
        shortest = self.segment_size if not is_last else min(index, 1)
        if not shortest <= length <= self.segment_size:
            raise InvalidArgument(
                f"a segment is {self.segment_size} bytes, or fewer where it is the last, "
                "and empty only where it is the only one",
                reason="INVALID_SEGMENT_LENGTH",
            )


class SegmentOpener(Unshareable):
    """Opens a stream's segments, in any order, from any number of threads.

    What one segment yields is authentic and at its place. That the stream has not been cut
    short is known only when the last segment has been opened as the last.

    Args:
        data_key: The stream's data key.
        header: A payload header, or a payload; what follows the header is not looked at.
        context: The pairs the stream was sealed with.

    Raises:
        EnvelopeRejected: That is no segmented payload of this context and data key.
        InvalidArgument: The context is not possible.
    """

    __slots__ = ("_stream", "header_length", "segment_size")

    def __init__(self, data_key: DataKey, header: bytes, context: Mapping[str, str]) -> None:
        encoded_context = encode_context(context)
        parsed = parse_payload_header(header)
        if parsed.kind != KIND_SEGMENTED:
            raise EnvelopeRejected
        self._stream = _unlock(parsed, data_key, encoded_context)
        self.segment_size = parsed.segment_size
        self.header_length = len(parsed.raw)

    def open_segment(self, index: int, segment: bytes, *, is_last: bool) -> bytes:
        """Return one segment's plaintext.

        Args:
            index: The segment's place, from 0.
            segment: Its sealed bytes.
            is_last: Whether the payload ends with it.

        Raises:
            EnvelopeRejected: The segment is not that one of this stream, or was altered.
            InvalidArgument: The segment is not ``bytes``.
        """
        require_bytes(segment, "a segment")
        return _open_segment(self._stream, index, segment, is_last=is_last)

    def open_run(self, index: int, sealed: memoryview, buffer: memoryview, *, is_last: bool) -> int:
        """Write the plaintext of segments that follow each other to a buffer; return its length.

        Args:
            index: The first segment's place, from 0.
            sealed: The segments, at least one; only the last of the payload may be short.
            buffer: Writable, and as long as the plaintext at least.
            is_last: Whether the payload ends with them.

        Raises:
            EnvelopeRejected: A segment is not that one of this stream, or was altered. The buffer
                then holds what is genuine and stands before it, and zeros in its place.
        """
        stream = self._stream
        stride = stream.segment_size + TAG_LENGTH
        count = max(1, -(-len(sealed) // stride))
        at = 0
        for number in range(count):
            segment = sealed[number * stride : (number + 1) * stride]
            last = is_last and number == count - 1
            _require_possible_segment(stream, index + number, len(segment), is_last=last)
            end = at + len(segment) - TAG_LENGTH
            nonce = _encode_nonce(index + number, is_last=last)
            decrypt_or_wipe(stream.aead, nonce, segment, stream.aad, buffer[at:end])
            at = end
        return at


def open_all_segments(
    header: PayloadHeader, data_key: DataKey, encoded_context: bytes, body: memoryview
) -> bytes:
    """Return the plaintext of a segmented payload that is in memory.

    Args:
        header: A segmented payload's header.
        data_key: The payload's data key.
        encoded_context: From ``encode_context``.
        body: All that follows the header.

    Raises:
        EnvelopeRejected: Any segment does not open, or there are too many or too few.
    """
    stream = _unlock(header, data_key, encoded_context)
    layout = lay_out_body(len(body), header.segment_size)
    return b"".join(_open_in_order(stream, layout, body))


def _open_in_order(stream: _Stream, layout: SegmentLayout, body: memoryview) -> Iterator[bytes]:
    # A generator, so that no frame of a refusal holds the segments that opened before it.
    for index in range(layout.count):
        offset, length = layout.locate_segment(index)
        segment = body[offset : offset + length]
        yield _open_segment(stream, index, segment, is_last=layout.is_last(index))


class _Stream(NamedTuple):
    aead: Aead
    aad: bytes
    segment_size: int


def _unlock(header: PayloadHeader, data_key: DataKey, encoded_context: bytes) -> _Stream:
    size = header.segment_size.to_bytes(4)
    keys = PayloadKeys(
        derive_segmented_keys(data_key.material, header.salted, header.sequence, size),
        header.suite,
    )
    check_context(header, keys, encoded_context)
    return _Stream(keys.aead, PREAMBLE + header.raw, header.segment_size)


def _open_segment(
    stream: _Stream, index: int, segment: bytes | memoryview, *, is_last: bool
) -> bytes:
    _require_possible_segment(stream, index, len(segment), is_last=is_last)
    try:
        return stream.aead.decrypt(_encode_nonce(index, is_last=is_last), segment, stream.aad)
    except InvalidTag:
        raise EnvelopeRejected from None


def _require_possible_segment(stream: _Stream, index: int, length: int, *, is_last: bool) -> None:
    size = stream.segment_size
    shortest = min(index, 1) if is_last else size
    if not 0 <= index < MAX_STREAM_BYTES // size or not shortest <= length - TAG_LENGTH <= size:
        raise EnvelopeRejected
