"""Who is at the other end of a connection, as the kernel says (I2, I3, I4).

The order of asking is the order of the reasons::

    a Unix socket? ─► SO_PEERCRED ─► pid 0? ─► overflow uid? ─► [process mode: SO_PEERGROUPS,
      overflow gid?] ─► pidfd ─► loginuid, sessionid, exe ─► has the pidfd's process ended?

The last question comes after everything that was looked up by the process's number: if the process
is alive then, the number was its own while it was used. Whatever fails, the answer is a credential
that carries a refusal; nothing is guessed, and only ENOPROTOOPT means "old kernel".
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import SidecarError
from keyside_sidecar.log import event
from keyside_sidecar.peer.executable import MAX_EXE_LENGTH, read_exe
from keyside_sidecar.peer.kernel import Kernel, Ucred
from keyside_sidecar.peer.login import UNREADABLE, UNSET, Login, read_login
from keyside_sidecar.peer.pidfd import PidfdSource, ProcessEnded, boot_time_s, has_ended

_log = logging.getLogger(__name__)

MAX_GROUPS: Final = 8192
"""More groups than this are refused: the credential must fit into one packet to a worker."""

_NO_ID: Final = UNSET
_MAX_PID: Final = 2**31 - 1
_KERNEL: Final = Kernel()


class CredentialMalformed(SidecarError):
    """A credential's text is not what ``to_json`` writes."""


@dataclass(frozen=True, slots=True)
class PeerCredential:
    """What the kernel says of a peer. Of its ids, those at connect; of its login, at accept.

    Args:
        pid: The process's number in our PID namespace; 0 where it has none.
        uid: The effective uid at connect.
        gid: The effective gid at connect.
        groups: The supplementary groups at connect; None where they weren't asked for, which is so
            when membership comes from the account.
        login_uid: The audit login uid; None where unset or unknown.
        session_id: The audit session id; None where unset or unknown.
        login_readable: Whether those two could be read.
        pidfd_source: How the process was found: by the kernel, or by its number on a kernel older
            than 6.5; None where it wasn't.
        refusal: Not None: the credential itself is no good (I3).
        exe: The program that the process runs, for the record; None where it can't be read.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] | None = field(default=None, repr=False)
    login_uid: int | None = None
    session_id: int | None = None
    login_readable: bool = False
    pidfd_source: PidfdSource | None = None
    refusal: Reason | None = None
    exe: str | None = None

    def to_json(self) -> str:
        """Return the credential as one compact JSON object (at most 100 KB)."""
        return json.dumps(
            {
                "pid": self.pid,
                "uid": self.uid,
                "gid": self.gid,
                "groups": self.groups,
                "login_uid": self.login_uid,
                "session_id": self.session_id,
                "login_readable": self.login_readable,
                "pidfd_source": self.pidfd_source,
                "refusal": None if self.refusal is None else self.refusal.name,
                "exe": self.exe,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> PeerCredential:
        """Return the credential that ``to_json`` wrote.

        Raises:
            CredentialMalformed: The text is anything else: a field missing, unknown, of another
                type or out of its range, or a refusal that this program doesn't know.
        """
        try:
            fields = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise CredentialMalformed("a credential is one JSON object") from error
        if not isinstance(fields, dict) or set(fields) != set(cls.__slots__):
            raise CredentialMalformed("a credential has exactly the fields that to_json writes")
        groups = fields["groups"]
        if groups is not None and not isinstance(groups, list):
            raise CredentialMalformed("groups: neither null nor a list")
        if not isinstance(fields["login_readable"], bool):
            raise CredentialMalformed("login_readable: not a boolean")
        if fields["pidfd_source"] not in (None, *get_args(PidfdSource)):
            raise CredentialMalformed("pidfd_source: unknown")
        refusal = fields["refusal"]
        if refusal is not None and (
            not isinstance(refusal, str) or refusal not in Reason.__members__
        ):
            raise CredentialMalformed("refusal: unknown")
        exe = fields["exe"]
        if exe is not None and (not isinstance(exe, str) or not 0 < len(exe) <= MAX_EXE_LENGTH):
            raise CredentialMalformed("exe: neither null nor a path")
        return cls(
            pid=_number(fields["pid"], "pid", _MAX_PID),
            uid=_number(fields["uid"], "uid"),
            gid=_number(fields["gid"], "gid"),
            groups=None if groups is None else tuple(_number(gid, "groups") for gid in groups),
            login_uid=_optional_number(fields["login_uid"], "login_uid"),
            session_id=_optional_number(fields["session_id"], "session_id"),
            login_readable=fields["login_readable"],
            pidfd_source=fields["pidfd_source"],
            refusal=None if refusal is None else Reason[refusal],
            exe=exe,
        )


def read_credential(
    connection: socket.socket,
    *,
    process_mode: bool = False,
    accepted_s: float | None = None,
    kernel: Kernel = _KERNEL,
) -> tuple[PeerCredential, int | None]:
    """Ask the kernel who is at the other end of an accepted connection.

    Args:
        connection: The connection; it stays the caller's.
        process_mode: Membership comes from the process: read its groups too, and refuse the
            overflow gid among them.
        accepted_s: CLOCK_BOOTTIME right after ``accept`` returned; by default now. Only a kernel
            without ``SO_PEERPIDFD`` needs it.
        kernel: The system calls.

    Returns:
        The credential, and the pidfd of the calling process, which the caller must close; None
        where the credential carries a refusal. Never raises for a bad peer.
    """
    if accepted_s is None:
        accepted_s = boot_time_s()
    if connection.family != socket.AF_UNIX:
        return PeerCredential(0, _NO_ID, _NO_ID, refusal=Reason.PEER_NOT_UNIX), None
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
) -> PeerCredential:
    return PeerCredential(
        *ucred,
        groups,
        login.login_uid,
        login.session_id,
        login.readable,
        source,
        exe=exe,
    )


def _refuse(ucred: Ucred, refusal: Reason, groups: tuple[int, ...] | None = None) -> PeerCredential:
    return PeerCredential(*ucred, groups, login_readable=UNREADABLE.readable, refusal=refusal)


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


def _number(value: Any, name: str, limit: int = _NO_ID) -> int:
    # bool is an int, and JSON's true is no number.
    if type(value) is not int or not 0 <= value <= limit:
        raise CredentialMalformed(f"{name}: not a whole number from 0 to {limit}")
    return value


def _optional_number(value: Any, name: str) -> int | None:
    return None if value is None else _number(value, name)
