"""A copy of a part of a file, in which holes stay holes (lseek(2), SEEK_DATA)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK_BYTES: Final = 1 << 20


def copy_rest(source: int, offset: int, target: int, progress: Callable[[int], object]) -> int:
    """Append a file from ``offset`` to its end to a new file; return where the source ended.

    Only what there is is read and written, a block at a time.

    Args:
        source: The file's descriptor.
        offset: Where to begin.
        target: The descriptor of another file, at its end, and there for this alone.
        progress: Called with how many bytes have been passed, holes among them.

    Raises:
        OSError: Reading or writing failed.
    """
    shift = os.lseek(target, 0, os.SEEK_CUR) - offset
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while True:
        data = _find_data(source, offset)
        if data is None:
            size = os.fstat(source).st_size
            break
        progress(data - offset)
        offset = data
        end = os.lseek(source, offset, os.SEEK_HOLE)
        while offset < end and (count := os.preadv(source, [buffer[: end - offset]], offset)):
            _write_at(target, buffer[:count], offset + shift)
            offset += count
            progress(count)
    size = max(size, offset)
    progress(size - offset)
    os.ftruncate(target, size + shift)
    os.lseek(target, size + shift, os.SEEK_SET)
    return size


def _find_data(source: int, offset: int) -> int | None:
    """Return where the next data is; None where there is none any more."""
    try:
        return os.lseek(source, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _write_at(target: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(target, data, offset)
        data, offset = data[count:], offset + count
