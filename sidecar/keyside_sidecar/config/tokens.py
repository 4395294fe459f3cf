"""Ends of TOML's strings and gaps, found in one pass and constant memory."""

from __future__ import annotations

import re
from typing import Final

_ENDS: Final = (
    ('"""', re.compile(r'\\.|"{3,5}', re.DOTALL)),
    ("'''", re.compile(r"'{3,5}")),
    ('"', re.compile(r'\\.|"|\n')),
    ("'", re.compile(r"'|\n")),
)
_WHITE: Final = re.compile(r"[ \t\r\n]*")


def find_string_end(text: str, start: int) -> int | None:
    """Return where the string that begins at ``start`` ends; None where none does."""
    for quote, pattern in _ENDS:
        if text.startswith(quote, start):
            for match in pattern.finditer(text, start + len(quote)):
                if match[0][0] == quote[0]:
                    return match.end()
                if match[0] == "\n":
                    return None
            return None
    return None


def find_gap_end(text: str, start: int) -> int:
    """Return where white space, line ends and comments from ``start`` on end."""
    at = start
    while True:
        match = _WHITE.match(text, at)
        at = match.end() if match else at
        if not text.startswith("#", at):
            return at
        end = text.find("\n", at)
        at = len(text) if end < 0 else end
