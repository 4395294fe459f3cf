"""A file of which nothing shows before it is whole: the one way in which files are written here.

    NAMELESS, locked ─────────► under a temporary name ──► in its PLACE, durable
        └──────────── in its PLACE, where nothing may stand there ──┘
    any of them ──► DISCARDED: nothing is left

It is made without a name (O_TMPFILE): whatever ends the process, nothing is left of it. A name of
its own it has only for the instant between link(2) and rename(2), which no call does in one step.
Where the file system has no such files, it has that temporary name from the beginning; a killed
run leaves it, and the next one sweeps it away (``_temporary``).

Everything happens within one open directory, so that somebody who moves things about can't send
it elsewhere; and it is looked at afterwards whether what stands in the place is this file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final, Self

from keyside._exchange import exchange_names, rename_without_replacing
from keyside._temporary import draw_name, kept_unswept, lock

if TYPE_CHECKING:
    from collections.abc import Callable

_TRIES: Final = 8
# What kernels and file systems say that have no nameless files.
_NO_NAMELESS: Final = (
    errno.EOPNOTSUPP,
    errno.EISDIR,
    errno.ENOENT,
    errno.EINVAL,
    errno.ENOSYS,
)
_NO_SUCH_RENAME: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class NotDurableError(OSError):
    """It stands in its place, and may be gone after a crash."""


class ExchangedError(OSError):
    """Somebody exchanged files meanwhile; what stands in the place is not what was written."""


class NewFile:
    """A file that is being written, open for reading and writing.

    Use it as a context manager: what was not put in its place by its end is discarded. A forked
    child may discard it, and does nothing to the parent's file.

    Args:
        folder: The descriptor of the directory in which it will stand, open as long as this is.
        mode: Its mode, less the umask.
        named: Give it its temporary name at once, for a program that opens files by name.

    Raises:
        OSError: It can't be made.
    """

    def __init__(self, folder: int, mode: int = 0o600, *, named: bool = False) -> None:
        self._folder = folder
        self._process = os.getpid()
        self.name = ""
        """Its temporary name, as long as it has one."""
        self.descriptor = -1 if named else _make_nameless(folder, mode)
        """The file, open; -1 once it is closed."""
        if self.descriptor < 0:
            self.descriptor, self.name = _make_named(folder, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def add(self, name: str) -> None:
        """Put it in a place where nothing stands, durably.

        Raises:
            FileExistsError: Something does.
            NotDurableError: It is there, and might not be after a crash.
            OSError: It can't be done; nothing is there.
        """
        os.fsync(self.descriptor)
        if self.name:
            _move_to_free_name(self._folder, self.name, name)
            self.name = ""
        else:
            self._link(name)
        self._finish(name)

    def replace(self, name: str) -> None:
        """Put it in a place, whatever stands there, durably.

        Raises:
            ExchangedError: Something else was put there in its stead.
            NotDurableError: It is there, and might not be after a crash.
            OSError: It can't be done; what stands there is as it was.
        """
        os.fsync(self.descriptor)
        self._take_name()
        self._require_at(self.name)
        os.rename(self.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        # One that has no name any more was replaced by a later one, which is nobody's fault.
        self._finish(name, may_be_gone=True)

    def replace_only(self, name: str, is_original: Callable[[os.stat_result], bool]) -> None:
        """Put it in the place of one certain file, durably; whatever else is found there stays.

        Where names can be exchanged in one step, what was displaced is looked at before it is
        removed. Elsewhere the last look is just before the rename.

        Args:
            name: The place.
            is_original: Whether a file is the one that may go.

        Raises:
            ExchangedError: Something else stands there.
            NotDurableError: It is there, and might not be after a crash.
            OSError: It can't be done; what stands there is as it was.
        """
        os.fsync(self.descriptor)
        self._take_name()
        with kept_unswept(self._folder) as unswept:
            if unswept and self._exchange(name, is_original):
                return
        if not is_original(self._look(name)):
            raise _exchanged(name)
        self._require_at(self.name)
        os.rename(self.name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._finish(name)

    def discard(self) -> None:
        """Leave nothing behind, unless it was put in its place. May be repeated."""
        if self.name and os.getpid() == self._process:
            with contextlib.suppress(OSError):
                self._require_at(self.name)
                os.unlink(self.name, dir_fd=self._folder)
        self.name = ""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _exchange(self, name: str, is_original: Callable[[os.stat_result], bool]) -> bool:
        """Return whether names can be exchanged here, and so everything is done."""
        try:
            exchange_names(self._folder, self.name, name)
        except OSError as error:
            if error.errno in _NO_SUCH_RENAME:
                return False
            raise
        try:
            fits = self._is_at(name) and is_original(self._look(self.name))
        except OSError:
            fits = False
        if not fits:
            with contextlib.suppress(OSError):
                exchange_names(self._folder, self.name, name)
            raise _exchanged(name)
        os.unlink(self.name, dir_fd=self._folder)
        self._finish(name)
        return True

    def _take_name(self) -> None:
        if not self.name:
            name = draw_name()
            self._link(name)
            self.name = name

    def _link(self, name: str) -> None:
        # Followed, because what it names in /proc is a link to the file without a name: open(2).
        place = f"/proc/self/fd/{self.descriptor}"
        os.link(place, name, dst_dir_fd=self._folder, follow_symlinks=True)

    def _finish(self, name: str, *, may_be_gone: bool = False) -> None:
        self.name = ""
        gone = may_be_gone and os.fstat(self.descriptor).st_nlink == 0
        if not gone:
            self._require_at(name)
        try:
            os.fsync(self._folder)
        except OSError as error:
            raise NotDurableError(error.errno, error.strerror, name) from None

    def _require_at(self, name: str) -> None:
        if not self._is_at(name):
            raise _exchanged(name)

    def _is_at(self, name: str) -> bool:
        try:
            return os.path.samestat(self._look(name), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    def _look(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._folder, follow_symlinks=False)


def _make_nameless(folder: int, mode: int) -> int:
    """Return a new file without a name, locked; -1 where there are none."""
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        # Of a directory that was removed, file systems say various things.
        if error.errno in _NO_NAMELESS or not os.fstat(folder).st_nlink:
            return -1
        raise
    try:
        # Without /proc it could never be given a name.
        found = os.stat(f"/proc/self/fd/{descriptor}")  # noqa: PTH116
        if os.path.samestat(found, os.fstat(descriptor)):
            with contextlib.suppress(OSError):
                lock(descriptor)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return -1


def _make_named(folder: int, mode: int) -> tuple[int, str]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(_TRIES):
        name = draw_name()
        descriptor = os.open(name, flags, mode, dir_fd=folder)
        try:
            # Before it was locked, another run may have taken it for a leftover.
            if lock(descriptor) and os.fstat(descriptor).st_nlink > 0:
                return descriptor, name
        except OSError:  # no locks here: then nobody can lock it to remove it, either
            return descriptor, name
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "other runs keep removing the temporary file")


def _move_to_free_name(folder: int, old: str, new: str) -> None:
    try:
        rename_without_replacing(folder, old, new)
    except OSError as error:
        if error.errno not in _NO_SUCH_RENAME:
            raise
    else:
        return
    os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    os.unlink(old, dir_fd=folder)


def _exchanged(name: str) -> ExchangedError:
    return ExchangedError(errno.ESTALE, "somebody exchanged files meanwhile", name)
