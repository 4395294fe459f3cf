"""``keyside`` with all its modules loaded, forked for each run: what a start costs is paid once.

Run as ``python warm_keyside.py``, with a SOCK_SEQPACKET socket as standard input. Each packet is
one run to make, in JSON, with the three standard streams as descriptors beside it; each answer is
the run's exit code. The forked process has descriptors, and streams in ``sys``, as a newly started
Python has them.
"""

from __future__ import annotations

import array
import gc
import importlib
import io
import json
import os
import socket
import sys
import traceback
from typing import Any, Final, NoReturn

_MODULES: Final = (
    *("commands", "crypt", "keys", "access", "audit", "rewrap", "status", "versions", "watching"),
    *("audit_verify", "rewriting", "streaming", "activating", "deciding", "explaining", "show"),
)
_MAX_PACKET_BYTES: Final = 200_000
# Above all that is passed along.
_BEYOND: Final = 100


def main() -> None:
    """Fork when told to, until nobody tells any more; in the forked process, run ``keyside``."""
    for name in _MODULES:
        importlib.import_module(f"keyside.cli.{name}")
    for name in ("keyside.client", "keyside.envelope", "keyside.files", "keyside.audit"):
        importlib.import_module(name)
    gc.freeze()
    orders = socket.socket(fileno=os.dup(0))
    while True:
        data, ancillary, _flags, _address = orders.recvmsg(
            _MAX_PACKET_BYTES, socket.CMSG_SPACE(3 * 4), socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return
        streams = array.array("i")
        for _level, _kind, content in ancillary:
            streams.frombytes(content)
        pid = os.fork()
        if pid == 0:
            _become(json.loads(data), list(streams))
            _run()
        for stream in streams:
            os.close(stream)
        orders.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(run: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, _BEYOND)
    os.umask(run["umask"])
    os.chdir(run["directory"])
    os.environ.clear()
    os.environ.update(run["environment"])
    sys.argv = ["keyside", *run["arguments"]]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        opened = _open_stream(number)
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)


def _open_stream(number: int) -> io.TextIOWrapper:
    raw = io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)
    if number == 0:
        return io.TextIOWrapper(io.BufferedReader(raw), "utf-8")
    errors = "strict" if number == 1 else "backslashreplace"
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors, line_buffering=number > 1)


def _run() -> NoReturn:
    """Run it to its end, and flush as Python does; taking everything apart would take longer."""
    from keyside.cli import main as keyside

    code: object = 0
    try:
        keyside()
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


if __name__ == "__main__":
    main()
