"""What the keys' upkeep has to say: facts, which the sidecar turns into problems in ``status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class Notice(NamedTuple):
    """Something that a person should know.

    Args:
        reason: A constant, such as ``DESTRUCTION_SCHEDULED``.
        summary: One sentence.
        remedy: What to do about it.
        since: Since when.
        strangers: What callers who are allowed nothing are told in its place.
    """

    reason: str
    summary: str
    remedy: str
    since: datetime
    strangers: str = ""
