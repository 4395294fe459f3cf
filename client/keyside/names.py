"""The names and numbers that both sides use, and what makes them valid."""

from __future__ import annotations

import re
from typing import Final, NewType

from keyside.errors import InvalidArgument

KeyName = NewType("KeyName", str)
VersionNumber = NewType("VersionNumber", int)

MAX_KEY_NAME_LENGTH: Final = 63
_KEY_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


def parse_key_name(text: str) -> KeyName:
    """Return ``text`` as a key name.

    Args:
        text: 1 to 63 characters of a-z, 0-9, '.', '_' and '-'; the first a letter or digit.

    Raises:
        InvalidArgument: ``text`` is not of that form.
    """
    if not isinstance(text, str) or not _KEY_NAME.fullmatch(text):
        raise InvalidArgument(
            "a key name is 1 to 63 characters of a-z, 0-9, '.', '_' and '-', "
            "and begins with a letter or a digit",
            reason="INVALID_KEY_NAME",
        )
    return KeyName(text)
