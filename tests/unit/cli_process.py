"""The ``keyside`` command as a process of its own, with pipes or with a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.unit.sidecar_double import Double

from keyside import cli

if TYPE_CHECKING:
    from pathlib import Path


def run(
    double: Double | Path,
    *arguments: str,
    stdin: bytes = b"",
    umask: int = 0o022,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``keyside`` to its end."""
    socket = double.socket if isinstance(double, Double) else str(double)
    return subprocess.run(
        [sys.executable, "-m", "keyside.cli", *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, "KEYSIDE_SOCKET": socket, **(environment or {})},
        umask=umask,
        timeout=60,
        check=False,
    )


def call(double: Double, *arguments: str) -> int:
    """Run ``keyside`` in this process, which is quicker; return its exit code."""
    return cli._run(["--socket", double.socket, *arguments])


def on_terminal(
    double: Double,
    *arguments: str,
    typed: bytes = b"\x04",
    prompt: bytes = b"",
    environment: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Run ``keyside`` with a terminal as all three standard streams.

    What is typed is typed when ``prompt`` has appeared, or else after a second.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["KEYSIDE_SOCKET"] = double.socket
        os.environ.update(environment or {})
        os.execv(sys.executable, [sys.executable, "-m", "keyside.cli", *arguments])
    shown = b""
    while prompt and prompt not in shown:
        shown += os.read(terminal, 4096)
    if typed and not prompt:
        time.sleep(1)
    os.write(terminal, typed)
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the terminal's way to say that nobody is there any more
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown
