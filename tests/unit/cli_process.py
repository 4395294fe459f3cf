"""The ``keyside`` command as a process of its own, with pipes or with a terminal."""

from __future__ import annotations

import atexit
import json
import os
import pty
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit import warm_keyside
from tests.unit.sidecar_double import Double

from keyside import cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


# Without the credentials of whoever runs the tests.
_OUTSIDE = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}


def run(
    double: Double | Path,
    *arguments: str,
    stdin: bytes = b"",
    umask: int = 0o022,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``keyside`` to its end: in a process of its own, forked from one that has it loaded.

    Where the environment says how Python starts, it is started anew.
    """
    place = double.socket if isinstance(double, Double) else str(double)
    inside = {**_OUTSIDE, "KEYSIDE_SOCKET": place, **(environment or {})}
    if any(name.startswith(("PYTHON", "LC_", "LANG")) for name in environment or {}):
        return subprocess.run(
            [sys.executable, "-m", "keyside.cli", *arguments],
            input=stdin,
            capture_output=True,
            env=inside,
            umask=umask,
            timeout=60,
            check=False,
        )
    order = {
        "arguments": arguments,
        "environment": inside,
        "umask": umask,
        "directory": str(Path.cwd()),
    }
    pipes = [os.pipe() for _ in range(3)]
    (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes
    theirs = [their_in, their_out, their_err]
    program = _start_warm()
    socket.send_fds(program, [json.dumps(order).encode()], theirs)
    for end in theirs:
        os.close(end)
    with ThreadPoolExecutor(3) as pool:
        pool.submit(_write_all, our_in, stdin)
        output, errors = (pool.submit(_read_all, end) for end in (our_out, our_err))
        code = int(program.recv(64))
        return subprocess.CompletedProcess(arguments, code, output.result(), errors.result())


@cache
def _start_warm() -> socket.socket:
    """Return the way to a process that has ``keyside`` loaded; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(60)
    process = subprocess.Popen([sys.executable, warm_keyside.__file__], stdin=theirs.fileno())
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # first
    return ours


def _write_all(end: int, data: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(end, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def _read_all(end: int) -> bytes:
    with os.fdopen(end, "rb") as file:
        return file.read()


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
