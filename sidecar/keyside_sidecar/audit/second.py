"""The second place for checkpoints: out of the reach of whoever can write to the log.

With the newest checkpoint from there, ``keyside audit verify --checkpoint`` notices a cut end.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Final

from keyside_sidecar.audit.running import CommandRunner
from keyside_sidecar.log import event

_log = logging.getLogger(__name__)

_SYSLOG: Final = "/dev/log"
# RFC 5424: facility 13 (log audit), severity 5 (notice).
_PRIORITY: Final = 13 * 8 + 5
_ROOM: Final = 4


class SecondPlace:
    """Sends each checkpoint to the system's log and to a command; waits for neither.

    Args:
        command: On whose standard input it goes; empty for none.
        use_syslog: Whether it goes to the system's log.
        syslog: The socket of that.
    """

    def __init__(
        self, command: tuple[str, ...], *, use_syslog: bool, syslog: str = _SYSLOG
    ) -> None:
        self._runner = CommandRunner("checkpoint_command", command, _ROOM)
        self._syslog = syslog if use_syslog else ""
        self._told = False

    def send(self, line: bytes) -> None:
        """Send a checkpoint's line."""
        self._runner.give(line)
        if self._syslog:
            self._send_to_syslog(line)

    def finish(self, limit_s: float) -> None:
        """Let the command end, for a limited time."""
        self._runner.finish(limit_s)

    def _send_to_syslog(self, line: bytes) -> None:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.closing(end):
            try:
                end.connect(self._syslog)
                end.send(b"<%d>keyside-audit: %b" % (_PRIORITY, line))
            except OSError as error:
                if not self._told:
                    self._told = True
                    event(
                        _log,
                        logging.WARNING,
                        "checkpoint did not reach the system's log",
                        error=str(error),
                        what_to_do="run a syslog daemon or the journal, or set checkpoint_command",
                    )
            else:
                self._told = False
