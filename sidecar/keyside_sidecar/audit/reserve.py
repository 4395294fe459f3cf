"""Room that is kept for when the disk is full, so that the refusals can still be recorded."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from keyside_sidecar.audit.places import fsync_directory

if TYPE_CHECKING:
    from pathlib import Path

RESERVE_BYTES: Final = 1 << 20
_MODE: Final = 0o600


class Reserve:
    """A file of 1 MiB that is given up when the disk is full.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_there = False

    def make(self) -> bool:
        """Take the room, if there is twice as much; return whether it is taken.

        (Otherwise a disk that is nearly full would be found full and not full in turn.)
        """
        if self.is_there:
            return True
        try:
            if self._is_whole():
                self.is_there = True
                return True
            free = os.statvfs(self._path.parent)
            if free.f_bavail * free.f_frsize < 2 * RESERVE_BYTES:
                return False
            descriptor = os.open(
                self._path,
                os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                _MODE,
            )
            try:
                _require_own(os.fstat(descriptor))
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            self.release()
            return False
        self.is_there = True
        return True

    def release(self) -> bool:
        """Give the room up; return whether there was any."""
        was_there, self.is_there = self.is_there, False
        with contextlib.suppress(OSError):
            self._path.unlink()
            fsync_directory(self._path.parent)
        return was_there

    def _is_whole(self) -> bool:
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return False
        _require_own(status)
        return status.st_size == RESERVE_BYTES and status.st_blocks * 512 >= RESERVE_BYTES


def _require_own(status: os.stat_result) -> None:
    """Check that a file is a regular one of this one name; anything else is only unlinked."""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise OSError(errno.EEXIST, "something else is in the reserve's place")
