"""What makes a wish for access one that could be granted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from keyside.envelope.context import encode_context
from keyside.errors import InvalidArgument
from keyside_sidecar.access.requests import MOST_USES, AccessOperation
from keyside_sidecar.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.access.elevation_policy import ElevationPolicy
    from keyside_sidecar.access.requests import AccessWish

MOST_TEXT: Final = 1000
MOST_TICKET: Final = 128
MOST_RANGES: Final = 32
MOST_CONTEXT: Final = 8_192
SHORTEST_US: Final = 1_000_000
_MOST_VERSION: Final = 2**32 - 1


def check_wish(wish: AccessWish, elevation: ElevationPolicy) -> None:
    """Check that a wish is one that could be granted.

    Raises:
        BadRequest: A field of it is missing, too long or out of bounds.
    """
    check_text("reason", wish.reason, required=True)
    check_text("ticket", wish.ticket, MOST_TICKET)
    if not SHORTEST_US <= wish.duration_us <= elevation.max_duration_us:
        most = elevation.max_duration_us // 1_000_000
        raise BadRequest("duration", f"must be from 1 s to {most} s (elevation.max_duration)")
    if not wish.operations or len(set(wish.operations)) != len(wish.operations):
        raise BadRequest("operations", "must name one operation at least, each once")
    if len(wish.versions) > MOST_RANGES:
        raise BadRequest("versions", f"must be at most {MOST_RANGES} ranges")
    if any(not 1 <= one.first <= one.last <= _MOST_VERSION for one in wish.versions):
        raise BadRequest(
            "versions", f"must be ranges of numbers from 1 to {_MOST_VERSION}, the lower one first"
        )
    if not 0 <= wish.max_uses <= MOST_USES:
        raise BadRequest("max_uses", f"must be from 1 to {MOST_USES}, or 0 for no limit")
    try:
        encode_context(wish.context)
    except InvalidArgument as error:
        raise BadRequest("context", str(error), reason=error.reason) from None
    if len(json.dumps(dict(wish.context))) > MOST_CONTEXT:
        raise BadRequest(
            "context",
            f"is longer than {MOST_CONTEXT} characters of ASCII JSON: what is asked must fit a "
            "record of the audit log",
        )


def check_text(field: str, text: str, most: int = MOST_TEXT, *, required: bool = False) -> None:
    """Check what a person wrote.

    Args:
        field: Names it in the error.
        text: What they wrote.
        most: At most so many characters.
        required: It must not be empty.

    Raises:
        BadRequest: It is too long, not printable, or missing.
    """
    if required and not text.strip():
        raise BadRequest(field, "must be given, in words that an approver understands")
    if len(text) > most:
        raise BadRequest(field, f"must have at most {most} characters")
    if not text.isprintable():
        raise BadRequest(field, "must be one line of printable characters")


def order_operations(operations: Iterable[AccessOperation]) -> tuple[AccessOperation, ...]:
    """Return operations in the one order in which they are kept."""
    given = set(operations)
    return tuple(operation for operation in AccessOperation if operation in given)
