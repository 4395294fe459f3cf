"""Showing text that somebody else wrote, so that it can't speak to the terminal or the reader."""

from __future__ import annotations

import unicodedata
from typing import Final

# Controls, formats (bidirectional ones too), surrogates, private use and unassigned; line and
# paragraph separators.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def escape(text: str) -> str:
    r"""Return ``text`` on one line, with whatever is not visible spelt as in a Python literal.

    A backslash is doubled, so that what is shown can be told from what was escaped.
    """
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _HIDDEN:
        return character
    number = ord(character)
    if number <= 0xFF:  # noqa: PLR2004
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"  # noqa: PLR2004
