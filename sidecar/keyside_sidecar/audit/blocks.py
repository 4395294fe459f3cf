"""Reading a file of lines from its end, or from a place in its middle, in blocks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from keyside.audit import MAX_LINE_BYTES, parse_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_BYTES: Final = 128 * 1024
_SEEK_BYTES: Final = 4096
# Where a line is longer than any record, what matters is that memory stays bounded.
_MAX_KEPT_BYTES: Final = 4 * MAX_LINE_BYTES


class RawLine(NamedTuple):
    """A line as it stands in a file.

    ``data`` is without the line's end; ``ended`` is whether there is one; ``offset`` is where the
    line begins.
    """

    offset: int
    data: bytes
    ended: bool


def read_backward(descriptor: int, end: int) -> Iterator[RawLine]:
    """Return the lines before ``end``, the last one first.

    Raises:
        OSError: The file can't be read.
    """
    position, rest, ended = end, b"", False
    while position > 0:
        size = min(_BLOCK_BYTES, position)
        position -= size
        block = os.pread(descriptor, size, position) + rest
        *parts, first = _split_backward(block)
        offset = position + len(block)
        for part in parts:
            offset -= len(part)
            if part or ended:
                yield RawLine(offset, part, ended)
            offset -= 1
            ended = True
        rest = first[:_MAX_KEPT_BYTES]
    if rest or ended:
        yield RawLine(0, rest, ended)


def _split_backward(block: bytes) -> list[bytes]:
    return block.split(b"\n")[::-1]


def read_forward(descriptor: int, start: int, end: int, block_bytes: int = 0) -> Iterator[RawLine]:
    """Return the lines from ``start``, where one begins, to ``end``.

    Args:
        descriptor: The file.
        start: Where to begin.
        end: Where to end.
        block_bytes: How much to read at once, in place of the usual.

    Raises:
        OSError: The file can't be read.
    """
    position, rest, offset = start, b"", start
    while position < end:
        block = os.pread(descriptor, min(block_bytes or _BLOCK_BYTES, end - position), position)
        if not block:
            break
        position += len(block)
        *parts, last = (rest + block).split(b"\n")
        for part in parts:
            yield RawLine(offset, part, ended=True)
            offset += len(part) + 1
        rest = last
        if len(rest) > _MAX_KEPT_BYTES:  # no record: what it is called does not matter
            offset += len(rest) - MAX_LINE_BYTES
            rest = rest[-MAX_LINE_BYTES:]
    if rest:
        yield RawLine(offset, rest, ended=False)


def find_line(descriptor: int, end: int, sequence: int) -> int:
    """Return where the first line begins whose sequence number is not below ``sequence``.

    By halving: lines that are none are passed over. Where the numbers don't grow, what is found is
    some line's beginning, and no more.

    Raises:
        OSError: The file can't be read.
    """
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        found = _find_next(descriptor, middle, high, end)
        if found is None or found[0] >= sequence:
            high = middle
        else:
            low = found[1]
    return low


def _find_next(descriptor: int, position: int, limit: int, end: int) -> tuple[int, int] | None:
    """Return the first record's number that begins before ``limit``, and where the next begins."""
    start = _align(descriptor, position, end)
    for line in read_forward(descriptor, start, end, _SEEK_BYTES):
        if line.offset >= limit:
            break
        number = parse_sequence(line.data)
        if number is not None and line.ended:
            return number, line.offset + len(line.data) + 1
    return None


def _align(descriptor: int, position: int, end: int) -> int:
    """Return where the first line begins at ``position`` or later."""
    if position == 0:
        return 0
    for line in read_forward(descriptor, position - 1, end, _SEEK_BYTES):
        return line.offset + len(line.data) + 1 if line.ended else end
    return end
