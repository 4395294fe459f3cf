"""Names and times for the records that the recorder writes itself."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from keyside_sidecar.audit.records import build_body, format_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.clock import Clock


class Stamps:
    """Makes bodies of plain facts; used from one thread.

    Args:
        clock: For the times.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._prefix = f"{secrets.token_hex(6)}-"
        self._number = 0

    def now(self) -> str:
        """Return the time, as records have it."""
        return format_time(self._clock.now())

    def stamp(self, record: Mapping[str, object]) -> bytes:
        """Return a record's body."""
        self._number += 1
        name = f"{self._prefix}{self._number:x}"
        return build_body(record, name, self.now(), None).encode("ascii")
