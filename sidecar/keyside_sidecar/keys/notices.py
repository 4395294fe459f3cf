"""What the keys' upkeep has to say: facts, for ``status`` and for the audit log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from keyside.names import KeyName

Tell: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""Takes an event's name and its facts, as the audit log has them."""


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


def tell_nobody(_event: str, _facts: Mapping[str, object]) -> None:
    """Stand in where there is no audit log."""


def describe_upkeep(key: KeyName, number: int, details: Mapping[str, object]) -> dict[str, object]:
    """Return what there is to tell of something that was done to a version."""
    return {"outcome": "ok", "key": key, "version": number, "details": dict(details)}
