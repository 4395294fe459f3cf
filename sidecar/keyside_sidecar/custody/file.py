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

from keyside._atomic import write_all
from keyside._new_file import NewFile
from keyside._temporary import sweep_folder
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
    """Holds a root key that was read from a file once.

    The file is looked at again only for another root key: while one is being rotated, the next one
    lies beside it, and afterwards in its place.

    Args:
        root_key: The root key.
        path: Where it was read.
        owner_uids: Whose the files may be.
    """

    __slots__ = ("_owner_uids", "_path", "_root_key", "_seen", "derive", "unwrap", "wrap")

    def __init__(
        self, root_key: RootKey, path: Path | None = None, owner_uids: frozenset[int] = frozenset()
    ) -> None:
        self._root_key = root_key
        self._path = path
        self._owner_uids = owner_uids
        self._seen: object = None
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

    def find(self, key_id: str) -> FileCustodian:
        """Return the keeper of another root key: in the same place by now, or waiting beside it.

        Raises:
            CustodyError: No file there holds it.
        """
        for found in self._list_others():
            if found.key_id == key_id:
                return found
        raise CustodyError(
            f"root key {key_id!a} is not to be found; this one is {self.key_id}",
            remedy=f"put the file with that root key in the place of {self._path}, or beside it "
            f"as {name_next(self._path).name}"
            if self._path
            else "",
        )

    def list_ids(self) -> tuple[str, ...]:
        """Return the ids of this root key and of those that :meth:`find` would find."""
        return tuple(dict.fromkeys((self.key_id, *(key.key_id for key in self._list_others()))))

    def require_kept(self) -> None:
        """Check that this root key is in its file, or waits beside it to be put there.

        Read again only where something about the file or its directory has changed since this last
        found it in order.

        Raises:
            CustodyError: It isn't, or the next process would refuse the file.
        """
        if self._path is None:
            return
        found = _describe_place(self._path)
        if found is not None and found == self._seen:
            return
        self._seen = None
        try:
            self._require_in_file(self._path)
            self._seen = found
        except CustodyError:
            if not self._waits_beside(self._path):
                raise

    def _require_in_file(self, path: Path) -> None:
        kept = FileCustodian.load(path, owner_uids=self._owner_uids).key_id
        if kept != self.key_id:
            raise CustodyError(
                f"{path} holds root key {kept}, and the one in use is {self.key_id}",
                remedy=_RESTORE,
            )

    def _waits_beside(self, path: Path) -> bool:
        """Whether this root key is the next one, on its way into the file (succession.py)."""
        with suppress(CustodyError):
            self._require_in_file(name_next(path))
            return True
        return False

    def _list_others(self) -> Iterator[FileCustodian]:
        if self._path is None:
            return
        for path in (self._path, name_next(self._path)):
            with suppress(CustodyError):
                yield FileCustodian.load(path, owner_uids=self._owner_uids, home=self._path)

    @classmethod
    def load(cls, path: Path, *, owner_uids: frozenset[int], home: Path | None = None) -> Self:
        """Read the root key, if nobody else could have read or replaced it.

        The file must be a regular file (no symbolic link), owned by one of ``owner_uids``, with no
        permission beyond 0600; its directory likewise owned by root or one of ``owner_uids`` and
        writable by its owner only. All of it is checked on the descriptors that are then used.

        Args:
            path: The file.
            owner_uids: Whose it may be: root's, or the running account's.
            home: The path that the configuration names, if ``path`` is another.

        Raises:
            CustodyError: The file is missing, unsafe, damaged or of another kind; has a remedy.
        """
        with opened_directory(path, owner_uids | {0}) as directory:
            try:
                # O_NONBLOCK: a FIFO in its place must not hang the start.
                descriptor = os.open(
                    path.name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK,
                    dir_fd=directory,
                )
            except OSError as error:
                raise describe_os_error(path, error) from error
        try:
            _require_private_file(path, os.fstat(descriptor), owner_uids)
            line = os.read(descriptor, _LINE_LENGTH + 1)
        except OSError as error:
            raise describe_os_error(path, error) from error
        finally:
            os.close(descriptor)
        return cls(RootKey(_parse(path, line)), home or path, owner_uids)


def _describe_place(path: Path) -> tuple[tuple[int, ...], ...] | None:
    """Return what is different whenever a root key's file or its directory was changed."""
    try:
        found = [os.lstat(one) for one in (path, path.parent)]
    except OSError:
        return None
    return tuple(
        (
            *(one.st_dev, one.st_ino, one.st_mode, one.st_uid, one.st_size),
            *(one.st_mtime_ns, one.st_ctime_ns),
        )
        for one in found
    )


def name_next(path: Path) -> Path:
    """Return where the root key waits that is to follow the one in ``path``."""
    return path.with_name(f"{path.name}.next")


def name_former(path: Path, key_id: str) -> Path:
    """Return where a root key is kept that was in ``path`` once: older backups need it."""
    return path.with_name(f"{path.name}.{key_id}")


def create_root_key_file(path: Path, uid: int, gid: int) -> str:
    """Write a new random root key, durably, and return its key id.

    Never overwrites. The file is 0600 and belongs to ``uid`` and ``gid`` before it has content, and
    has its name only when it is whole.

    Raises:
        CustodyError: The file exists, its directory is unsafe, or it can't be written.
    """
    material = os.urandom(ROOT_KEY_LENGTH)
    with opened_directory(path, frozenset({0, uid, os.geteuid()})) as directory:
        try:
            sweep_folder(directory)
            with NewFile(directory) as file:
                os.fchmod(file.descriptor, _MODE)
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.descriptor, uid, gid)
                write_all(file.descriptor, _encode(material))
                file.add(path.name)
        except FileExistsError as error:
            raise CustodyError(
                f"{path} exists already and is not overwritten",
                remedy="whoever loses a root key loses every key version under it; move the file "
                "away by hand if it is really not needed",
            ) from error
        except OSError as error:
            raise describe_os_error(path, error) from error
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
            remedy=f"name the right file in [root_key], or {_RESTORE}",
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
def opened_directory(path: Path, owner_uids: frozenset[int]) -> Iterator[int]:
    """Open the directory of a root key's file, if nobody but ``owner_uids`` can put files there.

    Raises:
        CustodyError: Someone else can, or it can't be opened.
    """
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise describe_os_error(path.parent, error) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in owner_uids or status.st_mode & 0o022:
            raise CustodyError(
                f"someone else may replace files in {path.parent}: it belongs to uid "
                f"{status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}",
                remedy=f"{'' if status.st_uid in owner_uids else f'chown root {path.parent}; '}"
                f"chmod go-w {path.parent}",
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
            remedy=f"chown {max(owner_uids)} {path}, if you know where it comes from; otherwise "
            f"{_RESTORE}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~_MODE:
        raise CustodyError(
            f"{path} has mode {mode:04o}; others may have read it",
            remedy=f"chmod 0600 {path}; if others could log in here meanwhile, replace the root "
            "key too, with keysided root rotate",
        )


def describe_os_error(path: Path, error: OSError) -> CustodyError:
    """Return what an error of the operating system means for a root key's file."""
    if error.errno == errno.ENOENT:
        return CustodyError(
            f"{path} does not exist",
            remedy=f"{_RESTORE}, or copy it from another host with the same store; where there is "
            "no store yet, keysided init makes both",
        )
    if error.errno == errno.ELOOP:
        return CustodyError(
            f"{path} is a symbolic link", remedy="name the file itself in [root_key]"
        )
    if error.errno == errno.EACCES and not path.is_dir():
        return CustodyError(
            f"{path} can't be used: {error.strerror}",
            remedy=f"chown {os.geteuid()} {path}, if you know where it comes from; otherwise "
            f"{_RESTORE}",
        )
    return CustodyError(
        f"{path} can't be used: {error.strerror}",
        remedy="see that the sidecar's account may read the file and enter its directory",
    )
