"""The process in which PAM runs: forked by the supervisor for one authentication, then gone.

A module may hang, crash, leak, print or fork; whatever it does ends with this process, which the
supervisor ends after ``pam_timeout`` at the latest. It has the supervisor's rights, because PAM
needs them, and of the supervisor's descriptors only one: the socket whose other end a worker has.

    isolate ─► read the password ─► uid → account ─► has PAM the service? ─► is it locked?
      ─► authentication, account management ─► answer the worker ─► exit with the outcome's code
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import struct
from typing import TYPE_CHECKING, Final

from keyside_sidecar import hardening
from keyside_sidecar.pam.errand import Fault, Outcome, Verdict
from keyside_sidecar.pam.shadow import is_locked
from keyside_sidecar.pam.transaction import has_service, run_transaction
from keyside_sidecar.peer.accounts import NameService, NameServiceUnavailable
from keyside_sidecar.peer.libc import Libc

if TYPE_CHECKING:
    from keyside_sidecar.pam.errand import Errand

MAX_PASSWORD_BYTES: Final = 1024
LENGTH: Final = struct.Struct(">H")
"""What stands before the password on the socket."""

_END: Final = 3
_BEYOND_STANDARD: Final = 16
_MAX_OPEN_FILES: Final = 1024
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class _Broken(Exception):
    """Authentication does not work here."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.name)
        self.fault = fault


def run_helper(end: socket.socket, errand: Errand, service: str, supervisor_pid: int) -> int:
    """Do one errand, in a process of its own.

    Args:
        end: The worker has the other one.
        errand: What to do.
        service: PAM's name for us.
        supervisor_pid: The parent's pid, taken before the fork.

    Returns:
        The process's exit code, which says what was found (``outcome.read_exit_code``).

    Raises:
        StartupError: The supervisor is gone, or the kernel refuses what isolates this process.
    """
    _isolate(end, supervisor_pid)
    # The worker's end, by its new number. It is never closed here: the process's end does it.
    answers = socket.socket(fileno=_END)
    answers.setblocking(True)
    try:
        verdict = _do(errand, service, answers)
    except _Broken as broken:
        verdict = Verdict(Outcome.UNAVAILABLE, broken.fault)
    line = json.dumps({"outcome": verdict.outcome.value}).encode() + b"\n"
    with contextlib.suppress(OSError):  # the worker has gone: nobody waits for the answer
        answers.send(line, socket.MSG_NOSIGNAL)
    return verdict.exit_code


def _isolate(end: socket.socket, supervisor_pid: int) -> None:
    """Let go of everything that is the supervisor's, its rights excepted."""
    kept = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, _BEYOND_STANDARD)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(_END):
        os.dup2(nothing, number)  # modules print
    os.dup2(kept, _END, inheritable=False)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The supervisor's own objects keep these numbers: none of them may be collected from now on.
    gc.disable()
    os.closerange(_END + 1, hard if hard != resource.RLIM_INFINITY else 1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MAX_OPEN_FILES, hard), hard))
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # SIGKILL, SIGSTOP, and libc's own
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    os.environ.clear()
    Libc.clearenv()  # what C libraries have set, too
    os.environ.update(_ENVIRONMENT)
    hardening.harden_process()
    hardening.set_death_signal(supervisor_pid, signal.SIGKILL)
    # Whatever a module forks stays below this process, so that all of it can be found and ended.
    hardening.adopt_orphans()
    hardening.lock_memory()


def _do(errand: Errand, service: str, end: socket.socket) -> Verdict:
    password = _read_password(end) if errand.purpose == "authenticate" else None
    try:
        account = NameService().account(errand.uid)
    except NameServiceUnavailable:
        raise _Broken(Fault.NAME_SERVICE_AWAY) from None
    if account is None:
        return Verdict(Outcome.UNKNOWN_ACCOUNT)
    if not has_service(service):
        raise _Broken(Fault.NO_SERVICE)
    name = os.fsencode(account.name)
    try:
        locked = is_locked(name)
    except PermissionError:
        raise _Broken(Fault.SHADOW_UNREADABLE) from None
    except OSError:
        raise _Broken(Fault.NAME_SERVICE_AWAY) from None
    return Verdict(Outcome.LOCKED) if locked else run_transaction(service, name, password)


def _read_password(end: socket.socket) -> bytes:
    """Return what the worker sent.

    Raises:
        _Broken: That is no password of the length that it says.
    """
    (length,) = LENGTH.unpack(_read_exactly(end, LENGTH.size))
    password = _read_exactly(end, length) if 0 < length <= MAX_PASSWORD_BYTES else b""
    if not password or b"\0" in password:
        raise _Broken(Fault.NO_PASSWORD_ARRIVED)
    return password


def _read_exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = end.recv(size - len(data))
        if not part:
            raise _Broken(Fault.NO_PASSWORD_ARRIVED)
        data += part
    return data
