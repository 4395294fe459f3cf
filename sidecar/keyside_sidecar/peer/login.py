"""Whether a process belongs to a person's login (I4): its audit login uid and session id.

The kernel writes both once, when someone logs in, and hands them down to every child; ``su`` and
``sudo`` change neither. A service that the service manager started has neither. They only ever
refuse.

Both are read because either can mislead alone. A login uid that has no number in our user namespace
reads exactly like one that is unset (the kernel's ``from_kuid`` gives -1 for both); the session id
is no uid, is not translated, and gives it away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.reasons import Reason

if TYPE_CHECKING:
    from keyside_sidecar.config.settings import PersonLogins

UNSET: Final = 2**32 - 1
"""What the kernel writes for "unset": (uid_t)-1, printed unsigned."""

# The kernel prints "%u" and no newline. Anything else is not what this was written for, and that
# includes "-1": a kernel or a sandbox that writes it has not said what it means by it.
_NUMBER: Final = re.compile(rb"(0|[1-9][0-9]{0,9})\n?")


@dataclass(frozen=True, slots=True)
class Login:
    """What the kernel says of a process's login.

    Args:
        login_uid: The uid that logged in; None where unset.
        session_id: The audit session; None where unset.
        readable: Both were read. Where False, both are None and nothing is known.
    """

    login_uid: int | None
    session_id: int | None
    readable: bool


UNREADABLE: Final = Login(login_uid=None, session_id=None, readable=False)


def read_login(pid: int, proc: Path = Path("/proc")) -> Login:
    """Read a process's login uid and session id.

    That the number ``pid`` still names the process is the caller's to check, *afterwards*. Never
    raises: a kernel without audit, a hidden process, one that has ended and text that is no number
    are all :data:`UNREADABLE`.
    """
    try:
        login_uid = _parse((proc / str(pid) / "loginuid").read_bytes())
        session_id = _parse((proc / str(pid) / "sessionid").read_bytes())
    except (OSError, ValueError):
        return UNREADABLE
    return Login(
        None if login_uid == UNSET else login_uid,
        None if session_id == UNSET else session_id,
        readable=True,
    )


def person_refusal(
    login_uid: int | None,
    session_id: int | None,
    *,
    readable: bool,
    account_uid: int,
    mode: PersonLogins,
) -> Reason | None:
    """Return why a process is refused as belonging to a person's login, or None (I4). Pure.

    Args:
        login_uid: The audit login uid; None where unset.
        session_id: The audit session id; None where unset.
        readable: Whether both could be read.
        account_uid: The uid that the process calls as.
        mode: ``"refuse"``: either one set refuses. ``"allow-own"``: a login uid equal to
            ``account_uid`` is accepted, with its session (cron sets both); a session without a
            login uid is not. ``"off"``: nothing is refused.
    """
    if mode == "off":
        return None
    if not readable:
        return Reason.PEER_LOGIN_UNREADABLE
    if login_uid is None and session_id is None:
        return None
    if mode == "allow-own" and login_uid == account_uid:
        return None
    return Reason.PEER_PERSON_LOGIN


def borrowed_refusal(
    login_uid: int | None,
    session_id: int | None,
    *,
    readable: bool,
    account_uid: int,
    mode: PersonLogins,
) -> Reason | None:
    """Return why a process can't act for the person whose account it runs under, or None. Pure.

    Who asks for access, approves it or uses it must be the person that logged in: no login uid at
    all, or the account's own. Another one means ``su`` or ``sudo``, in every mode.

    Args:
        login_uid: The audit login uid; None where unset.
        session_id: The audit session id; None where unset.
        readable: Whether both could be read.
        account_uid: The uid that the process calls as.
        mode: With ``"off"``, a login that can't be read is taken for none.
    """
    if not readable:
        return None if mode == "off" else Reason.PEER_LOGIN_UNREADABLE
    if login_uid == account_uid or (login_uid is None and session_id is None):
        return None
    return Reason.LOGIN_OF_ANOTHER


def _parse(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number as the kernel writes it")
    number = int(text)
    if number > UNSET:
        raise ValueError("more than 32 bits")
    return number
