"""What a process that holds keys gives up: core dumps, swap, other people's reach, root.

The order matters, and each function says what undoes it:

1. ``raise_memlock_limit`` while still root.
2. ``drop_privileges``.
3. ``harden_process``: the kernel makes a process dumpable anew, or not, when its uid changes.
4. ``set_death_signal``: the kernel forgets it when the uid changes.
5. ``lock_memory`` in each worker after its fork: a lock isn't inherited.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

# <linux/prctl.h>, <linux/capability.h>, and <asm-generic/mman.h>. On the few architectures with
# other mlockall flags the kernel answers EINVAL, and lock_memory says so.
_PR_SET_PDEATHSIG: Final = 1
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_CAP_IPC_LOCK: Final = 14
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_WHOLE_UID_MAP: Final = ["0", "0", "4294967295"]
_EX_OSERR: Final = 71

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.prctl.restype = ctypes.c_int
_libc.mlockall.argtypes = [ctypes.c_int]
_libc.mlockall.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class MemoryLock:
    """Whether memory is kept out of swap, and why (not)."""

    locked: bool
    why: str


def harden_process(*, no_new_privs: bool = False) -> None:
    """Forbid core dumps, ptrace by others of the same uid, and group- or world-readable files.

    Guarantees for this process and its later forks: ``RLIMIT_CORE`` is 0; the process isn't
    dumpable (so no core through a pipe either, which ignores the limit, and no
    ``/proc/PID/mem`` for others of the same uid); the umask is 0077. Root can still read memory.

    Args:
        no_new_privs: Also give up what set-user-id programs would grant, for ever. A supervisor
            that starts such a helper can't.

    Raises:
        StartupError: The kernel refuses, or did not do what it said.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0, "make the process not dumpable")
    if _prctl(_PR_GET_DUMPABLE, 0, "ask whether the process is dumpable") != 0:
        raise StartupError("the process is still dumpable", exit_code=_EX_OSERR)
    os.umask(0o077)
    if no_new_privs:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs")
        if _prctl(_PR_GET_NO_NEW_PRIVS, 0, "ask for no_new_privs") != 1:
            raise StartupError("no_new_privs did not take effect", exit_code=_EX_OSERR)


def raise_memlock_limit() -> bool:
    """Lift the limit on locked memory, as far as allowed; a later change of uid keeps it.

    Returns:
        Whether there is no limit now. (Raising a hard limit needs CAP_SYS_RESOURCE.)
    """
    infinite = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (infinite, infinite))
    except (ValueError, OSError):  # Python turns setrlimit's EPERM into ValueError
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == infinite


def lock_memory() -> MemoryLock:
    """Keep all memory, present and future, out of swap, where that can't do harm.

    Only where locked memory has no limit: under a finite one, MCL_FUTURE makes every later
    allocation beyond it fail. Pages are locked as they are touched (MCL_ONFAULT); without that,
    each thread's whole stack becomes resident. Not inherited by a fork. Call it after
    ``drop_privileges``: a limit that only CAP_IPC_LOCK lifts comes back when that goes.

    Returns:
        What was done and why; never raises, because whether to run unlocked is for the host to
        decide (encrypted or no swap makes it moot).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        cause = "RLIMIT_MEMLOCK is unlimited"
    elif _has_ipc_lock():
        cause = "the process has CAP_IPC_LOCK"
    else:
        return MemoryLock(
            locked=False,
            why=f"RLIMIT_MEMLOCK is {limit} bytes; set LimitMEMLOCK=infinity in the systemd unit, "
            "or grant CAP_IPC_LOCK",
        )
    ctypes.set_errno(0)
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return MemoryLock(locked=False, why=f"mlockall: {os.strerror(ctypes.get_errno())}")
    return MemoryLock(locked=True, why=cause)


def set_death_signal(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent ends.

    The parent is the *thread* that forked: fork workers from a thread that lives as long as the
    supervisor. A change of uid undoes this.

    Args:
        parent_pid: The parent's pid, taken before the fork; if it is no longer the parent, it has
            ended in between and no signal will come.
        signal_number: What to send.

    Raises:
        StartupError: The parent has ended already, or the kernel refuses.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal_number), "ask for a signal at the parent's end")
    if os.getppid() != parent_pid:
        raise StartupError("the supervisor ended while this process started", exit_code=_EX_OSERR)


def name_process(name: str) -> None:
    """Have ``ps``, ``top`` and ``/proc/PID/comm`` call this process so: at most 15 characters."""
    # The kernel copies it; prctl's argument is the text's address.
    text = ctypes.create_string_buffer(name.encode("ascii"))
    _prctl(_PR_SET_NAME, ctypes.addressof(text), "name the process")


def adopt_orphans() -> None:
    """Become the parent of whatever descends from this process and loses its own parent.

    Raises:
        StartupError: The kernel refuses.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "adopt orphans")


def drop_privileges(uid: int, gid: int, groups: Iterable[int]) -> None:
    """Become another account, for good: real, effective and saved ids, groups, capabilities.

    Nothing is done where the process already runs as that account and isn't root.
    The process is not dumpable afterwards only as ``fs.suid_dumpable`` has it: call
    ``harden_process`` next.

    Args:
        uid: The account; not 0.
        gid: Its primary group.
        groups: Its supplementary groups; all others are given up.

    Raises:
        StartupError: The kernel refuses, something was kept, or root could be had back.
    """
    wanted = frozenset(groups)
    if uid == 0:
        raise StartupError("privileges can't be dropped to root: name another account")
    if os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid):
        return
    try:
        os.setgroups(sorted(wanted))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise StartupError(
            f"can't become uid {uid}, gid {gid}: {error.strerror}",
            remedy="start as root, or as that account",
            exit_code=_EX_OSERR,
        ) from None
    kept = [
        os.getresuid() != (uid, uid, uid),
        os.getresgid() != (gid, gid, gid),
        frozenset(os.getgroups()) - {gid} != wanted - {gid},
        any(_read_capabilities(name) for name in ("CapPrm", "CapEff", "CapAmb")),
        _succeeds(os.setresuid, -1, 0, -1),
        gid != 0 and _succeeds(os.setresgid, -1, 0, -1),
    ]
    if any(kept):
        raise StartupError(
            f"privileges were not given up for good on becoming uid {uid}",
            remedy="start without keep-caps, no-setuid-fixup or ambient capabilities",
            exit_code=_EX_OSERR,
        )


def _succeeds(change: object, *ids: int) -> bool:
    try:
        change(*ids)  # type: ignore[operator]
    except OSError:
        return False
    return True


def _has_ipc_lock() -> bool:
    # mm/mlock.c asks for the capability in the *initial* user namespace; one held in a container's
    # own user namespace doesn't lift the limit.
    try:
        mapping = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    except OSError:
        return False
    return mapping == _WHOLE_UID_MAP and bool(_read_capabilities("CapEff") >> _CAP_IPC_LOCK & 1)


def _read_capabilities(name: str) -> int:
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        key, _, value = line.partition(":")
        if key == name:
            return int(value, 16)
    return 0


def _prctl(option: int, value: int, purpose: str) -> int:
    ctypes.set_errno(0)
    result: int = _libc.prctl(option, value, 0, 0, 0)
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise StartupError(f"can't {purpose}: {reason}", exit_code=_EX_OSERR)
    return result
