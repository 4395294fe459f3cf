"""How far a long stream is, on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time
from typing import Final, Self

from keyside.cli.amounts import format_bytes

_EVERY_S: Final = 0.25
_QUIET_S: Final = 0.5


class Progress:
    """Shows on standard error how many bytes are done. Use it as a context manager.

    What is over within half a second shows nothing.

    Args:
        total: How many there are; ``None`` where that is not known.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._begun_s = time.monotonic()
        self._next_s = self._begun_s + _QUIET_S
        self._shown = False
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def add(self, count: int) -> None:
        """Count bytes that are done."""
        self._done += count
        if not self._terminal:
            return
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s, self._shown = now_s + _EVERY_S, True
        line = format_bytes(self._done)
        if self._total:
            line += f" of {format_bytes(self._total)}, {100 * self._done // self._total}%"
        line += f", {format_bytes(self._done / (now_s - self._begun_s))}/s"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
