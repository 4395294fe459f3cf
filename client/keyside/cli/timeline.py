"""A key's versions along a time axis, for a terminal or a pipe. Pure: it is given the time.

Columns are left out where the terminal is narrow, last the bars themselves. Times that can't be (a
clock was wrong) are drawn within the axis, and said in words.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from keyside.cli.amounts import format_duration
from keyside.cli.tables import format_time
from keyside.cli.text import escape
from keyside.facts import KeyVersionState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyside.facts import KeyVersion

_GAP: Final = "  "
_DATE_WIDTH: Final = 10
_LEAST_BAR: Final = 12
_TINIEST_BAR: Final = 6
_MINUTES_BELOW: Final = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class _Look:
    """How a state looks: its colour, and its bar in Unicode and in ASCII."""

    colour: str
    block: str
    letter: str


_LOOKS: Final = {
    KeyVersionState.PENDING: _Look("cyan", "○", "o"),
    KeyVersionState.CURRENT: _Look("green", "█", "#"),
    KeyVersionState.ARCHIVED: _Look("blue", "▓", "="),
    KeyVersionState.DISABLED: _Look("yellow", "░", "x"),
    KeyVersionState.DESTROYED: _Look("red", "·", "."),
    KeyVersionState.UNKNOWN: _Look("magenta", "?", "?"),
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """What there is to draw on.

    Args:
        width: Columns.
        unicode: Block characters can be shown.
        now: The time, aware.
    """

    width: int
    unicode: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class _Span:
    """When a version was current, within the axis, and what is odd about that."""

    begin: datetime
    end: datetime
    oddity: str


def draw(versions: Sequence[KeyVersion], canvas: Canvas) -> list[str]:
    """Return the lines of a time line, one version a row, in the order given.

    Lines may hold colours; ``click.echo`` takes them out where they can't be shown.
    """
    if not versions:
        return []
    columns = _Columns(versions, canvas)
    spans = [_find_span(version, canvas.now) for version in versions]
    known = [span for span in spans if span]
    begin = min((span.begin for span in known), default=canvas.now)
    axis = _Axis(begin, max((span.end for span in known), default=canvas.now), columns.bar)
    lines = [axis.label(columns.left)] if columns.bar and known else []
    lines.append(columns.heads(axis.rule(unicode=canvas.unicode) if known else ""))
    for version, span in zip(versions, spans, strict=True):
        lines.append(columns.row(version, axis.bar(version.state, span, unicode=canvas.unicode)))
        lines += _notes(version, span, canvas)
    return lines


def summarise(rest: Iterable[KeyVersionState]) -> str:
    """Return one line about the versions that are not drawn, or ``""`` for none."""
    counts = Counter(rest)
    total = sum(counts.values())
    if not total:
        return ""
    parts = ", ".join(
        f"{counts[state]:,} {state.value}" for state in KeyVersionState if counts[state]
    )
    return f"... and {total:,} older: {parts}  (--all shows them)"


class _Columns:
    """Which columns there is room for, and how wide they are."""

    def __init__(self, versions: Sequence[KeyVersion], canvas: Canvas) -> None:
        self._cells = {
            "MESSAGES": max(8, *(len(_messages(version)) for version in versions)),
            "SEALED": _DATE_WIDTH,
            "OPENED": _DATE_WIDTH,
        }
        self._number = max(len("VERSION"), *(len(str(version.number)) for version in versions))
        self._state = max(len(version.state.value) for version in versions)
        self.left = self._number + len(_GAP) + self._state + len(_GAP)
        for dropped in ("SEALED", "MESSAGES", "OPENED"):
            if self._room(canvas) >= _LEAST_BAR:
                break
            del self._cells[dropped]
        room = self._room(canvas)
        self.bar = room if room >= _TINIEST_BAR else 0

    def heads(self, rule: str) -> str:
        """Return the line of headings, with the axis in the bars' place."""
        cells = [head.rjust(width) for head, width in self._cells.items()]
        return self._line("VERSION".rjust(self._number), "STATE".ljust(self._state), rule, cells)

    def row(self, version: KeyVersion, bar: str) -> str:
        """Return a version's line."""
        usage = version.usage
        values = {
            "MESSAGES": _messages(version),
            "SEALED": _date(usage.last_sealed_at if usage else None),
            "OPENED": _date(usage.last_opened_at if usage else None),
        }
        cells = [values[head].rjust(width) for head, width in self._cells.items()]
        number = str(version.number).rjust(self._number)
        state = version.state
        padding = " " * (self._state - len(state.value))
        shown = click.style(state.value, fg=_LOOKS[state].colour) + padding
        return self._line(number, shown, bar, cells)

    def _line(self, number: str, state: str, bar: str, cells: list[str]) -> str:
        shown = [number, state, *([bar or " " * self.bar] if self.bar else []), *cells]
        return _GAP.join(shown).rstrip()

    def _room(self, canvas: Canvas) -> int:
        taken = sum(width + len(_GAP) for width in self._cells.values())
        return min(canvas.width - self.left - taken, 100)


class _Axis:
    """Times as places in a bar."""

    def __init__(self, begin: datetime, end: datetime, width: int) -> None:
        self._begin, self._end, self._width = begin, max(begin, end), width

    def label(self, left: int) -> str:
        """Return the line of dates: as many as there is room for."""
        span = self._end - self._begin
        form = "%m-%d %H:%M" if span < _MINUTES_BELOW else "%Y-%m-%d"
        size = len(self._begin.strftime(form))
        first, last = self._begin.strftime(form), self._end.strftime(form)
        if self._width < 2 * size + 2:
            return " " * left + last.rjust(self._width) if self._width >= size else ""
        middle = (self._begin + span / 2).strftime(form)
        if self._width < 3 * size + 8 or span < timedelta(minutes=2):
            return " " * left + first + last.rjust(self._width - size)
        gap = self._width - 3 * size
        return " " * left + first + " " * (gap // 2) + middle + " " * (gap - gap // 2) + last

    def rule(self, *, unicode: bool) -> str:
        """Return the axis itself."""
        if self._width < _TINIEST_BAR:
            return ""
        line, tick = ("─", "┬") if unicode else ("-", "+")
        cells = [line] * self._width
        for place in (0, self._width // 2, self._width - 1):
            cells[place] = tick
        return "".join(cells)

    def bar(self, state: KeyVersionState, span: _Span | None, *, unicode: bool) -> str:
        """Return a version's bar, at least one cell of it."""
        if not self._width or span is None:
            return ""
        begin = min(self._place(span.begin), self._width - 1)
        end = min(max(self._place(span.end), begin + 1), self._width)
        look = _LOOKS[state]
        filled = (look.block if unicode else look.letter) * (end - begin)
        return " " * begin + click.style(filled, fg=look.colour) + " " * (self._width - end)

    def _place(self, when: datetime) -> int:
        whole = self._end - self._begin
        return round((when - self._begin) / whole * self._width) if whole else 0


def _find_span(version: KeyVersion, now: datetime) -> _Span | None:
    """Return when a version was current; where it never was, when it was made."""
    begin = version.activated_at or version.created_at
    if begin is None:
        return None
    oddity = ""
    if version.activated_at is None:
        end = begin
    elif version.state is KeyVersionState.CURRENT:
        end = now
    else:
        # A compromised version is disabled, and was never archived.
        end = version.archived_at or version.disabled_at or version.destroyed_at or begin
    if begin > now:
        word = "made" if version.activated_at is None else "current from"
        oddity = f"{word} {format_time(begin)}, which is in the future: a clock was or is wrong"
    elif end < begin:
        oddity = f"archived {format_time(end)}, before it became current: a clock was wrong"
    elif end > now:
        oddity = f"archived {format_time(end)}, which is in the future: a clock was or is wrong"
    begin = min(begin, now)
    return _Span(begin, max(begin, min(end, now)), oddity)


def _notes(version: KeyVersion, span: _Span | None, canvas: Canvas) -> list[str]:
    """Return what a bar can't say, each on a line of its own."""
    notes: list[tuple[str, str]] = []
    if version.destroyed_at:
        by = _by(version.destroy_requested_by_uid)
        notes.append((f"destroyed {format_time(version.destroyed_at)}, asked for{by}", "red"))
    elif version.destroy_in is not None:
        left = format_duration(version.destroy_in)
        by = _by(version.destroy_requested_by_uid)
        asked = f"{format_time(version.destroy_requested_at)}{by}"
        notes.append((f"will be destroyed in {left} of running time; asked for {asked}", "red"))
    elif version.disabled_at:
        by = _by(version.disabled_by_uid)
        notes.append((f"disabled {format_time(version.disabled_at)}{by}", "yellow"))
    if span and span.oddity:
        notes.append((span.oddity, "magenta"))
    indent = "    "
    room = max(canvas.width - len(indent), 20)
    return [
        indent + click.style(line, fg=colour)
        for note, colour in notes
        for line in textwrap.wrap(escape(note), room, break_on_hyphens=False)
    ]


def _by(uid: int | None) -> str:
    return "" if uid is None else f" by uid {uid}"


def _messages(version: KeyVersion) -> str:
    return "-" if version.usage is None else f"{version.usage.messages:,}"


def _date(when: datetime | None) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d") if when else "-"
