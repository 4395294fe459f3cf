"""A hold on the calling process that its number can't give: numbers are used again, pidfds aren't.

The kernel is asked for the peer's own pidfd (``SO_PEERPIDFD``, Linux 6.5). An older kernel, and
only that, says ENOPROTOOPT; the process is then looked up by its number (``pidfd_open``), which is
a guess that has to be checked: see :func:`find_by_number`.

What a pidfd of a process that has ended looks like differs: Linux 6.18 hands one out even for a
reaped peer, older kernels refuse with ESRCH or EINVAL. ``poll`` says POLLIN for all of those that
are handed out, so "has it ended" is asked of the pidfd and of nothing else.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

SO_PEERPIDFD: Final = 77

PidfdSource = Literal["kernel", "pidfd_open"]

_START_TICKS_FIELD: Final = 22  # of /proc/PID/stat, counted from 1 (proc_pid_stat(5))
_FIRST_FIELD_AFTER_NAME: Final = 3
_UIDS_LINE: Final = re.compile(r"^Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$", re.ASCII | re.MULTILINE)


class ProcessEnded(Exception):
    """The peer's process has ended, or the one found by its number can't be the peer."""


def ask_kernel(connection: socket.socket) -> int:
    """Return the peer's pidfd from the kernel; it has close-on-exec set.

    Raises:
        ProcessEnded: There is no such process any more.
        OSError: The call failed; ENOPROTOOPT means that the kernel is older than 6.5.
    """
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            raise ProcessEnded from error
        raise


def kernel_gives_peer_pidfd() -> bool:
    """Return whether this kernel knows ``SO_PEERPIDFD``.

    Raises:
        OSError: It could not be found out.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            os.close(ask_kernel(ours))
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                return False
            raise
    return True


def find_by_number(
    pid: int,
    uid: int,
    *,
    accepted_s: float,
    proc: Path = Path("/proc"),
    open_pidfd: Callable[[int], int] = os.pidfd_open,
) -> int:
    """Return a pidfd for the process that has the peer's number now, if it can be the peer.

    The peer connected before ``accept`` returned, so it had started by then: a process that
    started later has only inherited the number. So has one that holds none of the uid that the
    kernel recorded at connect (where ``status`` can be read at all).

    *Not* guaranteed: a process that got the number between the peer's connecting and our accepting
    passes, if it has the same uid. That window (a busy accept queue, and a full turn of the pid
    counter in it) is why the kernel's own pidfd is always preferred.

    Args:
        pid: The number, as the kernel recorded it at connect.
        uid: The peer's uid at connect.
        accepted_s: CLOCK_BOOTTIME right after ``accept`` returned, in seconds. Right after, not
            before: a process that started and connected just before ``accept`` ran is the peer.
        proc: Where proc is mounted.
        open_pidfd: The system call.

    Raises:
        ProcessEnded: There is no such process, or it can't be the peer.
        OSError: Something failed, and nothing is known.
        ValueError: What proc says can't be understood, and nothing is known.
    """
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError as error:
        raise ProcessEnded from error
    try:
        # Read after opening: if the pidfd's process is alive afterwards (the caller polls it after
        # this), the number was its own all the time, and these are its facts.
        possible = _can_be_peer(proc / str(pid), uid, accepted_s)
    except (FileNotFoundError, ProcessLookupError) as error:
        # Gone, or hidden: hidepid shows another account's process as not there at all.
        ended = has_ended(pidfd)
        os.close(pidfd)
        if ended:
            raise ProcessEnded from error
        raise
    except BaseException:
        os.close(pidfd)
        raise
    if not possible:
        os.close(pidfd)
        raise ProcessEnded
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Return whether the pidfd's process has ended (a zombie has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def boot_time_s() -> float:
    """Return CLOCK_BOOTTIME in seconds: the clock that process start times are counted on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _can_be_peer(directory: Path, uid: int, accepted_s: float) -> bool:
    if _started_s(directory) > accepted_s:
        return False
    uids = _uids(directory)
    return uids is None or uid in uids


def _started_s(directory: Path) -> float:
    """Return when the process started, in CLOCK_BOOTTIME seconds, rounded down to a clock tick.

    Rounding down means that the peer itself never seems younger than it is.
    """
    text = (directory / "stat").read_bytes()
    # The second field is the command's name in parentheses; the name may hold anything.
    fields = text[text.rindex(b")") + 1 :].split()
    place = _START_TICKS_FIELD - _FIRST_FIELD_AFTER_NAME
    if len(fields) <= place:
        raise ValueError("/proc/PID/stat ends early")
    return int(fields[place]) / os.sysconf("SC_CLK_TCK")


def _uids(directory: Path) -> frozenset[int] | None:
    """Return the process's four uids, or None where they can't be read."""
    try:
        text = (directory / "status").read_text("utf-8", "replace")
    except PermissionError:
        return None
    found = _UIDS_LINE.search(text)
    return None if found is None else frozenset(int(number) for number in found.groups())
