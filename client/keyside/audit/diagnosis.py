"""From the first line that is wrong to what was probably done.

That something was done is certain by then; this only names it. It looks at the line before, the
line after, and for a number that is missing at all the lines that follow.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from keyside.audit.findings import Change, Fault, Place
from keyside.audit.lines import parse_line, parse_sequence
from keyside.errors import MalformedRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside.audit.lines import Line
    from keyside.audit.walk import Piece


def diagnose(
    fault: Fault,
    piece: Piece,
    before: tuple[bytes, Piece, Line] | None,
    rest: Iterator[Piece],
) -> Fault:
    """Return the fault with what was probably done, and with the place of that.

    Args:
        fault: What is wrong with ``piece``.
        piece: The first line that is wrong.
        before: The line before it, where there is one: the hash that it followed, and itself.
        rest: What comes after it.
    """
    change, place, sequence = _find_change(piece, before, fault.sequence, rest)
    return dataclasses.replace(
        fault,
        change=change,
        place=place,
        sequence=sequence,
        since=min(fault.since, sequence) if change is Change.EDITED else sequence,
    )


def _find_change(
    piece: Piece,
    before: tuple[bytes, Piece, Line] | None,
    expected: int,
    rest: Iterator[Piece],
) -> tuple[Change, Place, int]:
    found = parse_sequence(piece.data)
    following = next(rest, None)
    next_found = parse_sequence(following.data) if following is not None else None
    if found is None or found == expected:
        if next_found == expected:
            return Change.INSERTED, piece.place, expected
        lost = next_found is not None and next_found > expected + 1 and not piece.ended
        return Change.REMOVED if lost else Change.EDITED, piece.place, expected
    if found < expected:
        return _diagnose_repeated(piece, before, expected, next_found)
    if next_found == expected:
        # Brought forward, or a copy of one that stands in its own place as well?
        is_copy = any(parse_sequence(later.data) == found for later in rest)
        return Change.INSERTED if is_copy else Change.REORDERED, piece.place, expected
    if next_found == expected + 1 != found:
        return Change.EDITED, piece.place, expected  # its number was changed
    is_later = any(parse_sequence(later.data) == expected for later in rest)
    return Change.REORDERED if is_later else Change.REMOVED, piece.place, expected


def _diagnose_repeated(
    piece: Piece,
    before: tuple[bytes, Piece, Line] | None,
    expected: int,
    next_found: int | None,
) -> tuple[Change, Place, int]:
    """Of a line whose number was there before: which of the two does not belong there?"""
    if before is not None:
        hash_before, former, _line = before
        if former.data != piece.data and _follows(piece, hash_before):
            return Change.INSERTED, former.place, expected - 1
    if next_found == expected + 1:
        return Change.EDITED, piece.place, expected
    return Change.INSERTED, piece.place, expected


def _follows(piece: Piece, previous: bytes) -> bool:
    try:
        return parse_line(piece.data).follows(previous)
    except MalformedRecord:
        return False
