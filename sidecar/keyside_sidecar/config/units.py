"""Durations and sizes as people write them: ``"1h30m"``, ``"1MiB"``."""

from __future__ import annotations

import re
from typing import Final

_DURATION: Final = re.compile(
    r"(?:(?P<d>\d{1,9})d)?(?:(?P<h>\d{1,9})h)?(?:(?P<m>\d{1,9})m)?"
    r"(?:(?P<s>\d{1,9})s)?(?:(?P<ms>\d{1,9})ms)?",
    re.ASCII,
)
_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_SIZE: Final = re.compile(r"(?P<number>\d{1,9})(?P<unit>KiB|MiB|GiB)", re.ASCII)
_BYTES: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class WrongValueError(ValueError):
    """A setting's value is wrong; the message completes "SETTING: …"."""


def parse_duration_s(value: object) -> float:
    """Return a duration's seconds.

    Args:
        value: Text such as ``"5s"``, ``"90d"``, ``"250ms"`` or ``"1h30m"``: whole numbers with the
            units d, h, m, s and ms, the largest first, each at most once.

    Raises:
        WrongValueError: ``value`` is not of that form.
    """
    if isinstance(value, str) and value:
        match = _DURATION.fullmatch(value)
        if match:
            parts = match.groupdict(default="0")
            return sum(int(parts[unit]) * ms for unit, ms in _MS.items()) / 1000
    raise WrongValueError(
        "is a duration in quotes: whole numbers with d, h, m, s or ms, the largest unit first, "
        'as in "5s", "250ms" or "1h30m"'
    )


def format_duration(seconds: float) -> str:
    """Return ``seconds`` (to the millisecond) as ``parse_duration_s`` reads it."""
    rest = round(seconds * 1000)
    text = ""
    for unit, ms in _MS.items():
        count, rest = divmod(rest, ms)
        if count:
            text += f"{count}{unit}"
    return text or "0s"


def parse_size_bytes(value: object) -> int:
    """Return a size in bytes.

    Args:
        value: A whole number of bytes, or text such as ``"64KiB"``, ``"1MiB"``, ``"1GiB"``.

    Raises:
        WrongValueError: ``value`` is not of that form, or negative.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match:
            return int(match["number"]) * _BYTES[match["unit"]]
    raise WrongValueError('is a number of bytes, or a size in KiB, MiB or GiB, as in "1MiB"')


def format_size(size_bytes: int) -> str:
    """Return ``size_bytes`` as ``parse_size_bytes`` reads it, in the largest unit that fits."""
    for unit, factor in reversed(_BYTES.items()):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)
