"""libc's name service calls, by ctypes, with every failure's errno.

Python's ``pwd`` and ``grp`` raise the same KeyError for "no such account" and for most outages, and
``os.getgrouplist`` can't fail at all. The ``_r`` calls return an errno. Every call has buffers of
its own, so that any number of threads may call at once; ctypes lets other threads run meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_BUFFER_BYTES: Final = 4096
_MAX_BUFFER_BYTES: Final = 16 * 1024 * 1024
"""A group of half a million members fits."""
_MAX_INTERRUPTS: Final = 100
_FIRST_GROUPS: Final = 128
_MAX_GROUPS: Final = 1 << 20


class Passwd(ctypes.Structure):
    """``struct passwd``, as glibc and musl lay it out."""

    _fields_ = (
        ("pw_name", ctypes.c_char_p),
        ("pw_passwd", ctypes.c_char_p),
        ("pw_uid", ctypes.c_uint32),
        ("pw_gid", ctypes.c_uint32),
        ("pw_gecos", ctypes.c_char_p),
        ("pw_dir", ctypes.c_char_p),
        ("pw_shell", ctypes.c_char_p),
    )


class Group(ctypes.Structure):
    """``struct group``, as glibc and musl lay it out."""

    _fields_ = (
        ("gr_name", ctypes.c_char_p),
        ("gr_passwd", ctypes.c_char_p),
        ("gr_gid", ctypes.c_uint32),
        ("gr_mem", ctypes.POINTER(ctypes.c_char_p)),
    )


class PasswdEntry(NamedTuple):
    """What is used of a ``struct passwd``."""

    name: bytes
    uid: int
    gid: int


Libc: Final = ctypes.CDLL(None, use_errno=True)
_BUFFER_ARGUMENTS: Final = (ctypes.c_void_p, ctypes.c_size_t)
for _name, _key, _record in (
    ("getpwuid_r", ctypes.c_uint32, Passwd),
    ("getpwnam_r", ctypes.c_char_p, Passwd),
    ("getgrgid_r", ctypes.c_uint32, Group),
    ("getgrnam_r", ctypes.c_char_p, Group),
):
    _call = getattr(Libc, _name)
    _call.restype = ctypes.c_int
    _call.argtypes = (
        _key,
        ctypes.POINTER(_record),
        *_BUFFER_ARGUMENTS,
        ctypes.POINTER(ctypes.c_void_p),
    )
Libc.getgrouplist.restype = ctypes.c_int
Libc.getgrouplist.argtypes = (
    ctypes.c_char_p,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int),
)


def with_growing_buffer(call: Callable[[ctypes.Array[ctypes.c_char]], int]) -> int:
    """Call with bigger and bigger buffers until the answer fits; again where interrupted.

    Args:
        call: Takes the buffer and returns an errno, ERANGE where the buffer is too small.

    Returns:
        The last errno; ERANGE where not even 16 MiB were enough.
    """
    size = _FIRST_BUFFER_BYTES
    interrupts = 0
    while True:
        failure = call(ctypes.create_string_buffer(size))
        if failure == errno.ERANGE and size < _MAX_BUFFER_BYTES:
            size *= 4
        elif failure == errno.EINTR and interrupts < _MAX_INTERRUPTS:
            interrupts += 1
        else:
            return failure


def find_passwd(key: int | bytes) -> PasswdEntry | None:
    """Return the account of a uid (``getpwuid_r``) or name (``getpwnam_r``); None: not found.

    Raises:
        OSError: Any errno but 0.
    """
    call = Libc.getpwnam_r if isinstance(key, bytes) else Libc.getpwuid_r
    record = Passwd()
    found: list[PasswdEntry] = []

    def attempt(buffer: ctypes.Array[ctypes.c_char]) -> int:
        result = ctypes.c_void_p()
        failure: int = call(key, record, buffer, len(buffer), ctypes.byref(result))
        if failure == 0 and result:
            # Copied here: the strings lie in the buffer.
            found.append(PasswdEntry(record.pw_name or b"", record.pw_uid, record.pw_gid))
        return failure

    _raise_for(with_growing_buffer(attempt))
    return found[0] if found else None


def find_gid(name: bytes) -> int | None:
    """Return the gid of a group's name (``getgrnam_r``); None: not found.

    Raises:
        OSError: Any errno but 0.
    """
    record = Group()
    found: list[int] = []

    def attempt(buffer: ctypes.Array[ctypes.c_char]) -> int:
        result = ctypes.c_void_p()
        failure: int = Libc.getgrnam_r(name, record, buffer, len(buffer), ctypes.byref(result))
        if failure == 0 and result:
            found.append(record.gr_gid)
        return failure

    _raise_for(with_growing_buffer(attempt))
    return found[0] if found else None


def list_gids(name: bytes, gid: int) -> frozenset[int]:
    """Return ``getgrouplist``: the primary gid, and whatever groups could be found out.

    *Not* guaranteed: that these are all. The call passes over a service that is away.

    Raises:
        OSError: Out of memory, or more than a million groups.
    """
    room = _FIRST_GROUPS
    while room <= _MAX_GROUPS:
        gids = (ctypes.c_uint32 * room)()
        count = ctypes.c_int(room)
        if Libc.getgrouplist(name, gid, gids, ctypes.byref(count)) >= 0:
            return frozenset(gids[: count.value])
        if count.value <= room:  # -1 although there was room: malloc failed
            break
        room = max(count.value, room * 2)
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _raise_for(failure: int) -> None:
    if failure != 0:
        raise OSError(failure, os.strerror(failure))
