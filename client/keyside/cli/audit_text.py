"""Audit records for people: a line each, or all that one says.

A record's fields are shown as they are found: a later sidecar may write others, and a log may have
been damaged, so nothing here relies on what a field holds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from keyside.cli.tables import Column, find_width, lay_out
from keyside.cli.text import escape
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyside.access_facts import AuditRecord

_COLUMNS: Final = (
    Column("SEQ", 0),
    Column("TIME", 3),
    Column("EVENT", 1, least=10),
    Column("OUTCOME", 2, least=8),
    Column("WHO", 4, least=6),
    Column("KEY", 5, least=8),
    Column("ACCESS", 6),
)
_WIDTHS: Final = (8, 20, 24, 22, 14, 24, 15)
_SECOND: Final = len("2026-11-25T22:45:11")


class RecordTable:
    """Records as lines of a table, one by one: its widths don't wait for the last of them."""

    def __init__(self) -> None:
        self._layout = lay_out(_COLUMNS, _WIDTHS, find_width())

    def heads(self) -> str:
        """Return the columns' names."""
        return self._layout.line([column.head for column in _COLUMNS])

    def line(self, record: AuditRecord) -> str:
        """Return one record as one line: when, what, what came of it, who, which key."""
        return self._layout.line(_cells(record))


def _cells(record: AuditRecord) -> Sequence[str]:
    fields = record.fields
    version = fields.get("version")
    key = as_text(fields.get("key"))
    return (
        str(record.sequence),
        shorten_time(as_text(fields.get("time"))),
        as_text(fields.get("event")),
        describe_outcome(fields),
        describe_who(fields),
        f"{key} v{as_text(version)}" if key and version is not None else key,
        as_text(fields.get("access")),
    )


def record_lines(record: AuditRecord) -> Iterator[str]:
    """Yield all that a record says, a field a line."""
    for name, value in record.fields.items():
        yield from _field_lines(escape(str(name)), value)


def json_line(record: AuditRecord) -> str:
    """Return the log's own line; written anew where it could act on a terminal."""
    line = record.json
    if line.isascii() and line.isprintable():
        return line
    return json.dumps(dict(record.fields))


def describe_outcome(fields: Mapping[str, Any]) -> str:
    """Return what came of it: ``ok``, ``refused NOT_ALLOWED (12 times)``, ``begun``."""
    outcome = as_text(fields.get("outcome"))
    if not outcome and fields.get("phase") == "intent":
        outcome = "begun"
    reason = as_text(fields.get("reason"))
    count = fields.get("count")
    times = f"({count_of(count, 'time')})" if isinstance(count, int) and count > 1 else ""
    return " ".join(part for part in (outcome, reason, times) if part)


def describe_who(fields: Mapping[str, Any]) -> str:
    """Return who did it: the account's name, else the uid, else ``""``."""
    caller = as_mapping(fields.get("caller"))
    return as_text(caller.get("account")) or as_text(caller.get("uid"))


def as_text(value: object) -> str:
    """Return a field as text, escaped; ``""`` where it is missing."""
    if value is None:
        return ""
    return escape(value if isinstance(value, str) else json.dumps(value))


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a field that holds others; none where it holds something else."""
    return value if isinstance(value, dict) else {}


def _field_lines(name: str, value: object) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for inner, one in value.items():
            yield from _field_lines(f"{name}.{escape(str(inner))}", one)
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        yield f"{name}: {', '.join(map(escape, value))}"
    else:
        yield f"{name}: {as_text(value)}"


def shorten_time(text: str) -> str:
    """Return a time to the second."""
    return f"{text[:_SECOND]}Z" if text.endswith("Z") and len(text) > _SECOND else text
