"""Facts in columns, for people, in the width that there is.

A terminal that is too narrow first gets shorter cells, cut with "..", and then fewer columns: those
of the highest rank go first. Columns that somebody copies from, such as ids, are never cut as long
as there is another to leave out. A pipe gets everything, unless COLUMNS says how wide it is.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from keyside.cli.text import escape
from keyside.timestamps import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_GAP: Final = "  "
_CUT: Final = ".."


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        head: Its name.
        rank: Columns of a higher rank are left out earlier.
        least: How many characters of it are worth showing; ``None``: all or none.
    """

    head: str
    rank: int
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns there is room for, how wide each is, and whether longer cells are cut."""

    places: tuple[int, ...]
    widths: tuple[int, ...]
    cuts: bool = True

    def line(self, cells: Sequence[str]) -> str:
        """Return a row's line; cells are escaped already, and an empty one is a dash."""
        shown = []
        for place, width in zip(self.places, self.widths, strict=True):
            cell = cells[place] or "-"
            shown.append(_fit(cell, width) if self.cuts else cell.ljust(width))
        return _GAP.join(shown).rstrip()


def format_time(when: datetime | None) -> str:
    """Return a time as all are written, or ``""`` for none."""
    return "" if when is None else format_timestamp(when)


def find_width() -> int | None:
    """Return how wide lines may be: as COLUMNS says, or the terminal; ``None`` in a pipe."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def lay_out(columns: Sequence[Column], wanted: Sequence[int], width: int | None) -> Layout:
    """Choose columns and their widths.

    Args:
        columns: From left to right.
        wanted: How wide each would be.
        width: How wide a line may be; ``None`` for however wide.
    """
    kept = list(range(len(columns)))
    if width is None:
        return Layout(tuple(kept), tuple(wanted), cuts=False)
    least = [
        min(wish, wish if column.least is None else max(column.least, len(column.head)))
        for column, wish in zip(columns, wanted, strict=True)
    ]
    while len(kept) > 1 and _sum(least, kept) > width:
        kept.remove(max(kept, key=lambda place: columns[place].rank))
    widths = {place: min(least[place], width) for place in kept}
    left = width - _sum(least, kept)
    for place in sorted(kept, key=lambda place: columns[place].rank):
        more = max(0, min(left, wanted[place] - widths[place]))
        widths[place] += more
        left -= more
    return Layout(tuple(kept), tuple(widths[place] for place in kept))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, escaped; an empty cell is a dash."""
    cells = [[escape(cell) or "-" for cell in row] for row in rows]
    heads = [column.head for column in columns]
    wanted = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    layout = lay_out(columns, wanted, find_width())
    for row in (heads, *cells):
        click.echo(layout.line(row))


def _sum(widths: Sequence[int], places: Sequence[int]) -> int:
    return sum(widths[place] for place in places) + len(_GAP) * (len(places) - 1)


def _fit(cell: str, width: int) -> str:
    if len(cell) <= width:
        return cell.ljust(width)
    return cell[: max(0, width - len(_CUT))] + _CUT[:width]
