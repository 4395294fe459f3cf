"""Running a command for each of some texts: one at a time, for a limited time, without a shell.

It never keeps anybody waiting: what does not fit the queue is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import threading
from typing import Final

from keyside_sidecar.log import event

_log = logging.getLogger(__name__)

_LIMIT_S: Final = 10.0
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class CommandRunner:
    """Runs one command again and again, in a thread, with a text on its standard input.

    The command runs as the sidecar's account, in a session of its own, with ``PATH`` alone in its
    environment and nowhere to write to. How it ended is logged if it failed; what it said isn't.

    Args:
        name: Names it in the log.
        command: The program and its arguments; empty for nothing to be run.
        room: How many texts may wait.
    """

    def __init__(self, name: str, command: tuple[str, ...], room: int) -> None:
        self._name = name
        self._command = command
        self._queue: queue.Queue[bytes | None] = queue.Queue(room)
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def give(self, text: bytes) -> None:
        """Have the command run with ``text``; dropped where too many wait."""
        if not self._command:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # 1, 2, 4, 8, …
                event(
                    _log,
                    logging.ERROR,
                    "command is too slow",
                    command=self._name,
                    dropped=self._dropped,
                )

    def finish(self, limit_s: float) -> None:
        """Let it work off what waits, for a limited time; then end it."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=limit_s)
        self._thread.join(limit_s)
        process = self._process
        if process is not None:
            _kill(process)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                code = self._run_once(text)
            except OSError as error:
                event(
                    _log, logging.ERROR, "command can't run", command=self._name, error=str(error)
                )
                continue
            if code:
                event(_log, logging.ERROR, "command failed", command=self._name, code=code)

    def _run_once(self, text: bytes) -> int:
        # Not a pipe: a command that does not read its standard input must not matter.
        descriptor = os.memfd_create("keyside-record", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "r+b") as stream:
            stream.write(text + b"\n")
            stream.seek(0)
            self._process = process = subprocess.Popen(
                self._command,
                stdin=stream,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                restore_signals=True,
            )
        try:
            return process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            event(_log, logging.ERROR, "command takes too long", command=self._name)
            _kill(process)
            return 0
        finally:
            self._process = None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
