"""A sealed input of any size, looked at: what it is, and what will open it."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol, cast

from keyside._atomic import read_full
from keyside._bounds import MAX_CALL_BYTES
from keyside._file_reading import PassingReader, SeekingReader
from keyside._sparse_copying import copy_rest
from keyside._stream_keys import KeySource, StreamOpener
from keyside.envelope import (
    KIND_SEGMENTED,
    MAX_HEADER_BYTES,
    MAX_OVERHEAD_BYTES,
    MAX_WHOLE_BYTES,
    encode_context,
    lay_out_body,
    parse_payload_header,
    parse_wrapping_header,
)
from keyside.envelope.direct import DirectKeys, open_directly, require_context
from keyside.envelope.payload_header import require_possible_whole_body
from keyside.errors import InvalidArgument, KeysideError, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyside.envelope import PayloadHeader, WrappingHeader

MAX_BEGINNING_BYTES: Final = MAX_HEADER_BYTES + 70
_PART_BYTES: Final = 1 << 20


class Opener(KeySource, Protocol):
    """What is needed of a client."""

    def decrypt(self, envelope: bytes, context: Mapping[str, str] | None = None) -> bytes:
        """Open an envelope in the sidecar."""


class SealedInput:
    """An input that may hold an envelope. ``close`` it, or the reader that ``open`` returned.

    Args:
        descriptor: A file or a pipe at its beginning; closed with this, or with the reader.

    Raises:
        OSError: It can't be looked at.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ahead = b""
        self._header: WrappingHeader | None = None
        try:
            status = os.fstat(descriptor)
            can_seek = stat.S_ISREG(status.st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        except BaseException:
            os.close(descriptor)
            raise
        self.size = status.st_size if can_seek else None

    @property
    def header(self) -> WrappingHeader:
        """Its wrapping header.

        Raises:
            EnvelopeRejected: It does not begin with one.
            OSError: Reading failed.
        """
        if self._header is None:
            self._read_ahead(MAX_BEGINNING_BYTES)
            self._header = parse_wrapping_header(self._ahead[:MAX_BEGINNING_BYTES])
        return self._header

    def close(self) -> None:
        """Close it, if no reader has it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_small(self) -> bytes | None:
        """Return all of it if one call may take it; else ``None``, and nothing is lost.

        Raises:
            OSError: Reading failed.
        """
        if self.size is not None and self.size > MAX_CALL_BYTES:
            return None
        self._read_ahead(MAX_CALL_BYTES + 1)
        return self._ahead if len(self._ahead) <= MAX_CALL_BYTES else None

    def require_payload(self) -> WrappingHeader:
        """Return its wrapping header, if a payload follows that may be one.

        Raises:
            EnvelopeRejected: There is none.
            OSError: Reading failed.
        """
        header = self.header
        payload = parse_payload_header(self._ahead[:MAX_BEGINNING_BYTES], len(header.raw))
        if self.size is not None:
            body_length = self.size - len(header.raw) - len(payload.raw)
            if payload.kind == KIND_SEGMENTED:
                lay_out_body(body_length, payload.segment_size)
            else:
                require_possible_whole_body(body_length)
        return header

    def read_into(self, buffer: memoryview) -> int:
        """Fill a buffer, from the beginning on, less only at the end; return how far.

        Raises:
            OSError: Reading failed.
        """
        count = min(len(buffer), len(self._ahead))
        if count:
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        return count + read_full(self._descriptor, buffer[count:])

    @property
    def has_holes(self) -> bool:
        """Whether it is a file with parts that take no room."""
        if not self.size:
            return False
        place = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        hole = os.lseek(self._descriptor, 0, os.SEEK_HOLE)
        os.lseek(self._descriptor, place, os.SEEK_SET)
        return hole < self.size

    def copy_rest(self, target: int, progress: Callable[[int], object]) -> int | None:
        """Append what has not been read to a new file; holes stay holes.

        Returns:
            How long the input is; ``None`` where it can't seek, and nothing was copied.

        Raises:
            OSError: Reading or writing failed.
        """
        if self.size is None:
            return None
        place = os.lseek(self._descriptor, 0, os.SEEK_CUR) - len(self._ahead)
        self._ahead = b""
        return copy_rest(self._descriptor, place, target, progress)

    def open(
        self, client: Opener, context: Mapping[str, str], close_source: Callable[[], object]
    ) -> io.RawIOBase:
        """Return a reader of its plaintext under a data key that the client asks for.

        Raises:
            EnvelopeRejected: It does not open, or its end is missing and it can seek.
            KeysideError: What the client raised.
            OSError: Reading failed.
        """
        header = self.header
        payload = parse_payload_header(self._ahead[:MAX_BEGINNING_BYTES], len(header.raw))
        if payload.kind != KIND_SEGMENTED:
            data = self._open_whole(client, payload, context)
            self.close()
            close_source()
            return cast("io.RawIOBase", io.BytesIO(data))
        opener = StreamOpener(client, header.raw, payload.raw, context)
        begin = len(header.raw) + len(payload.raw)
        descriptor, self._descriptor = self._descriptor, -1
        size = payload.segment_size
        if self.size is None:
            return PassingReader(
                descriptor,
                opener,
                segment_size=size,
                ahead=self._ahead[begin:],
                close_source=close_source,
            )
        reader = SeekingReader(descriptor, opener, segment_size=size, close_source=close_source)
        try:
            reader.begin(begin, self.size)
        except BaseException:
            reader.close()
            raise
        return reader

    def _open_whole(
        self, client: Opener, payload: PayloadHeader, context: Mapping[str, str]
    ) -> bytes:
        """Open what has to be in memory; nobody's word but a key holder's gets it there."""
        header = self.header.raw
        if self.size is not None:
            require_possible_whole_body(self.size - len(header) - len(payload.raw))
        encoded_context = encode_context(context)
        data_key = client.decrypt_data_key(header).data_key
        keys = DirectKeys(data_key, payload.salted, payload.suite)
        require_context(keys, payload.raw, encoded_context)
        return open_directly(keys, self._read_whole(), len(header), encoded_context)

    def _read_whole(self) -> bytearray:
        if self.size is not None:
            envelope = bytearray(self.size + 1)  # one more than there was: it may have grown
            with memoryview(envelope) as room:
                filled = self.read_into(room)
            del envelope[filled:]
            return envelope
        envelope = bytearray(self._ahead)
        self._ahead = b""
        most = MAX_WHOLE_BYTES + MAX_OVERHEAD_BYTES
        while len(envelope) <= most and (part := os.read(self._descriptor, _PART_BYTES)):
            envelope += part
        return envelope

    def _read_ahead(self, length: int) -> None:
        parts, missing = [self._ahead], length - len(self._ahead)
        while missing > 0 and (part := os.read(self._descriptor, min(missing, _PART_BYTES))):
            parts.append(part)
            missing -= len(part)
        self._ahead = b"".join(parts)


def open_small(client: Opener, envelope: bytes, context: Mapping[str, str]) -> bytes | None:
    """Return what a short envelope holds; ``None`` where it is longer than a call may be.

    Raises:
        KeysideError: What the client raised.
    """
    try:
        return client.decrypt(envelope, context)
    except KeysideError as error:
        if is_too_large(error):
            return None
        raise


def is_too_large(error: KeysideError) -> bool:
    """Return whether a sidecar refused a call for its size alone."""
    if isinstance(error, InvalidArgument):
        return any("max_plaintext_bytes" in why for _, why in error.violations)
    return isinstance(error, LimitExceeded) and error.reason == "MESSAGE_TOO_LARGE"
