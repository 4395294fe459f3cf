"""Facts in columns, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keyside.cli.text import escape
from keyside.timestamps import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


def format_time(when: datetime | None) -> str:
    """Return a time as all are written, or ``""`` for none."""
    return "" if when is None else format_timestamp(when)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, escaped; an empty cell is a dash."""
    cells = [list(heads), *([escape(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
