"""A root key in a file that only one account can read.

The file is one line::

    KEYSIDE-ROOT-KEY-1:<32 bytes in base64url, no padding>:<16 hexadecimal digits>

The digits are the first 8 bytes of SHA-256 over all that stands before the second colon. They
tell a damaged or cut file from a foreign one; they are no defence against anybody.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn, Self

from keyside_sidecar.custody.root_key import ROOT_KEY_LENGTH, RootKey
from keyside_sidecar.errors import CustodyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC: Final = b"KEYSIDE-ROOT-KEY-"
_PREFIX: Final = _MAGIC + b"1:"
_LINE: Final = re.compile(rb"KEYSIDE-ROOT-KEY-1:([A-Za-z0-9_-]{43}):([0-9a-f]{16})\n")
_LINE_LENGTH: Final = len(_PREFIX) + 43 + 1 + 16 + 1
_MODE: Final = 0o600
_RESTORE: Final = "restore the root key from its backup"


class FileCustodian:
    """Holds a root key that was read from a file once; the file isn't looked at again.

    Args:
        root_key: The root key.
    """

    __slots__ = ("_root_key", "derive", "unwrap", "wrap")

    def __init__(self, root_key: RootKey) -> None:
        self._root_key = root_key
        self.wrap = root_key.wrap
        self.unwrap = root_key.unwrap
        self.derive = root_key.derive

    def __repr__(self) -> str:
        return f"FileCustodian({self._root_key!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a FileCustodian can't be pickled or copied")

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name the root key; not secret."""
        return self._root_key.key_id

    @classmethod
    def load(cls, path: Path, *, owner_uids: frozenset[int]) -> Self:
        """Read the root key, if nobody else could have read or replaced it.

        The file must be a regular file (no symbolic link), owned by one of ``owner_uids``, with no
        permission beyond 0600; its directory likewise owned by root or one of ``owner_uids`` and
        writable by its owner only. All of it is checked on the descriptors that are then used.

        Args:
            path: The file.
            owner_uids: Whose it may be: root's, or the running account's.

        Raises:
            CustodyError: The file is missing, unsafe, damaged or of another kind; has a remedy.
        """
        with _opened_directory(path, owner_uids | {0}) as directory:
            try:
                # O_NONBLOCK: a FIFO in its place must not hang the start.
                descriptor = os.open(
                    path.name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK,
                    dir_fd=directory,
                )
            except OSError as error:
                raise _describe_os_error(path, error) from error
        try:
            _require_private_file(path, os.fstat(descriptor), owner_uids)
            line = os.read(descriptor, _LINE_LENGTH + 1)
        except OSError as error:
            raise _describe_os_error(path, error) from error
        finally:
            os.close(descriptor)
        return cls(RootKey(_parse(path, line)))


def create_root_key_file(path: Path, uid: int, gid: int) -> str:
    """Write a new random root key, durably, and return its key id.

    Never overwrites. The file is 0600 and belongs to ``uid`` and ``gid`` before it has content.

    Raises:
        CustodyError: The file exists, its directory is unsafe, or it can't be written.
    """
    material = os.urandom(ROOT_KEY_LENGTH)
    line = _encode(material)
    with _opened_directory(path, frozenset({0, uid, os.geteuid()})) as directory:
        try:
            descriptor = os.open(
                path.name,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                _MODE,
                dir_fd=directory,
            )
        except FileExistsError as error:
            raise CustodyError(
                f"{path} exists already and is not overwritten",
                remedy="whoever loses a root key loses every key version under it; move the file "
                "away by hand if it is really not needed",
            ) from error
        except OSError as error:
            raise _describe_os_error(path, error) from error
        try:
            try:
                os.fchmod(descriptor, _MODE)
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, uid, gid)
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.fsync(directory)
        except OSError as error:
            with suppress(OSError):
                os.unlink(path.name, dir_fd=directory)
            raise _describe_os_error(path, error) from error
    return RootKey(material).key_id


def _encode(material: bytes) -> bytes:
    body = _PREFIX + base64.urlsafe_b64encode(material).rstrip(b"=")
    return body + b":" + _checksum(body) + b"\n"


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parse(path: Path, line: bytes) -> bytes:
    if not line.startswith(_MAGIC[: len(line)]):
        raise CustodyError(
            f"{path} is not a Keyside root key",
            remedy="name the right file in [root_key], or create one with keysided init",
        )
    if line.startswith(_MAGIC) and len(line) >= len(_PREFIX) and not line.startswith(_PREFIX):
        raise CustodyError(
            f"{path} is a root key of a kind that this program does not know",
            remedy="run the program that made it, or a newer one",
        )
    match = _LINE.fullmatch(line)
    if match is None and len(line) < _LINE_LENGTH:
        raise CustodyError(
            f"{path} is cut short: {len(line)} of {_LINE_LENGTH} bytes", remedy=_RESTORE
        )
    if match is not None:
        material = base64.urlsafe_b64decode(match[1] + b"=")
        if _encode(material) == line:
            return material
    raise CustodyError(f"{path} is damaged: its checksum does not fit", remedy=_RESTORE)


@contextmanager
def _opened_directory(path: Path, owner_uids: frozenset[int]) -> Iterator[int]:
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _describe_os_error(path.parent, error) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in owner_uids or status.st_mode & 0o022:
            raise CustodyError(
                f"someone else may replace files in {path.parent}: it belongs to uid "
                f"{status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}",
                remedy=f"chown root {path.parent}; chmod go-w {path.parent}",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _require_private_file(path: Path, status: os.stat_result, owner_uids: frozenset[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise CustodyError(f"{path} is not a regular file", remedy=_RESTORE)
    if status.st_uid not in owner_uids:
        owners = " or ".join(str(uid) for uid in sorted(owner_uids))
        raise CustodyError(
            f"{path} belongs to uid {status.st_uid}, not to {owners}",
            remedy=f"chown it, if you know where it comes from; otherwise {_RESTORE}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~_MODE:
        raise CustodyError(
            f"{path} has mode {mode:04o}; others may have read it",
            remedy=f"chmod 0600 {path}; if others could log in here meanwhile, make a new root key",
        )


def _describe_os_error(path: Path, error: OSError) -> CustodyError:
    if error.errno == errno.ENOENT:
        return CustodyError(
            f"{path} does not exist",
            remedy="create it with keysided init, or restore it from its backup",
        )
    if error.errno == errno.ELOOP:
        return CustodyError(
            f"{path} is a symbolic link", remedy="name the file itself in [root_key]"
        )
    return CustodyError(
        f"{path} can't be used: {error.strerror}",
        remedy="see that the sidecar's account may read the file and enter its directory",
    )
