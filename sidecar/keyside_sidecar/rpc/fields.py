"""Reads fields of requests that more than one servicer has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.errors import InvalidArgument
from keyside.names import parse_key_name
from keyside_sidecar.errors import BadRequest

if TYPE_CHECKING:
    from keyside.names import KeyName


def read_key_name(text: str, field: str) -> KeyName:
    """Return a key's name.

    Args:
        text: The field's value.
        field: The field's name.

    Raises:
        BadRequest: It is no key's name.
    """
    try:
        return parse_key_name(text)
    except InvalidArgument as error:
        raise BadRequest(field, str(error), reason=error.reason) from None
