"""Quantities in words: ``1 key``, ``2 keys``, ``1,000 keys``."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun in the form that goes with it.

    Args:
        number: How many.
        noun: For one.
        plural: For none and for several; the noun and an s unless given.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
