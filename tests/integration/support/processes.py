"""Whether processes run that are nobody's children here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def await_ended(pids: Iterable[int], timeout_s: float) -> None:
    """Wait until none of the processes runs."""
    left = list(pids)
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in left if is_running(pid)]:
        assert time.monotonic() < deadline, f"processes {left} do not end"
        time.sleep(0.005)
