"""Who is at the other end of a connection, as the kernel says (I2, I3, I4).

The order of asking is the order of the reasons::

    a Unix socket? ─► SO_PEERCRED ─► pid 0? ─► overflow uid? ─► [process mode: SO_PEERGROUPS,
      overflow gid?] ─► pidfd ─► loginuid, sessionid, exe ─► has the pidfd's process ended?

The last question comes after everything that was looked up by the process's number: if the process
is alive then, the number was its own while it was used. Whatever fails, the answer is a caller
without standing; nothing is guessed, and only ENOPROTOOPT means "old kernel".
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.log import event
from keyside_sidecar.peer.caller import Caller
from keyside_sidecar.peer.executable import read_exe
from keyside_sidecar.peer.kernel import Kernel, Ucred
from keyside_sidecar.peer.login import UNREADABLE, UNSET, Login, read_login
from keyside_sidecar.peer.pidfd import PidfdSource, ProcessEnded, boot_time_s, has_ended

_log = logging.getLogger(__name__)

MAX_GROUPS: Final = 8192
"""More groups than this are refused: the credential must fit into one packet to a worker."""

_NO_ID: Final = UNSET
_KERNEL: Final = Kernel()


def read_credential(
    connection: socket.socket,
    *,
    process_mode: bool = False,
    accepted_s: float | None = None,
    kernel: Kernel = _KERNEL,
) -> tuple[Caller, int | None]:
    """Ask the kernel who is at the other end of an accepted connection.

    Args:
        connection: The connection; it stays the caller's.
        process_mode: Membership comes from the process: read its groups too, and refuse the
            overflow gid among them.
        accepted_s: CLOCK_BOOTTIME right after ``accept`` returned; by default now. Only a kernel
            without ``SO_PEERPIDFD`` needs it.
        kernel: The system calls.

    Returns:
        The caller, and the pidfd of its process, which must be closed; None where the kernel's word
        is no good. Never raises for a bad peer.
    """
    if accepted_s is None:
        accepted_s = boot_time_s()
    if connection.family != socket.AF_UNIX:
        return Caller(0, _NO_ID, _NO_ID, standing=Reason.PEER_NOT_UNIX), None
    try:
        ucred = kernel.read_ucred(connection)
    except OSError as error:
        _log_failure("SO_PEERCRED", error)
        return _refuse(Ucred(0, _NO_ID, _NO_ID), Reason.PEER_CREDENTIAL_UNREADABLE), None
    groups: tuple[int, ...] | None = None
    refusal = _refuse_ids(ucred, kernel)
    if refusal is None and process_mode:
        groups, refusal = _read_groups(connection, ucred, kernel)
    if refusal is not None:
        return _refuse(ucred, refusal), None
    found = _find_process(connection, ucred, accepted_s, kernel)
    if isinstance(found, Reason):
        return _refuse(ucred, found, groups), None
    pidfd, source = found
    login = read_login(ucred.pid, kernel.proc)
    exe = read_exe(ucred.pid, kernel.proc)
    if has_ended(pidfd):
        os.close(pidfd)
        return _refuse(ucred, Reason.PEER_ENDED, groups), None
    return _accept(ucred, groups, login, source, exe), pidfd


def _accept(
    ucred: Ucred,
    groups: tuple[int, ...] | None,
    login: Login,
    source: PidfdSource,
    exe: str | None,
) -> Caller:
    return Caller(
        *ucred,
        groups,
        login.login_uid,
        login.session_id,
        login.readable,
        source,
        exe=exe,
    )


def _refuse(ucred: Ucred, refusal: Reason, groups: tuple[int, ...] | None = None) -> Caller:
    return Caller(*ucred, groups, login_readable=UNREADABLE.readable, standing=refusal)


def _refuse_ids(ucred: Ucred, kernel: Kernel) -> Reason | None:
    if _NO_ID in (ucred.uid, ucred.gid) or ucred.pid < 0:
        # What a socket without a recorded peer says: pid 0, uid -1, gid -1.
        return Reason.PEER_CREDENTIAL_UNREADABLE
    if ucred.pid == 0:
        return Reason.PEER_PID_ZERO
    if ucred.uid in kernel.overflow_uids():
        # Also where the host has an account of that number ("nobody"): every uid that our user
        # namespace doesn't map looks like it.
        return Reason.PEER_OVERFLOW_UID
    return None


def _read_groups(
    connection: socket.socket, ucred: Ucred, kernel: Kernel
) -> tuple[tuple[int, ...] | None, Reason | None]:
    try:
        groups = kernel.read_groups(connection)
    except OSError as error:
        _log_failure("SO_PEERGROUPS", error)
        return None, Reason.PEER_CREDENTIAL_UNREADABLE
    if not kernel.overflow_gids().isdisjoint((ucred.gid, *groups)):
        return None, Reason.PEER_OVERFLOW_GID
    if len(groups) > MAX_GROUPS:
        event(
            _log,
            logging.WARNING,
            "caller has too many groups",
            groups=len(groups),
            limit=MAX_GROUPS,
        )
        return None, Reason.PEER_CREDENTIAL_UNREADABLE
    return groups, None


def _find_process(
    connection: socket.socket, ucred: Ucred, accepted_s: float, kernel: Kernel
) -> tuple[int, PidfdSource] | Reason:
    try:
        try:
            return kernel.read_pidfd(connection), "kernel"
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                _log_failure("SO_PEERPIDFD", error)
                return Reason.PEER_CREDENTIAL_UNREADABLE
        return kernel.find_pidfd(ucred, accepted_s), "pidfd_open"
    except ProcessEnded:
        return Reason.PEER_ENDED
    except (OSError, ValueError) as error:
        _log_failure("pidfd_open", error)
        return Reason.PEER_CREDENTIAL_UNREADABLE


def _log_failure(call: str, error: Exception) -> None:
    event(_log, logging.WARNING, "the kernel did not say who is calling", call=call, why=error)
