"""Waiting for what happens a little later."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(
    look: Callable[[], T], is_right: Callable[[T], object], timeout_s: float = 20.0
) -> T:
    """Return what ``look`` returns as soon as it is right.

    Args:
        look: Asked again and again.
        is_right: Tells.
        timeout_s: How long to wait; what was seen last is in the failure.
    """
    deadline = time.monotonic() + timeout_s
    while not is_right(seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r}"
        time.sleep(0.05)
    return seen
