"""Audit records for people: a line each, or all that one says.

A record's fields are shown as they are found: a later sidecar may write others, and a log may have
been damaged, so nothing here relies on what a field holds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from keyside.cli.text import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyside.access_facts import AuditRecord

_WIDTHS: Final = (8, 20, 21, 22, 14, 24)
_HEADS: Final = ("SEQ", "TIME", "EVENT", "OUTCOME", "WHO", "KEY", "ACCESS")
_SECOND: Final = len("2026-11-25T22:45:11")


def head_line() -> str:
    """Return the columns' names."""
    return _lay_out(_HEADS)


def record_line(record: AuditRecord) -> str:
    """Return one record as one line: when, what, what came of it, who, which key."""
    fields = record.fields
    version = fields.get("version")
    key = as_text(fields.get("key"))
    return _lay_out(
        (
            str(record.sequence),
            _shorten_time(as_text(fields.get("time"))),
            as_text(fields.get("event")),
            describe_outcome(fields),
            describe_who(fields),
            f"{key} v{as_text(version)}" if key and version is not None else key,
            as_text(fields.get("access")),
        )
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
    times = f"({count:,} times)" if isinstance(count, int) and count > 1 else ""
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


def _lay_out(cells: tuple[str, ...]) -> str:
    *most, last = cells
    padded = ((cell or "-").ljust(width) for cell, width in zip(most, _WIDTHS, strict=True))
    return f"{' '.join(padded)} {last or '-'}"


def _shorten_time(text: str) -> str:
    """Return a time to the second."""
    return f"{text[:_SECOND]}Z" if text.endswith("Z") and len(text) > _SECOND else text
