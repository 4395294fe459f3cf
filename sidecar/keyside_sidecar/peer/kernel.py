"""What the kernel recorded of a Unix socket's peer when it connected: pid, uid, gid, groups."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from keyside_sidecar.peer import pidfd

SO_PEERGROUPS: Final = 59

_UCRED: Final = struct.Struct("iII")
_GID_BYTES: Final = 4
_FIRST_GROUPS: Final = 64
_MAX_GROUPS: Final = 65536
"""The kernel's own NGROUPS_MAX (setgroups(2)); a length beyond it is not believed."""
_DEFAULT_OVERFLOW_ID: Final = 65534

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.getsockopt.restype = ctypes.c_int
_libc.getsockopt.argtypes = (
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint32),
)


class Ucred(NamedTuple):
    """``struct ucred``: the peer when it connected."""

    pid: int
    uid: int
    gid: int


class Kernel:
    """The system calls about a peer, in one place so that a test can be an older kernel.

    Args:
        proc: Where proc is mounted.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.proc = proc

    def read_ucred(self, connection: socket.socket) -> Ucred:
        """Return ``SO_PEERCRED``. Raises OSError."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return Ucred(*_UCRED.unpack(raw))

    def read_groups(self, connection: socket.socket) -> tuple[int, ...]:
        """Return ``SO_PEERGROUPS``, all of them. Raises OSError.

        Through libc: Python's ``getsockopt`` stops at 1,024 bytes, which are 256 groups. Where the
        buffer is too small the kernel says ERANGE and writes the length it needs.
        """
        needed = _FIRST_GROUPS
        while needed <= _MAX_GROUPS:
            buffer = (ctypes.c_uint32 * needed)()
            length = ctypes.c_uint32(ctypes.sizeof(buffer))
            if (
                _libc.getsockopt(
                    connection.fileno(),
                    socket.SOL_SOCKET,
                    SO_PEERGROUPS,
                    buffer,
                    ctypes.byref(length),
                )
                == 0
            ):
                return tuple(buffer[: length.value // _GID_BYTES])
            failure = ctypes.get_errno()
            if failure != errno.ERANGE:
                raise OSError(failure, os.strerror(failure))
            needed = max(length.value // _GID_BYTES, needed * 2)
        raise OSError(errno.ERANGE, "more groups than a process can have")

    def read_pidfd(self, connection: socket.socket) -> int:
        """Return ``SO_PEERPIDFD``. Raises as :func:`pidfd.ask_kernel`."""
        return pidfd.ask_kernel(connection)

    def find_pidfd(self, ucred: Ucred, accepted_s: float) -> int:
        """Find the peer by its number. Raises as :func:`pidfd.find_by_number`."""
        return pidfd.find_by_number(ucred.pid, ucred.uid, accepted_s=accepted_s, proc=self.proc)

    def overflow_uids(self) -> frozenset[int]:
        """Return the uids that stand for "no uid here": the kernel's setting, and 65534 always."""
        return self._overflow_ids("overflowuid")

    def overflow_gids(self) -> frozenset[int]:
        """Return the gids that stand for "no gid here": the kernel's setting, and 65534 always."""
        return self._overflow_ids("overflowgid")

    def _overflow_ids(self, name: str) -> frozenset[int]:
        try:
            configured = int((self.proc / "sys/kernel" / name).read_text("ascii"))
        except (OSError, ValueError):
            configured = _DEFAULT_OVERFLOW_ID
        return frozenset({configured, _DEFAULT_OVERFLOW_ID})
