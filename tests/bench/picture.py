"""The picture: how far each figure is beyond its target, as SVG.

A bar for each row that has a target, on a logarithmic scale; the line in the middle is the target.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from rows import write_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rows import Row

WIDTH = 1200
LABELS = 540
FIGURES = 330
LINE = 24
TOP = 76
# Bars end here, and so do the scale's marks.
TITLE = "Times better than the target (logarithmic; right of the line is better)"
LEAST, MOST = 0.5, 4.0
MARKS = (0.5, 1.0, 2.0, 4.0)
MET, MISSED = "#2a7f62", "#c4572e"
_STYLE = "font-family:system-ui,sans-serif;font-size:13px;fill:#222"


def draw(rows: Sequence[Row]) -> str:
    """Return the picture."""
    judged = [row for row in rows if row.score is not None]
    height = TOP + LINE * len(judged) + 16
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>What was measured, against its targets</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="16" y="26" style="{_STYLE};font-weight:600">{TITLE}</text>',
            *_draw_scale(height),
            *(part for place, row in enumerate(judged) for part in _draw_row(row, place)),
            "</svg>",
            "",
        )
    )


def _place(score: float) -> float:
    room = WIDTH - LABELS - FIGURES
    kept = min(max(score, LEAST), MOST)
    return LABELS + room * math.log(kept / LEAST) / math.log(MOST / LEAST)


def _draw_scale(height: int) -> Iterator[str]:
    for mark in MARKS:
        x = _place(mark)
        stroke = "#222" if mark == 1 else "#ccc"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="62" y2="{height - 10}" stroke="{stroke}"/>'
        text = "target" if mark == 1 else f"{mark:g} ×"
        yield f'<text x="{x:.1f}" y="54" text-anchor="middle" style="{_STYLE}">{text}</text>'


def _draw_row(row: Row, place: int) -> Iterator[str]:
    assert row.score is not None
    y = TOP + LINE * place
    start, end = sorted((_place(1.0), _place(row.score)))
    colour = MET if row.met else MISSED
    style = f'style="{_STYLE}"'
    ratio = "" if row.ratio is None else f", {write_number(row.ratio)} ×"
    figure = f"{write_number(row.ours)} {row.unit}{ratio} ({row.target_text})"
    name = escape(row.name)
    yield f'<text x="{LABELS - 12}" y="{y + 13}" text-anchor="end" {style}>{name}</text>'
    yield (
        f'<rect x="{start:.1f}" y="{y + 2}" width="{max(end - start, 1):.1f}" height="14" '
        f'fill="{colour}"/>'
    )
    yield f'<text x="{WIDTH - FIGURES + 12}" y="{y + 13}" {style}>{escape(figure)}</text>'
