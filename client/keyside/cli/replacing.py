"""One file read, and replaced whole or not at all, with its mode, owner and attributes.

    Original: opened → read → (unchanged?) → replaced, or left alone
    Replacement: made without a name → written → given the original's traits → put in its place

A file that was changed between reading and replacing is left alone. Name and descriptor are
compared before and afterwards: where the names of two files can be exchanged in one step, what was
displaced is looked at before it is removed, and put back if it is another one. What can't be
excluded is a writer who keeps the old file open: he goes on writing to what has no name any more.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Final, Self

from keyside._atomic import write_all
from keyside._file_traits import give_owner, give_traits, read_traits
from keyside._new_file import ExchangedError, NewFile, NotDurableError
from keyside._sparse_copying import copy_rest
from keyside.cli import exits
from keyside.cli.exits import CommandError

if TYPE_CHECKING:
    from types import TracebackType

    from keyside._file_traits import FileTraits
    from keyside.cli.walking import Found

# Longer than a tick of the kernel's clock for timestamps: two changes within one look like one.
_SETTLED_NS: Final = 20_000_000
_SETTLING_TRIES: Final = 5
_TOLD_WITHOUT_NAME: Final = 5


class Original:
    """A file as it is now, open for reading. Use it as a context manager.

    Args:
        found: Where it is.

    Raises:
        CommandError: It can't be opened, or is being written to.
    """

    def __init__(self, found: Found) -> None:
        self.folder = found.folder
        self.name = found.name
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self.name, flags, dir_fd=self.folder)
        except FileNotFoundError:
            raise changed_meanwhile() from None
        except OSError as error:
            raise CommandError(f"can't read it: {error.strerror}", exits.NO_INPUT) from None
        try:
            self.status = self._settle()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.status.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on; fewer only where the file ends.

        Raises:
            CommandError: Reading failed.
        """
        parts: list[bytes] = []
        try:
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise CommandError(f"can't read it: {error.strerror}", exits.IO_ERROR) from None
        return b"".join(parts)

    def read_traits(self) -> FileTraits:
        """Return who owns it, who may do what with it, and its extended attributes."""
        return read_traits(self._descriptor, self.status)

    def copy_rest(self, offset: int, target: int) -> int:
        """Append what is in it from ``offset`` on to another file; return where it ended.

        Raises:
            OSError: Reading or writing failed.
        """
        return copy_rest(self._descriptor, offset, target, lambda _: None)

    def was_displaced(self, status: os.stat_result) -> bool:
        """Return whether a file, under whatever name by now, is this one as it was read."""
        # The time of its last change is that of its new name.
        told = slice(0, _TOLD_WITHOUT_NAME)
        return _identify(status)[told] == _identify(self.status)[told]

    def require_single_name(self) -> None:
        """Refuse a file with hard links.

        Raises:
            CommandError: It has other names, which would keep the old content.
        """
        others = self.status.st_nlink - 1
        if others > 0:
            raise CommandError(
                f"it has {others} other name{'s' if others > 1 else ''} (hard links), which would "
                "keep the old content",
                exits.CANT_CREATE,
                "replace it by hand (-i and -o), and link the other names anew",
            )

    def require_unchanged(self) -> None:
        """Refuse to go on where file or name is not what was read.

        Raises:
            CommandError: It was changed, replaced or removed.
        """
        here = os.fstat(self._descriptor)
        try:
            named = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except OSError:
            raise changed_meanwhile() from None
        if not _identify(self.status) == _identify(here) == _identify(named):
            raise changed_meanwhile()

    def _settle(self) -> os.stat_result:
        """Return its status at a time when a later change would show in its timestamps."""
        for _ in range(_SETTLING_TRIES):
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                break
            age_ns = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
            if not 0 <= age_ns < _SETTLED_NS:
                return status
            time.sleep((_SETTLED_NS - age_ns) / 1e9)
        raise changed_meanwhile()


class Replacement:
    """What will stand in a file's place. Use it as a context manager: a failure leaves nothing.

    Args:
        original: The file to replace.

    Raises:
        CommandError: On entering: no file can be made beside it, or none with its owner.
    """

    def __init__(self, original: Original) -> None:
        self._original = original
        self.not_kept: tuple[str, ...] = ()
        """Extended attributes that only describe the file, and that it could not be given."""

    def __enter__(self) -> Self:
        original = self._original
        try:
            self._file = NewFile(original.folder)
        except OSError as error:
            raise CommandError(
                f"can't create a file beside it: {error.strerror}", exits.CANT_CREATE
            ) from None
        wanted = original.status
        if give_owner(self._file.descriptor, wanted):
            self._file.discard()
            raise CommandError(
                f"its owner (uid {wanted.st_uid}, gid {wanted.st_gid}) can't be kept",
                exits.NOT_PERMITTED,
                "run this as that account, or as root",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.discard()

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            CommandError: Writing failed.
        """
        try:
            write_all(self._file.descriptor, data)
        except OSError as error:
            raise _cannot_write(error) from None

    def copy_rest(self, offset: int) -> None:
        """Append the original from ``offset`` to its end, a block at a time; holes stay holes.

        Raises:
            CommandError: Reading or writing failed, or the original is not as long as it was.
        """
        try:
            end = self._original.copy_rest(offset, self._file.descriptor)
        except OSError as error:
            raise _cannot_write(error) from None
        if end != self._original.size:
            raise changed_meanwhile()

    def finish(self) -> None:
        """Give it the original's mode and attributes, and make it durable.

        Raises:
            CommandError: That failed.
        """
        try:
            kept = give_traits(self._file.descriptor, self._original.read_traits())
            os.fsync(self._file.descriptor)
        except OSError as error:
            raise _cannot_write(error) from None
        if kept.permissions:
            raise CommandError(
                f"can't be kept: {', '.join(kept.permissions)}",
                exits.NOT_PERMITTED,
                "run this as its owner, or as root",
            )
        self.not_kept = tuple(kept.describe_lost())

    def put_in_place(self) -> None:
        """Have it take the original's place, if that is unchanged.

        Raises:
            CommandError: The original was changed meanwhile, or can't be replaced; or it was, but
                not durably.
        """
        original = self._original
        original.require_unchanged()
        try:
            self._file.replace_only(original.name, original.was_displaced)
        except (ExchangedError, FileNotFoundError):
            raise changed_meanwhile() from None
        except NotDurableError as error:
            raise CommandError(
                f"it was replaced, but a crash might undo that: {error.strerror}", exits.IO_ERROR
            ) from None
        except OSError as error:
            raise CommandError(f"can't replace it: {error.strerror}", exits.CANT_CREATE) from None


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_mode,
        status.st_ctime_ns,
    )


def changed_meanwhile() -> CommandError:
    """Return what is said of a file that is no longer what it was when the run met it."""
    return CommandError(
        "it was changed meanwhile, and was left alone",
        exits.TRY_AGAIN,
        "run the same command again",
    )


def _cannot_write(error: OSError) -> CommandError:
    return CommandError(f"can't write what replaces it: {error.strerror}", exits.IO_ERROR)
