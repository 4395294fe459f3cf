"""The caller: who is at the other end of a connection, from its accept to the audit record.

What the kernel says is read once, when the connection is accepted (credential.py), and never
changes. What follows from it for the account (its name, its groups now) is filled in by whoever
identifies the caller (accounts/), into a new value each time that the answer changes. Whoever keeps
something about a caller keeps it under the value, which is only ever equal to itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import SidecarError
from keyside_sidecar.peer.executable import MAX_EXE_LENGTH
from keyside_sidecar.peer.login import UNSET
from keyside_sidecar.peer.pidfd import PidfdSource

_MAX_ID: Final = UNSET
_MAX_PID: Final = 2**31 - 1
# What the supervisor tells a worker.
_KERNEL_FIELDS: Final = frozenset(
    {
        *("pid", "uid", "gid", "process_gids", "login_uid", "session_id", "login_readable"),
        *("pidfd_source", "standing", "exe"),
    }
)


class CallerMalformed(SidecarError):
    """A caller's text is not what ``to_json`` writes."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Caller:
    """Who calls. Of its ids, those at connect; of its login, at accept.

    Args:
        pid: The process's number in our PID namespace; 0 where it has none.
        uid: The effective uid at connect.
        gid: The effective gid at connect.
        process_gids: The supplementary groups at connect; None where they weren't asked for, which
            is so when membership comes from the account.
        login_uid: The audit login uid; None where unset or unknown.
        session_id: The audit session id; None where unset or unknown.
        login_readable: Whether those two could be read.
        pidfd_source: How the process was found: by the kernel, or by its number on a kernel older
            than 6.5; None where it wasn't.
        exe: The program that the process runs, for the record; None where it can't be read.
        standing: Not None: it is refused everything but health and the public part of status, as
            the kernel's word is no good (I3), or its account has none.
        person: Not None: the process belongs to a person's login, or that can't be read (I4).
        borrowed: Not None: the process belongs to the login of another account than its own, or
            that can't be read: whoever is behind it, it is not known to be that account's person.
        account: The account's name; ``""`` where it is not known.
        gids: All the groups that count for it, the primary one too.
    """

    pid: int
    uid: int
    gid: int
    process_gids: tuple[int, ...] | None = field(default=None, repr=False)
    login_uid: int | None = None
    session_id: int | None = None
    login_readable: bool = False
    pidfd_source: PidfdSource | None = None
    exe: str | None = None
    standing: Reason | None = None
    person: Reason | None = None
    borrowed: Reason | None = None
    account: str = ""
    gids: frozenset[int] = field(default=frozenset(), repr=False)

    def describe(self) -> dict[str, object]:
        """Return what the audit log says of it."""
        found: dict[str, object] = {"pid": self.pid, "uid": self.uid, "gid": self.gid}
        if self.account:
            found["account"] = self.account
        if self.login_uid is not None:
            found["login_uid"] = self.login_uid
        if self.exe is not None:
            found["exe"] = self.exe
        return found

    def to_json(self) -> str:
        """Return what the kernel said as one compact JSON object (at most 100 KB)."""
        return json.dumps(
            {
                "pid": self.pid,
                "uid": self.uid,
                "gid": self.gid,
                "process_gids": self.process_gids,
                "login_uid": self.login_uid,
                "session_id": self.session_id,
                "login_readable": self.login_readable,
                "pidfd_source": self.pidfd_source,
                "standing": None if self.standing is None else self.standing.name,
                "exe": self.exe,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Caller:
        """Return the caller that ``to_json`` wrote.

        Raises:
            CallerMalformed: The text is anything else: a field missing, unknown, of another
                type or out of its range, or a refusal that this program doesn't know.
        """
        try:
            fields = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise CallerMalformed("a caller is one JSON object") from error
        if not isinstance(fields, dict) or set(fields) != _KERNEL_FIELDS:
            raise CallerMalformed("a caller has exactly the fields that to_json writes")
        gids = fields["process_gids"]
        if gids is not None and not isinstance(gids, list):
            raise CallerMalformed("process_gids: neither null nor a list")
        if not isinstance(fields["login_readable"], bool):
            raise CallerMalformed("login_readable: not a boolean")
        if fields["pidfd_source"] not in (None, *get_args(PidfdSource)):
            raise CallerMalformed("pidfd_source: unknown")
        standing = fields["standing"]
        if standing is not None and (
            not isinstance(standing, str) or standing not in Reason.__members__
        ):
            raise CallerMalformed("standing: unknown")
        exe = fields["exe"]
        if exe is not None and (not isinstance(exe, str) or not 0 < len(exe) <= MAX_EXE_LENGTH):
            raise CallerMalformed("exe: neither null nor a path")
        return cls(
            pid=_number(fields["pid"], "pid", _MAX_PID),
            uid=_number(fields["uid"], "uid"),
            gid=_number(fields["gid"], "gid"),
            process_gids=None
            if gids is None
            else tuple(_number(gid, "process_gids") for gid in gids),
            login_uid=_optional_number(fields["login_uid"], "login_uid"),
            session_id=_optional_number(fields["session_id"], "session_id"),
            login_readable=fields["login_readable"],
            pidfd_source=fields["pidfd_source"],
            standing=None if standing is None else Reason[standing],
            exe=exe,
        )


def _number(value: Any, name: str, limit: int = _MAX_ID) -> int:
    # bool is an int, and JSON's true is no number.
    if type(value) is not int or not 0 <= value <= limit:
        raise CallerMalformed(f"{name}: not a whole number from 0 to {limit}")
    return value


def _optional_number(value: Any, name: str) -> int | None:
    return None if value is None else _number(value, name)
