"""Ending a process together with everything that it has started.

A process group or session is not enough: ``pam_exec`` gives the command that it runs a session of
its own. So the tree is walked, as ``/proc/PID/task/TID/children`` has it. Each process is stopped
before its children are read: the kernel lets no fork finish under a pending signal, so that none is
missed. Of a helper (``helper.py``) orphans too are found, because it adopts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def kill_family(pid: int) -> None:
    """Kill a child of ours that has not been reaped yet, and all its descendants.

    What may not be signalled or has ended already is passed over. On a kernel without
    CONFIG_PROC_CHILDREN only the child's own process group ends with it.
    """
    family = [pid]
    for member in family:  # grows meanwhile
        if _send(member, signal.SIGSTOP):
            family += _list_children(member)
    for member in reversed(family):
        _send(member, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def _list_children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
