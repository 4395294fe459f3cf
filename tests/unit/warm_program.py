"""A program with all its modules loaded, forked for each run: what a start costs is paid once.

Run as ``python warm_program.py MODULE:FUNCTION MODULE…``. Each line of standard input is one run to
make, in JSON; each line of standard output is an exit code. The forked process gets descriptors, as
well as streams in ``sys``, as a newly started Python has them.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

UNREAD = "|"
_BEYOND = 100
_STEP_S = 0.005
_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)


def main() -> None:
    """Fork when told to, until standard input ends; in the forked process, run the program."""
    entry, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    module, function = entry.split(":")
    program = getattr(importlib.import_module(module), function)
    gc.freeze()
    orders, answers = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _BEYOND) for number in (0, 1))
    with os.fdopen(orders, "rb", buffering=0) as lines:
        while line := lines.readline():
            run = json.loads(line)
            pid = os.fork()
            if pid == 0:
                break
            os.write(answers, b"%d\n" % _await(pid, run["end_after_s"]))
        else:
            return
    os.closerange(3, _BEYOND + 10)
    _become(run)
    _end(program)


def _end(program: Callable[[], None]) -> NoReturn:
    """Run it to its end, and flush as Python does; taking everything apart would take longer."""
    code: object = 0
    try:
        program()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  (as Python itself says it)
        traceback.print_exc()
        code = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        traceback.print_exc()
        code = 120
    os._exit(code if isinstance(code, int) else 0)


def _await(pid: int, end_after_s: float | None) -> int:
    deadline_s = None if end_after_s is None else time.monotonic() + end_after_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline_s is not None and time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGTERM)
            deadline_s = None
        time.sleep(_STEP_S)


def _become(run: dict[str, Any]) -> None:
    if run["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(run["environment"])
    if run["gone"]:
        os.mkdir(run["gone"])  # noqa: PTH102
        os.chdir(run["gone"])
        os.rmdir(run["gone"])  # noqa: PTH106
    sys.argv = run["arguments"]
    encoding = sys.stdout.encoding
    for number, (place, mode) in enumerate(zip(run["streams"], _MODES, strict=True)):
        os.dup2(_open_unread() if place == UNREAD else os.open(place or os.devnull, mode), number)
    os.closerange(3, _BEYOND)
    for number, place in enumerate(run["streams"]):
        if place is None:
            os.close(number)
    streams = [
        None if place is None else _open_stream(number, encoding)
        for number, place in enumerate(run["streams"])
    ]
    for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _open_unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _open_stream(number: int, encoding: str) -> io.TextIOWrapper:
    raw = io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)
    if number == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), encoding)
    errors = "strict" if number == 1 else "backslashreplace"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=number > 1)


if __name__ == "__main__":
    main()
