"""Whether the socket can have been put there only by those whom the caller trusts.

Anybody may create a socket where he may write; a client that sends it a plaintext has given the
plaintext away. So before anything is sent, the path is walked from ``/`` as the kernel walks it,
and every directory and symbolic link on the way must belong to a trusted owner, and no directory
may be writable by others (group included) unless it is sticky and so keeps each owner's entries.

What this can't see: a trusted owner who changes the path between the check and the connection.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from dataclasses import dataclass
from typing import Final, NamedTuple

from keyside import address
from keyside.errors import NotPermitted, Unavailable, UntrustedSocket

SIDECAR_ACCOUNT: Final = "keyside"
OWNER_VARIABLE: Final = "KEYSIDE_EXPECTED_OWNER"
_UID: Final = re.compile(r"[0-9]{1,10}")
_MAX_LINKS: Final = 40  # as the kernel, path_resolution(7)
_START: Final = (
    "start the sidecar (systemctl start keyside, or keysided --config FILE serve), "
    "or name its socket with --socket or KEYSIDE_SOCKET"
)


class Identity(NamedTuple):
    """What tells one socket file from its successor."""

    device: int
    inode: int
    owner_uid: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class TrustedSocket:
    """A socket that passed: its path without symbolic links, and what it was then."""

    path: str
    identity: Identity


@dataclass(frozen=True, slots=True)
class ExpectedOwner:
    """Whose socket is acceptable.

    Args:
        account: A uid or an account's name; root's socket is acceptable beside it, because a
            supervisor started by root makes it. ``None`` takes ``KEYSIDE_EXPECTED_OWNER`` from the
            environment and, where that is not set, means root, this process's own effective uid
            and the account ``keyside`` where it exists.
    """

    account: int | str | None = None

    def uids(self) -> frozenset[int]:
        """Return the acceptable uids; may ask the name service.

        Raises:
            UntrustedSocket: The named account does not exist.
        """
        account = self.account
        if account is None:
            account = os.environ.get(OWNER_VARIABLE) or None
        if isinstance(account, str) and _UID.fullmatch(account):
            account = int(account)
        if isinstance(account, int):
            return frozenset({0, account})
        if account is None:
            named = _find_uid(SIDECAR_ACCOUNT)
            own = {0, os.geteuid()}
            return frozenset(own if named is None else own | {named})
        uid = _find_uid(account)
        if uid is None:
            raise UntrustedSocket(
                "the expected owner of the socket has no account on this host",
                remedy="give expected_owner as an existing account's name or as a number",
            )
        return frozenset({0, uid})


def check_socket(path: str, owner: ExpectedOwner) -> TrustedSocket:
    """Return the socket at ``path`` if nobody else can have put it there.

    Guarantees nothing about which process listens: the kernel does not tell a client that without
    connecting, and a trusted owner's directory admits only trusted owners.

    Args:
        path: Absolute.
        owner: Whose socket is acceptable.

    Raises:
        Unavailable: There is no such file (the sidecar may be starting); reason
            ``SOCKET_MISSING``.
        NotPermitted: This process may not look or connect there; reason
            ``SOCKET_PERMISSION_DENIED``.
        UntrustedSocket: It is no socket, or someone else owns it or could replace it.
        InvalidArgument: Without its symbolic links the path is too long for the kernel.
    """
    owners = owner.uids()
    keepers = owners | {0, os.geteuid()}
    try:
        resolved, facts = _walk(path, keepers)
        if not stat.S_ISSOCK(facts.st_mode):
            raise UntrustedSocket(f"{resolved} is not a socket", remedy="name the sidecar's socket")
        if facts.st_uid not in owners:
            raise UntrustedSocket(
                f"{resolved} belongs to uid {facts.st_uid}, not to {_list(owners)}",
                remedy="if that account runs the sidecar, name it with expected_owner or "
                f"{OWNER_VARIABLE}",
            )
        address.check_length(resolved)
        if not os.access(resolved, os.W_OK, effective_ids=True):
            # access says no as well where the file went, as when the sidecar restarts.
            if _identify(os.lstat(resolved)) != _identify(facts):
                raise FileNotFoundError  # noqa: TRY301
            raise _denied(resolved)
    except (FileNotFoundError, NotADirectoryError):
        raise Unavailable(
            f"there is no socket at {path}", reason="SOCKET_MISSING", remedy=_START
        ) from None
    except PermissionError:
        raise _denied(path) from None
    except OSError as error:
        raise Unavailable(
            f"the socket at {path} can't be looked at: {error.strerror}", reason="SOCKET_UNREADABLE"
        ) from None
    return TrustedSocket(resolved, _identify(facts))


def is_unchanged(socket: TrustedSocket) -> bool:
    """Return whether the same socket file is still there: one system call, for every call made."""
    try:
        return _identify(os.lstat(socket.path)) == socket.identity
    except OSError:
        return False


def _walk(path: str, keepers: frozenset[int]) -> tuple[str, os.stat_result]:
    """Resolve ``path`` as path_resolution(7) does, judging each directory and link on the way."""
    todo = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    place = "/"
    facts = os.lstat(place)
    links = 0
    while todo:
        _check_directory(place, facts, keepers)
        part = todo.pop()
        if part == "..":
            place = os.path.dirname(place)  # noqa: PTH120  (place has no links and no dots)
            facts = os.lstat(place)
            continue
        entry = f"{place.rstrip('/')}/{part}"
        entry_facts = os.lstat(entry)
        if stat.S_ISLNK(entry_facts.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise UntrustedSocket(
                    f"{path} leads through too many symbolic links",
                    remedy="name the socket without them",
                )
            if entry_facts.st_uid not in keepers:
                raise _foreign("the symbolic link", entry, entry_facts.st_uid, keepers)
            target = os.readlink(entry)  # noqa: PTH115  (text, as the kernel reads it)
            if target.startswith("/"):
                place, facts = "/", os.lstat("/")
            todo.extend(p for p in reversed(target.split("/")) if p not in {"", "."})
            continue
        place, facts = entry, entry_facts
    return place, facts


def _check_directory(place: str, facts: os.stat_result, keepers: frozenset[int]) -> None:
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError
    if facts.st_uid not in keepers:
        raise _foreign("the directory", place, facts.st_uid, keepers)
    others_write = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if others_write and not facts.st_mode & stat.S_ISVTX:
        raise UntrustedSocket(
            f"the directory {place} is writable by others (mode {stat.S_IMODE(facts.st_mode):04o}),"
            " who could put their own socket there",
            remedy=f"chmod go-w {place}, or move the socket to a directory such as /run/keyside",
        )


def _foreign(what: str, place: str, uid: int, keepers: frozenset[int]) -> UntrustedSocket:
    return UntrustedSocket(
        f"{what} {place} on the way to the socket belongs to uid {uid}, not to {_list(keepers)}",
        remedy="put the socket under directories of root or of the sidecar's account, "
        "or name its account with expected_owner",
    )


def _denied(path: str) -> NotPermitted:
    error = NotPermitted(
        f"this process may not connect to {path}: permission denied by the file system",
        reason="SOCKET_PERMISSION_DENIED",
        remedy="the sidecar makes its socket 0666 in a 0755 directory; compare with ls -l",
    )
    error.code = None
    return error


def _identify(facts: os.stat_result) -> Identity:
    return Identity(facts.st_dev, facts.st_ino, facts.st_uid, facts.st_ctime_ns)


def _find_uid(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except (KeyError, ValueError):  # ValueError: a name that no account can have
        return None


def _list(uids: frozenset[int]) -> str:
    return "uid " + " or ".join(str(uid) for uid in sorted(uids))
