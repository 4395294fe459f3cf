"""The process's dumpable flag (prctl(2), PR_SET_DUMPABLE): what others of its account may do to it.

The sidecar knows a connection by the process that made it. Another process of the same account may
take that connection over (``pidfd_getfd``), or read the plaintexts in this one's memory, where the
kernel lets it trace this one: where Yama's ``kernel.yama.ptrace_scope`` is 0 or the kernel has no
Yama. A process that is not dumpable is closed to that, whatever the host's setting.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


def make_undumpable() -> None:
    """Close this process to other processes of its account; call it first of all in a service.

    Guarantees, until this process executes another program or changes its uid, and for what it
    forks: no process of the same account can trace it, read its memory, environment or descriptors
    in ``/proc``, or take its connections; and it leaves no core dump. *Not* guaranteed: anything
    against root, or CAP_SYS_PTRACE.

    In exchange its files in ``/proc`` belong to root, no debugger of the account's can be attached,
    and a sidecar without CAP_SYS_PTRACE can't see what it runs: audit records lack ``exe``.

    Raises:
        OSError: The kernel refuses, or did not do what it said.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    done = libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if done != 0 or libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"this process could not be made undumpable: {os.strerror(error)}")
