"""Facts in columns, for people."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import click

from keyside.cli.text import escape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


def format_time(when: datetime | None) -> str:
    """Return RFC 3339 in UTC, to the second, or ``""``."""
    if when is None:
        return ""
    return when.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, escaped; an empty cell is a dash."""
    cells = [list(heads), *([escape(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
