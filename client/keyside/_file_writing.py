"""A file that is sealed as it is written. It appears when it is closed, or not at all.

OPEN → CLOSED: the file is there, sealed to its end
     → DISCARDED: an error, an exception in the ``with`` block, ``discard`` or being forgotten
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from typing import TYPE_CHECKING, Final, Self

from keyside._atomic import AtomicFile
from keyside.envelope import DEFAULT_SEGMENT_BYTES
from keyside.envelope.framing import TAG_LENGTH
from keyside.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from keyside._atomic import Bytes
    from keyside._stream_keys import StreamSealer

RUN_SEGMENTS: Final = 16
RUN_BYTES: Final = RUN_SEGMENTS * DEFAULT_SEGMENT_BYTES
SEALED_RUN_BYTES: Final = RUN_BYTES + RUN_SEGMENTS * TAG_LENGTH


class Sealing:
    """Cuts a plaintext of unknown length into runs of segments and hands them on, sealed.

    Only the last segment may be short, so the newest bytes wait for what follows them.

    Args:
        sealer: Seals them.
        write: Takes the sealed bytes; it must be done with them when it returns.
    """

    def __init__(self, sealer: StreamSealer, write: Callable[[Bytes], object]) -> None:
        self._sealer = sealer
        self._write = write
        self._waiting = memoryview(bytearray(RUN_BYTES))
        self._filled = 0
        self._sealed = memoryview(bytearray(SEALED_RUN_BYTES))
        self._begun = False

    def add(self, data: memoryview) -> None:
        """Take more of the plaintext in."""
        while data:
            if self._filled == RUN_BYTES:
                self._seal(self._waiting, is_last=False)
                self._filled = 0
            while self._filled == 0 and len(data) > RUN_BYTES:
                self._seal(data[:RUN_BYTES], is_last=False)
                data = data[RUN_BYTES:]
            count = min(RUN_BYTES - self._filled, len(data))
            self._waiting[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]

    def add_all(self, read: Callable[[memoryview], int]) -> None:
        """Take in what ``read`` fills buffers with, to its end.

        Args:
            read: Fills a buffer, less only at the end of the input, and returns how far.
        """
        self._filled += read(self._waiting[self._filled :])
        other = memoryview(bytearray(RUN_BYTES))
        while self._filled == RUN_BYTES and (count := read(other)):
            self._seal(self._waiting, is_last=False)
            self._waiting, other, self._filled = other, self._waiting, count

    def end(self) -> None:
        """Seal the rest as the plaintext's end."""
        self._seal(self._waiting[: self._filled], is_last=True)

    def _seal(self, plaintext: memoryview, *, is_last: bool) -> None:
        # Sealed before anything is written: only the sealer knows that this is a forked child.
        length = self._sealer.seal_run(plaintext, self._sealed, is_last=is_last)
        if not self._begun:
            self._begun = True
            self._write(self._sealer.header)
        self._write(self._sealed[:length])


class SealedFileWriter(io.BufferedIOBase):
    """See ``keyside.open``. Threads may share it: each ``write`` goes in as a whole.

    Args:
        path: The file's name.
        sealer: Seals it.
        exclusive: It may not exist yet.
        close_source: Called when the file is closed or discarded.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        sealer: StreamSealer,
        *,
        exclusive: bool,
        close_source: Callable[[], object],
    ) -> None:
        super().__init__()
        self._close_source = close_source
        self._done = True  # as long as there is nothing to discard
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._position = 0
        self.name = path
        self.mode = "xb" if exclusive else "wb"
        self._file = AtomicFile(path, secret=False, exclusive=exclusive)
        self._done = False
        self._sealing = Sealing(sealer, self._file.write)

    def writable(self) -> bool:
        """Return True."""
        self._require_open()
        return True

    def tell(self) -> int:
        """Return how many bytes of plaintext were written."""
        self._require_open()
        return self._position

    def write(self, data: Bytes, /) -> int:  # type: ignore[override]
        """Take all of ``data`` in; return its length.

        Raises:
            OSError: Writing failed; the file is discarded.
            KeysideError: It can't be sealed; the file is discarded.
        """
        with self._own_lock():
            self._require_open()
            try:
                view = memoryview(data).cast("B")
            except TypeError:
                raise InvalidArgument(
                    "data is bytes, side by side", reason="INVALID_TYPE"
                ) from None
            try:
                self._sealing.add(view)
            except BaseException:
                self.discard()
                raise
            self._position += len(view)
            return len(view)

    def flush(self) -> None:
        """Do nothing: what was written shows when the file is closed, and not before."""
        self._require_open()

    def close(self) -> None:
        """Seal the file's end, make it durable and let it appear under its name.

        Raises:
            OSError: Writing failed; nothing has appeared.
            KeysideError: It can't be sealed; nothing has appeared.
        """
        with self._own_lock():
            if self._done:
                return
            try:
                self._sealing.end()
                self._file.put_in_place()
            finally:
                self.discard()
        if self.not_kept:
            what = ", ".join(self.not_kept)
            warnings.warn(f"{self.name!r}: not kept: {what}", RuntimeWarning, stacklevel=2)

    @property
    def not_kept(self) -> tuple[str, ...]:
        """What the file that was replaced had and this one could not be given, in words."""
        return self._file.not_kept

    def discard(self) -> None:
        """Give the file up: nothing appears, and what stood there stays. May be repeated."""
        with self._own_lock():
            if self._done:
                return
            try:
                self._file.discard()
                self._close_source()
                super().close()
            finally:
                self._done = True

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        # The base class would close it, and what is half written would appear.
        self.discard()

    @property
    def closed(self) -> bool:
        """Whether it was closed or discarded."""
        return self._done

    def _own_lock(self) -> threading.RLock:
        # The thread that held it at a fork is not there in the child.
        if os.getpid() != self._process:
            self._lock = threading.RLock()
            self._process = os.getpid()
        return self._lock

    def _require_open(self) -> None:
        if self._done:
            raise ValueError("I/O operation on closed file")
