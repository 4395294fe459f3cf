"""Sealed files read as if they were plain: from any place where the file can seek, else in order.

No byte is handed out before its segment has opened. Where the file can seek, its last segment is
opened first, as the last: an end that was cut off is found before anything is read.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Final

from keyside._atomic import read_full
from keyside._file_writing import RUN_SEGMENTS
from keyside.envelope import lay_out_body
from keyside.envelope.framing import TAG_LENGTH
from keyside.errors import EnvelopeRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside._stream_keys import StreamOpener

_SEGMENTS_AT_ONCE: Final = RUN_SEGMENTS


class _Descriptor(io.RawIOBase):
    """What the two readers share: a descriptor to close, and a client that goes with it."""

    def __init__(self, descriptor: int, close_source: Callable[[], object]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._close_source = close_source

    def readable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Refuse: what is behind the descriptor is sealed."""
        raise io.UnsupportedOperation("a sealed file has no descriptor to read from")

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._close_source()


class SeekingReader(_Descriptor):
    """Reads a segmented envelope in a file that can seek; finds at once whether its end is there.

    Args:
        descriptor: The file; closed with this.
        opener: Opens its segments.
        segment_size: Plaintext bytes in a segment.
        close_source: Called when this is closed.
    """

    def __init__(
        self,
        descriptor: int,
        opener: StreamOpener,
        *,
        segment_size: int,
        close_source: Callable[[], object],
    ) -> None:
        super().__init__(descriptor, close_source)
        self._opener = opener
        self._size = segment_size
        self._position = 0
        self._held = -1

    def begin(self, begin: int, size: int) -> None:
        """Find out where the segments are, and that the last one is there.

        Args:
            begin: Where the first segment begins.
            size: The file's length.

        Raises:
            EnvelopeRejected: The file was cut off, or its last segment was altered.
            OSError: Reading failed.
        """
        segment_size = self._size
        self._begin = begin
        self._layout = lay_out_body(size - begin, segment_size)
        run = min(_SEGMENTS_AT_ONCE, self._layout.count)
        self._sealed = memoryview(bytearray(run * (segment_size + TAG_LENGTH)))
        self._segment = memoryview(bytearray(segment_size))
        self._load(self._layout.count - 1)

    @property
    def length(self) -> int:
        """The plaintext's length."""
        return self._layout.plaintext_length

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place in the plaintext."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place in the plaintext; return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}
        if whence not in base:
            raise ValueError(f"whence is {os.SEEK_SET}, {os.SEEK_CUR} or {os.SEEK_END}")
        if base[whence] + offset < 0:
            raise ValueError("there is no place before the beginning")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer as far as one step goes; return how far, and 0 at the end.

        Raises:
            EnvelopeRejected: A segment was altered; none of it is in the buffer.
            OSError: Reading failed.
        """
        with memoryview(buffer).cast("B") as room:
            left = self.length - self._position
            if left <= 0 or not room:
                return 0
            index, within = divmod(self._position, self._size)
            whole = min(len(room), left) // self._size
            if within == 0 and whole > 0:
                count = self._open_into(index, min(whole, _SEGMENTS_AT_ONCE), room)
            else:
                if self._held != index:
                    self._load(index)
                count = min(len(room), left, self._size - within)
                room[:count] = self._segment[within : within + count]
            self._position += count
            return count

    def readall(self) -> bytes:
        """Return everything from here to the end; it must fit into memory."""
        data = bytearray(max(0, self.length - self._position))
        with memoryview(data) as view:
            filled = 0
            while filled < len(data):
                filled += self.readinto(view[filled:])
        return bytes(data)

    def _load(self, index: int) -> None:
        self._held = -1
        self._open_into(index, 1, self._segment)
        self._held = index

    def _open_into(self, index: int, count: int, buffer: memoryview) -> int:
        """Open ``count`` segments from ``index`` on into a buffer; return their length."""
        offset, _ = self._layout.locate_segment(index)
        last = index + count - 1
        end = sum(self._layout.locate_segment(last))
        sealed = self._sealed[: end - offset]
        filled, at = 0, self._begin + offset
        while filled < len(sealed):
            got = os.preadv(self._descriptor, [sealed[filled:]], at + filled)
            if got == 0:
                raise EnvelopeRejected  # cut off since it was opened
            filled += got
        is_last = self._layout.is_last(last)
        return self._opener.open_run(index, sealed, buffer, is_last=is_last)


class PassingReader(_Descriptor):
    """Reads a segmented envelope that comes through a pipe, segment by segment.

    That its end is there is known at the end only: what was read before is genuine and in its
    place, and may be the beginning of something longer. After an error there is nothing more to
    read: what has come through the pipe does not come again.

    Args:
        descriptor: The pipe, behind the payload header; closed with this.
        opener: Opens its segments.
        segment_size: Plaintext bytes in a segment.
        ahead: What was read already and stands before the rest.
        close_source: Called when this is closed.
    """

    def __init__(
        self,
        descriptor: int,
        opener: StreamOpener,
        *,
        segment_size: int,
        ahead: bytes,
        close_source: Callable[[], object],
    ) -> None:
        super().__init__(descriptor, close_source)
        self._opener = opener
        self._stride = segment_size + TAG_LENGTH
        self._ahead = memoryview(ahead)
        run = _SEGMENTS_AT_ONCE * self._stride
        # One byte more than a run: whether it is there tells whether the run is the end.
        self._sealed = memoryview(bytearray(run + 1))
        self._kept = 0
        self._index = 0
        self._plain = memoryview(bytearray(_SEGMENTS_AT_ONCE * segment_size))
        self._ready = self._plain[:0]
        self._ended = False
        self._failure: Exception | None = None

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer as far as one step goes; return how far, and 0 at the end.

        Raises:
            EnvelopeRejected: A segment was altered, or the end is missing.
            OSError: Reading failed.
            KeysideError: What has been raised before.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        with memoryview(buffer).cast("B") as room:
            if not self._ready and not self._ended:
                try:
                    self._ready = self._open_next()
                except BaseException as error:
                    self._failure = _to_repeat(error)
                    raise
            count = min(len(room), len(self._ready))
            room[:count] = self._ready[:count]
            self._ready = self._ready[count:]
            return count

    def _open_next(self) -> memoryview:
        filled = self._kept + self._fill(self._sealed[self._kept :])
        run = len(self._sealed) - 1
        self._ended = filled <= run
        sealed = self._sealed[: min(filled, run)]
        length = self._opener.open_run(self._index, sealed, self._plain, is_last=self._ended)
        if not self._ended:
            self._index += _SEGMENTS_AT_ONCE
            self._sealed[0] = self._sealed[run]
            self._kept = 1
        return self._plain[:length]

    def _fill(self, room: memoryview) -> int:
        count = min(len(room), len(self._ahead))
        room[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count + read_full(self._descriptor, room[count:])


def _to_repeat(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    # Not EINTR: a buffered reader takes that for a request to try again, for ever.
    return OSError(errno.EIO, "reading was interrupted, and what was read is lost")
