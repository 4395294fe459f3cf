"""Temporary files beside the files that they will replace, and what killed runs left of them.

    made, locked → renamed over its target, or removed
                 → left behind by a kill: nobody holds the lock, so the next run removes it

The name alone tells such a file from data; the lock (flock, which ends with its process, however
that ends) tells one that is being written from one that is left over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME: Final = re.compile(r"\.keyside-[0-9a-f]{32}\.tmp", re.ASCII)
_TRIES: Final = 8


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one of ours, and so no data."""
    return _NAME.fullmatch(name) is not None


def open_folder(path: str, *, within: int | None = None) -> int:
    """Return a descriptor of a directory, to look names up in.

    Raises:
        OSError: It can't be opened, or is no directory, or a symbolic link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, dir_fd=within)


def create_temporary(folder: int, mode: int) -> tuple[int, str]:
    """Return a new file's descriptor, locked, and its name.

    Args:
        folder: The directory's descriptor.
        mode: The file's mode, less the umask.

    Raises:
        OSError: It can't be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_TRIES):
        name = f".keyside-{secrets.token_hex(16)}.tmp"
        descriptor = os.open(name, flags, mode, dir_fd=folder)
        try:
            # Before it was locked, another run may have taken it for a leftover.
            if _lock(descriptor) and os.fstat(descriptor).st_nlink > 0:
                return descriptor, name
        except OSError:  # no locks here: then nobody can lock it to remove it, either
            return descriptor, name
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "other runs keep removing the temporary file")


def remove_leftovers(folder: int, names: Iterable[str]) -> None:
    """Remove what killed runs left in a directory; what can't be removed, or locked, stays.

    Args:
        folder: The directory's descriptor.
        names: The names in it; all but temporary files' are passed over.
    """
    for name in names:
        if is_temporary(name):
            with contextlib.suppress(OSError):
                _remove_leftover(folder, name)


def _remove_leftover(folder: int, name: str) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        # A locked one may be renamed over its target at any moment; a name is never used again.
        if ours and os.geteuid() in (0, status.st_uid) and _lock(descriptor):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Return whether the lock is ours now; False where somebody else has it.

    Raises:
        OSError: There are no locks here.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
