"""Whether an account is locked, as its entry in the shadow file says.

``pam_acct_mgmt`` accepts an account that ``usermod -L`` has locked: the lock only spoils the
password's hash, by a ``!`` in front (shadow(5)). So the hash is looked at here. One that is ``*``
is no lock: it says that the account has no password of the host's own, and it may have one in a
directory. (OpenSSH draws the same line.)

"There is no entry" and "it may not be read" are told apart with care: glibc forgets the one for the
other where nsswitch.conf names a second service for ``shadow``, as Debian's does with systemd.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from keyside_sidecar.peer.libc import Libc, with_growing_buffer

_SHADOW: Final = Path("/etc/shadow")
_PASSWD: Final = Path("/etc/passwd")
# What getspnam_r says where nothing was found, or may not be looked at.
_NOT_FOUND: Final = frozenset({0, errno.ENOENT, errno.EACCES, errno.EPERM})
_LOCK: Final = b"!"


class Spwd(ctypes.Structure):
    """``struct spwd``, as glibc and musl lay it out."""

    _fields_ = (
        ("sp_namp", ctypes.c_char_p),
        ("sp_pwdp", ctypes.c_char_p),
        ("sp_lstchg", ctypes.c_long),
        ("sp_min", ctypes.c_long),
        ("sp_max", ctypes.c_long),
        ("sp_warn", ctypes.c_long),
        ("sp_inact", ctypes.c_long),
        ("sp_expire", ctypes.c_long),
        ("sp_flag", ctypes.c_ulong),
    )


Libc.getspnam_r.restype = ctypes.c_int
Libc.getspnam_r.argtypes = (
    ctypes.c_char_p,
    ctypes.POINTER(Spwd),
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)


def is_locked(name: bytes, *, shadow: Path = _SHADOW, passwd: Path = _PASSWD) -> bool:
    """Return whether the account's password hash in the shadow database begins with ``!``.

    Args:
        name: The account.
        shadow: The file that must be readable where the account is one of the host's own.
        passwd: The file that names the host's own accounts.

    Returns:
        False also where the account has no entry: a directory's, for which account management
        speaks alone.

    Raises:
        PermissionError: It is one of the host's own accounts, and the file may not be read.
        OSError: The shadow database can't be asked.
    """
    locked, failure = _ask(name)
    if locked is not None:
        return locked
    if not _is_local(name, passwd) and failure in _NOT_FOUND:
        return False
    if failure not in _NOT_FOUND:
        raise OSError(failure, os.strerror(failure))
    try:
        with shadow.open("rb"):  # PermissionError where it may not be read
            return False
    except FileNotFoundError:
        return False


def can_read_shadow(shadow: Path = _SHADOW) -> bool:
    """Return whether this process may read the shadow file; True where the host has none."""
    try:
        with shadow.open("rb"):
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _ask(name: bytes) -> tuple[bool | None, int]:
    """Return whether the hash has the mark, or None where no entry was found; and the errno."""
    record = Spwd()
    found: list[bool] = []

    def attempt(buffer: ctypes.Array[ctypes.c_char]) -> int:
        result = ctypes.c_void_p()
        failure: int = Libc.getspnam_r(name, record, buffer, len(buffer), ctypes.byref(result))
        if failure == 0 and result:
            found.append((record.sp_pwdp or b"").startswith(_LOCK))
            ctypes.memset(buffer, 0, len(buffer))  # the hash is not kept
        return failure

    failure = with_growing_buffer(attempt)
    return (found[0] if found else None), failure


def _is_local(name: bytes, passwd: Path) -> bool:
    with passwd.open("rb") as lines:
        return any(line.startswith(name + b":") for line in lines)
