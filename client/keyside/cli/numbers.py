"""Numbers as people type them: ASCII digits alone, where Python would read far more as a number."""

from __future__ import annotations

import re
from typing import Final, cast

import click

_WHOLE: Final = re.compile(r"-?[0-9]{1,20}")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")


class WholeNumberType(click.IntRange):
    """A whole number within bounds."""

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number, or fail with what one looks like."""
        if isinstance(value, str) and not _WHOLE.fullmatch(value):
            self.fail("write a whole number, in the digits 0 to 9", param, ctx)
        return int(super().convert(cast("int", value), param, ctx))  # or its text: click reads it


class SecondsType(click.FloatRange):
    """A number of seconds within bounds."""

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail with what one looks like."""
        if isinstance(value, str) and not _DECIMAL.fullmatch(value):
            self.fail("write a number of seconds, such as 5 or 0.5", param, ctx)
        return float(super().convert(cast("float", value), param, ctx))
