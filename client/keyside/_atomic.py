"""A file that appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, TypeAlias

from keyside._temporary import create_temporary, open_folder

Bytes: TypeAlias = bytes | bytearray | memoryview

_NEW_SECRET_MODE: Final = 0o600
_NEW_MODE: Final = 0o666


class AtomicFile:
    """What will stand under a name once it is put in place: made beside it, durable, renamed.

    A device or a pipe of that name is written to directly. In a forked child nothing is done to
    the parent's file.

    Args:
        path: The name; a symbolic link is followed, and stays.
        secret: The file gets mode 0600 whatever it had before. Otherwise a new file follows the
            umask, and an existing one keeps its mode and, where allowed, its owner.
        exclusive: Nothing may stand there yet, nor when it is put in place.

    Raises:
        FileExistsError: With ``exclusive``: something does.
        OSError: It can't be made.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[str], *, secret: bool, exclusive: bool = False
    ) -> None:
        self.descriptor = -1
        self._target = os.path.realpath(os.fsdecode(path))
        self._temporary = ""
        self._folder = -1
        self._exclusive = exclusive
        self._process = os.getpid()
        try:
            existing = _look(self._target)
            if existing is not None and exclusive:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._target)
            if existing is not None and not stat.S_ISREG(existing.st_mode):
                flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
                self.descriptor = os.open(self._target, flags)
            else:
                self._create(existing, secret=secret)
        except OSError:
            self.discard()
            raise

    def write(self, data: Bytes) -> None:
        """Append all of ``data``.

        Raises:
            OSError: Writing failed, or this is a forked child.
        """
        self._require_own()
        write_all(self.descriptor, data)

    def put_in_place(self) -> None:
        """Make it durable and give it its name.

        Raises:
            OSError: That failed; what stood there is as it was, or the new file is there and may
                be gone after a crash. Or this is a forked child.
        """
        self._require_own()
        if self._temporary:
            os.fsync(self.descriptor)
            name = os.path.basename(self._target)  # noqa: PTH119
            here = self._folder
            if self._exclusive:
                os.link(self._temporary, name, src_dir_fd=here, dst_dir_fd=here)
                os.unlink(self._temporary, dir_fd=here)
            else:
                os.rename(self._temporary, name, src_dir_fd=here, dst_dir_fd=here)
            self._temporary = ""
            os.fsync(here)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind, unless it was put in place. May be repeated."""
        if self._temporary and os.getpid() == self._process:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
        self._temporary = ""
        for descriptor in (self.descriptor, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._folder = -1

    def _require_own(self) -> None:
        # A child shares the descriptor's position: what it wrote would stand in the parent's file.
        if os.getpid() != self._process:
            raise OSError(errno.EPERM, "a forked child can't write its parent's file", self._target)

    def _create(self, existing: os.stat_result | None, *, secret: bool) -> None:
        mode = _NEW_SECRET_MODE if secret or existing is not None else _NEW_MODE
        self._folder = open_folder(os.path.dirname(self._target))  # noqa: PTH120
        self.descriptor, self._temporary = create_temporary(self._folder, mode)
        if existing is not None and not secret:
            mode = stat.S_IMODE(existing.st_mode) & 0o777
            try:
                os.fchown(self.descriptor, existing.st_uid, existing.st_gid)
            except PermissionError:
                mode &= 0o707  # what its group might do, another group may not
            os.fchmod(self.descriptor, mode)


def write_all(descriptor: int, data: Bytes) -> None:
    """Write all of ``data``, however little the system takes at a time.

    Raises:
        OSError: Writing failed.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_full(descriptor: int, buffer: memoryview) -> int:
    """Fill a buffer as far as there is input; return how far.

    Raises:
        OSError: Reading failed.
    """
    filled = 0
    while filled < len(buffer) and (count := os.readv(descriptor, [buffer[filled:]])):
        filled += count
    return filled


def _look(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
