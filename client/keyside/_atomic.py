"""A file that appears whole under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from typing import Final, TypeAlias

from keyside._descriptor_paths import duplicate, find_descriptor
from keyside._file_traits import FileTraits, give_traits, read_traits
from keyside._new_file import NewFile
from keyside._temporary import open_folder, sweep_folder

Bytes: TypeAlias = bytes | bytearray | memoryview

_SECRET_MODE: Final = 0o600
_NEW_MODE: Final = 0o666
_ANY_MODE: Final = 0o7777


class AtomicFile:
    """What will stand under a name once it is put in place: nameless until then, and durable.

    Only a plain file is replaced. A device or a pipe is written to as it is; and a path that names
    a descriptor of this process (``/dev/stdout``, ``/dev/fd/3``) goes to that descriptor, where it
    stands. In a forked child nothing is done to the parent's file.

    A file that is replaced hands its owner, group, mode, access control list and other extended
    attributes on; what can't be kept is narrower, and named in ``not_kept``.

    Args:
        path: The name; a symbolic link is followed, and stays.
        secret: Nobody but the file's owner gets any permission, whatever it had before. Otherwise
            a new file follows the umask.
        exclusive: Nothing may stand there yet, nor when it is put in place.

    Raises:
        FileExistsError: With ``exclusive``: something does.
        OSError: It can't be made.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[str], *, secret: bool, exclusive: bool = False
    ) -> None:
        self.descriptor = -1
        self.not_kept: tuple[str, ...] = ()
        self._given = os.fsdecode(path)
        self._file: NewFile | None = None
        self._folder = -1
        self._name = ""
        self._secret = secret
        self._exclusive = exclusive
        self._process = os.getpid()
        try:
            self._open()
        except OSError:
            self.discard()
            raise

    @property
    def is_replaced(self) -> bool:
        """Whether this is a file that will be put in place, and no descriptor, device or pipe."""
        return self._file is not None

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
        if self._file is not None:
            if self._exclusive:
                self._file.add(self._name)
            else:
                self._inherit()
                self._file.replace(self._name)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind, unless it was put in place. May be repeated."""
        if self._file is not None:
            self._file.discard()
            self._file = None
        elif self.descriptor >= 0:
            os.close(self.descriptor)
        if self._folder >= 0:
            os.close(self._folder)
        self.descriptor = self._folder = -1

    def _require_own(self) -> None:
        # A child shares the descriptor's position: what it wrote would stand in the parent's file.
        if os.getpid() != self._process:
            raise OSError(errno.EPERM, "a forked child can't write its parent's file", self._given)

    def _open(self) -> None:
        existing = _look(self._given)
        if existing is not None and self._exclusive:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._given)
        number = find_descriptor(self._given)
        if number is not None:
            self.descriptor = duplicate(number, unfit=os.O_RDONLY)
            return
        if existing is not None and not stat.S_ISREG(existing.st_mode):
            self.descriptor = os.open(self._given, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
            return
        target = os.path.realpath(self._given)
        if existing is not None and not _is_at(existing, target):
            # Another process's descriptor, of a file that has lost its name or been replaced.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._given)
        folder, self._name = os.path.split(target)
        self._folder = open_folder(folder)
        sweep_folder(self._folder)
        mode = _SECRET_MODE if self._secret or existing is not None else _NEW_MODE
        self._file = NewFile(self._folder, mode)
        self.descriptor = self._file.descriptor

    def _inherit(self) -> None:
        """Take over what is to be kept of what stands in the place now."""
        traits = self._read_existing()
        if traits is None:
            return
        widest = _SECRET_MODE if self._secret else _ANY_MODE
        others = traits.status.st_nlink - 1
        lost = [f"{others} other name{'s' if others > 1 else ''}, of the former content"]
        lost = lost if others > 0 else []
        if self._is_planted(traits.status):
            os.fchmod(self.descriptor, _SECRET_MODE)
            lost.append(f"owner {traits.status.st_uid}, in a directory where anybody makes files")
        else:
            lost += give_traits(self.descriptor, traits, widest=widest).describe_lost()
        self.not_kept = tuple(lost)

    def _read_existing(self) -> FileTraits | None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            try:
                found = os.open(self._name, os.O_PATH | flags, dir_fd=self._folder)
                stack.callback(os.close, found)
                status = os.fstat(found)
                if not stat.S_ISREG(status.st_mode):
                    return None
            except FileNotFoundError:
                return None
            # Who may not read a file may know its permissions, but only by a path.
            return read_traits(f"/proc/self/fd/{found}", status)

    def _is_planted(self, status: os.stat_result) -> bool:
        """Whether anybody may have made a file in advance, so that it would be his afterwards."""
        folder = os.fstat(self._folder)
        is_everybodys = folder.st_mode & stat.S_ISVTX and folder.st_mode & 0o022
        return bool(is_everybodys) and status.st_uid not in {os.geteuid(), folder.st_uid}


def write_all(descriptor: int, data: Bytes) -> None:
    """Write all of ``data``, however little the system takes at a time.

    Raises:
        OSError: Writing failed.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever gave us the descriptor reads or writes it without waiting
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


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


def _is_at(status: os.stat_result, path: str) -> bool:
    found = _look(path)
    return found is not None and os.path.samestat(found, status)
