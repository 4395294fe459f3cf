"""The ``keyside`` command as a process of its own, with pipes or with a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.unit.sidecar_double import Double

from keyside import cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


# Without the credentials of whoever runs the tests.
_OUTSIDE = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}


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
        env={**_OUTSIDE, "KEYSIDE_SOCKET": socket, **(environment or {})},
        umask=umask,
        timeout=60,
        check=False,
    )


@contextmanager
def running(double: Double, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``keyside`` with pipes for what it says; it is gone afterwards, come what may."""
    process = subprocess.Popen(
        [sys.executable, "-m", "keyside.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**_OUTSIDE, "KEYSIDE_SOCKET": double.socket},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def call(double: Double, *arguments: str) -> int:
    """Run ``keyside`` in this process, which is quicker; return its exit code."""
    return cli._run(["--socket", double.socket, *arguments])


def converse(
    double: Double,
    *arguments: str,
    answers: Sequence[tuple[bytes, bytes]],
    environment: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Run ``keyside`` with a terminal; type each answer when its prompt has appeared."""
    pid, terminal = pty.fork()
    if pid == 0:
        outside = {**_OUTSIDE, "KEYSIDE_SOCKET": double.socket, **(environment or {})}
        command = [sys.executable, "-m", "keyside.cli", *arguments]
        os.execve(sys.executable, command, outside)
    shown = seen = b""
    try:
        for prompt, typed in answers:
            while prompt not in seen:
                seen += os.read(terminal, 4096)
            shown, seen = shown + seen, b""
            os.write(terminal, typed)
        while chunk := os.read(terminal, 4096):
            seen += chunk
    except OSError:  # the terminal's way to say that nobody is there any more
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown + seen


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
