"""When a call that failed is made again, and how long all its attempts may take together."""

from __future__ import annotations

import math
import random
import time
from typing import Final

from keyside.errors import (
    ClosedClient,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    KeysideError,
    Unavailable,
)

DEFAULT_TIMEOUT_S: Final = 5.0
# For a call that waits for PAM (pam_timeout is 10 s unless configured) or reads through a log.
LONG_TIMEOUT_S: Final = 30.0
# For a call that waits for the other sidecars' acknowledgements (3 s), and for the store first.
ACKNOWLEDGED_TIMEOUT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5
_LEAST_TIMEOUT_S: Final = 0.001


def check_timeout(timeout_s: float) -> float:
    """Return ``timeout_s`` if a deadline can be made of it.

    Raises:
        InvalidArgument: Not a number, not above 0, or infinite.
    """
    if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
        raise InvalidArgument("timeout_s is a number of seconds above 0, and not infinite")
    return float(timeout_s)


def closed_error() -> ClosedClient:
    """Return what a closed client's calls raise."""
    return ClosedClient("this client is closed", remedy="make another one")


class Attempts:
    """The attempts of one call: one deadline, exponential pauses with jitter between them.

    Args:
        timeout_s: For all attempts and pauses together.
        repeatable: Doing the call twice does what doing it once does.
    """

    def __init__(self, timeout_s: float, *, repeatable: bool) -> None:
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._repeatable = repeatable
        self._pause_s = _FIRST_PAUSE_S
        self._last: Unavailable | None = None

    def remaining_s(self) -> float:
        """Return what the next attempt may take."""
        return max(self._deadline_s - time.monotonic(), _LEAST_TIMEOUT_S)

    def pause_or_raise(self, error: KeysideError) -> float:
        """Return how long to wait before the next attempt.

        Only UNAVAILABLE is worth another, a socket file that is not there (yet), and a call that
        the sidecar broke off: it was overloaded, or stopped.

        Raises:
            KeysideError: ``error``, or the one before it where that says more: there is no next
                attempt.
        """
        if isinstance(error, DeadlineExceeded):
            raise self._explain(error) from None
        if isinstance(error, Conflict) and self._last is not None:
            error.remedy = (
                "look at the key first: an earlier attempt of this very call may have rotated it"
            )
        if not self._repeatable or not isinstance(error, Unavailable):
            raise error from None
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load only)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self._last = error
        if time.monotonic() + pause_s >= self._deadline_s:
            raise error from None
        return pause_s

    def _explain(self, error: DeadlineExceeded) -> KeysideError:
        before = f"; before that: {self._last}" if self._last else ""
        remedy = (self._last.remedy if self._last else "") or error.remedy
        return DeadlineExceeded(
            f"no answer within {self._timeout_s:g} s{before}",
            remedy=remedy,
            request_id=error.request_id,
        )
