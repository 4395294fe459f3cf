"""Durations and times as people type them: ``30m``, ``1h30m``, ``2026-11-25T22:45``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

# As in the sidecar's configuration: the largest unit first, each at most once.
_DURATION: Final = re.compile(
    r"(?:(?P<days>\d{1,5})d)?(?:(?P<hours>\d{1,6})h)?"
    r"(?:(?P<minutes>\d{1,7})m)?(?:(?P<seconds>\d{1,8})s)?",
    re.ASCII,
)


def parse_duration(text: str) -> timedelta | None:
    """Return a duration such as ``90s``, ``30m`` or ``1h30m``; ``None`` for anything else."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    return timedelta(**{unit: int(count) for unit, count in match.groupdict(default="0").items()})


class DurationType(click.ParamType[timedelta]):
    """A duration of a second or more."""

    name = "duration"

    def convert(
        self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the duration, or fail with what one looks like."""
        if isinstance(value, timedelta):
            return value
        found = parse_duration(value)
        if not found:
            self.fail(
                "write whole numbers with d, h, m or s, the largest unit first: 30m, 1h30m",
                param,
                ctx,
            )
        return found


class MomentType(click.ParamType[datetime]):
    """A time: in ISO 8601, in UTC where it names no zone, or a duration before now."""

    name = "time"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time with its zone, or fail with what one looks like."""
        if isinstance(value, datetime):
            return value
        ago = parse_duration(value)
        try:
            found = datetime.fromisoformat(value) if ago is None else datetime.now(UTC) - ago
        except (ValueError, OverflowError):
            self.fail(
                "write a time in ISO 8601 (2026-11-25T22:45:00Z; UTC where it names no zone), "
                "or how long ago: 2h",
                param,
                ctx,
            )
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


DURATION = DurationType()
MOMENT = MomentType()
