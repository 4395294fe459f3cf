"""Durations and sizes as people say them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.quantities import count_of

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_BYTES: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP: Final = 1024


def format_duration(duration: timedelta) -> str:
    """Return the two largest units of a duration, rounded down: ``6 d 23 h``."""
    left = max(0, int(duration.total_seconds()))
    for place, (size, name) in enumerate(_UNITS):
        if left >= size:
            count, left = divmod(left, size)
            if place + 1 == len(_UNITS):
                return f"{count:,} {name}"
            smaller, small_name = _UNITS[place + 1]
            rest = left // smaller
            return f"{count:,} {name} {rest} {small_name}" if rest else f"{count:,} {name}"
    return "0 s"


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit of which it has one: ``1.5 GiB``."""
    amount, unit = float(count), 0
    while amount >= _STEP and unit + 1 < len(_BYTES):
        amount, unit = amount / _STEP, unit + 1
    return count_of(round(count), "byte") if unit == 0 else f"{amount:.3g} {_BYTES[unit]}"
