"""The names and numbers that both sides use, and what makes them valid."""

from __future__ import annotations

import re
from typing import Final, NewType

from keyside.errors import InvalidArgument

AccessId = NewType("AccessId", str)
KeyName = NewType("KeyName", str)
VersionNumber = NewType("VersionNumber", int)

MAX_KEY_NAME_LENGTH: Final = 63
_KEY_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_ACCESS_ID: Final = re.compile(r"ar-[a-z2-7]{12}", re.ASCII)


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


def parse_access_id(text: str) -> AccessId:
    """Return ``text`` as the id of an access request, and of the grant that it becomes.

    Args:
        text: "ar-" and 12 characters of a-z and 2-7.

    Raises:
        InvalidArgument: ``text`` is not of that form.
    """
    if not isinstance(text, str) or not _ACCESS_ID.fullmatch(text):
        raise InvalidArgument(
            'the id of an access request is "ar-" and 12 characters of a-z and 2-7',
            reason="INVALID_ACCESS_ID",
        )
    return AccessId(text)
