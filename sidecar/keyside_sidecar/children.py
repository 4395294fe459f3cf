"""The supervisor's children: forked here, and reaped here, whatever they are for."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from keyside_sidecar import hardening

if TYPE_CHECKING:
    from collections.abc import Callable

_EX_SOFTWARE: Final = 70


class Children:
    """Forks processes, and tells whoever asked for one when it has ended."""

    def __init__(self) -> None:
        self._on_ended: dict[int, Callable[[int], None]] = {}

    def fork(self, name: str, work: Callable[[], int], on_ended: Callable[[int], None]) -> int:
        """Start a process; return its pid.

        Args:
            name: What ``ps`` calls it: at most 15 characters.
            work: Runs in the child, which ends with what it returns, and with 70 where it raises.
            on_ended: Called by ``reap`` with the exit code; negative: a signal.

        Raises:
            OSError: The host has no room for it.
        """
        pid = os.fork()
        if pid == 0:
            code = _EX_SOFTWARE
            try:
                hardening.name_process(name)
                code = work()
            finally:
                logging.shutdown()
                os._exit(code)
        self._on_ended[pid] = on_ended
        return pid

    def reap(self) -> None:
        """Take note of the children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            on_ended = self._on_ended.pop(pid, None)
            if on_ended is not None:
                on_ended(os.waitstatus_to_exitcode(status))
