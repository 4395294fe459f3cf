"""One file read, and replaced whole or not at all, with its mode, owner and attributes.

    Original: opened → read → (unchanged?) → replaced, or left alone
    Replacement: made beside it → written → given mode and attributes, durable → renamed over it

A file that was changed between reading and renaming is left alone. What can't be excluded on Linux
is a change in the instant between the last look and the rename, and a writer who keeps the old file
open: he goes on writing to what has no name any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final, Self

from keyside._atomic import write_all
from keyside._temporary import create_temporary
from keyside.cli import exits
from keyside.cli.exits import CommandError

if TYPE_CHECKING:
    from types import TracebackType

    from keyside.cli.walking import Found

_BLOCK_BYTES: Final = 1 << 20
_ACCESS_LIST: Final = "system.posix_acl_access"
# Longer than a tick of the kernel's clock for timestamps: two changes within one look like one.
_SETTLED_NS: Final = 20_000_000
_SETTLING_TRIES: Final = 5


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

    def read_attributes(self) -> dict[str, bytes]:
        """Return its extended attributes, access control list included, as far as it shows them."""
        return _read_attributes(self._descriptor)

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
        self._descriptor = -1
        self._name = ""

    def __enter__(self) -> Self:
        original = self._original
        try:
            self._descriptor, self._name = create_temporary(original.folder, 0o600)
        except OSError as error:
            raise CommandError(
                f"can't create a file beside it: {error.strerror}", exits.CANT_CREATE
            ) from None
        try:
            made, wanted = os.fstat(self._descriptor), original.status
            if (made.st_uid, made.st_gid) != (wanted.st_uid, wanted.st_gid):
                os.fchown(self._descriptor, wanted.st_uid, wanted.st_gid)
        except OSError:
            self._discard()
            raise CommandError(
                f"its owner (uid {wanted.st_uid}, gid {wanted.st_gid}) can't be kept",
                exits.NOT_PERMITTED,
                "run this as that account, or as root",
            ) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            CommandError: Writing failed.
        """
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            raise _cannot_write(error) from None

    def copy_rest(self, offset: int) -> None:
        """Append the original from ``offset`` to its end, a block at a time.

        Raises:
            CommandError: Reading or writing failed, or the original is not as long as it was.
        """
        while block := self._original.read(offset, _BLOCK_BYTES):
            self.write(block)
            offset += len(block)
        if offset != self._original.size:
            raise changed_meanwhile()

    def finish(self) -> None:
        """Give it the original's mode and attributes, and make it durable.

        Raises:
            CommandError: That failed.
        """
        try:
            # The list first: until it is there, the mode could let others in whom it keeps out.
            self._keep_attributes()
            os.fchmod(self._descriptor, stat.S_IMODE(self._original.status.st_mode))
            os.fsync(self._descriptor)
        except OSError as error:
            raise _cannot_write(error) from None

    def put_in_place(self) -> None:
        """Rename it over the original, if that is unchanged.

        Raises:
            CommandError: The original was changed meanwhile, or can't be replaced; or it was, but
                not durably.
        """
        folder = self._original.folder
        self._original.require_unchanged()
        try:
            os.rename(self._name, self._original.name, src_dir_fd=folder, dst_dir_fd=folder)
            self._name = ""
        except OSError as error:
            raise CommandError(f"can't replace it: {error.strerror}", exits.CANT_CREATE) from None
        try:
            os.fsync(folder)
        except OSError as error:
            raise CommandError(
                f"it was replaced, but a crash might undo that: {error.strerror}", exits.IO_ERROR
            ) from None

    def _keep_attributes(self) -> None:
        """Copy the extended attributes.

        Those that only describe may be refused. The access control list may not: without it the
        mode's group bits, and with a directory's default list its entries, would let others in.
        """
        wanted = self._original.read_attributes()
        made = _read_attributes(self._descriptor)
        for name in made.keys() - wanted.keys():
            with contextlib.nullcontext() if name == _ACCESS_LIST else contextlib.suppress(OSError):
                os.removexattr(self._descriptor, name)
        for name, value in wanted.items():
            if made.get(name) == value:
                continue
            with contextlib.nullcontext() if name == _ACCESS_LIST else contextlib.suppress(OSError):
                os.setxattr(self._descriptor, name, value)

    def _discard(self) -> None:
        if self._name:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._original.folder)
            self._name = ""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def _read_attributes(descriptor: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return found
    for name in names:
        try:
            found[name] = os.getxattr(descriptor, name)
        except OSError as error:
            # Removed meanwhile, or not for us to read; but who may read the file must be known.
            if name == _ACCESS_LIST and error.errno != errno.ENODATA:
                raise
    return found


def changed_meanwhile() -> CommandError:
    """Return what is said of a file that is no longer what it was when the run met it."""
    return CommandError(
        "it was changed meanwhile, and was left alone",
        exits.TRY_AGAIN,
        "run the same command again",
    )


def _cannot_write(error: OSError) -> CommandError:
    return CommandError(f"can't write what replaces it: {error.strerror}", exits.IO_ERROR)
