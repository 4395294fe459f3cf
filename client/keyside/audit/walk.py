"""Going through the lines of a log's files in their order, one after the other, in constant memory.

The order is the one of the sequence numbers that the lines have, and not of the files' names: three
lines at each file's beginning vote, so that a change of one of them does not move the file. A file
is read as far as it went when it was opened: of one that is being written, no line is taken for
half a line because the other half came later.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyside.audit.findings import LogFile, Place
from keyside.audit.lines import MAX_LINE_BYTES, parse_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_VOTES: Final = 3
_NUMBERED: Final = re.compile(r"-([0-9]{12,18})\.jsonl$", re.ASCII)
_LAST: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands in one line of a file.

    Args:
        place: Where.
        data: Its bytes, without its end; a line that is too long is cut.
        ended: Whether a line's end follows.
        is_final: Whether it is the last one of the last file.
        length: How long the line really is.
    """

    place: Place
    data: bytes
    ended: bool
    is_final: bool
    length: int


def arrange(files: Sequence[LogFile]) -> list[LogFile]:
    """Return the files in the order of what is in them; the empty ones last."""
    return sorted(files, key=_guess_first_sequence)


def _guess_first_sequence(file: LogFile) -> int:
    """Return which sequence number the file's first line has, or should have."""
    votes: Counter[int] = Counter()
    with file.open() as stream:
        stream.seek(0)
        for index in range(_VOTES):
            line = stream.readline(MAX_LINE_BYTES + 2)
            sequence = parse_sequence(line)
            if sequence is not None:
                votes[sequence - index] += 1
    if votes:
        return votes.most_common(1)[0][0]
    match = _NUMBERED.search(file.name)
    return int(match[1]) if match else _LAST


def walk(files: Sequence[LogFile]) -> Iterator[Piece]:
    """Go through all lines of ``files``, in the order given."""
    waiting: Piece | None = None
    for file in files:
        for piece in _walk_file(file):
            if waiting is not None:
                yield waiting
            waiting = piece
    if waiting is not None:
        yield replace(waiting, is_final=True)


def _walk_file(file: LogFile) -> Iterator[Piece]:
    number = 0
    with file.open() as stream:
        left = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        while line := stream.readline(min(MAX_LINE_BYTES + 2, left)):
            number += 1
            length, ended = len(line), line.endswith(b"\n")
            left -= length
            while not ended and (more := stream.readline(min(MAX_LINE_BYTES, left))):
                length, ended = length + len(more), more.endswith(b"\n")
                left -= len(more)
            data = line.removesuffix(b"\n")
            yield Piece(Place(file.name, number), data, ended, is_final=False, length=length)
