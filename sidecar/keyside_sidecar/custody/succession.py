"""The files of a root key that is replaced by another, so that no instant is without the right one.

What a store belongs to decides which of them counts; ``FileCustodian.find`` looks at both::

    PATH        PATH.next     PATH.<id of old>
    old                                          begin() makes the new root key
    old         new                              the store moves to it, in one transaction
    old         new           old                settle() keeps the old one …
    new                       old                … and puts the new one in its place

Each step is one link or one rename, and durable before the next. Whatever is interrupted is taken
up by doing it again.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from keyside_sidecar.custody.file import (
    FileCustodian,
    create_root_key_file,
    describe_os_error,
    name_former,
    name_next,
    opened_directory,
)
from keyside_sidecar.errors import CustodyError, StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EX_TEMPFAIL: Final = 75


class Succession:
    """The files of one root key.

    Args:
        path: What the configuration names.
        uid: Whose the files are to be: the sidecar's account.
        gid: Its group.
    """

    def __init__(self, path: Path, uid: int, gid: int) -> None:
        self._path = path
        self._uid = uid
        self._gid = gid
        self._owner_uids = frozenset({0, uid, os.geteuid()})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who replaces this root key, until the block or the process ends.

        A process that is forked off in the block holds the lock, too.

        Raises:
            StartupError: Someone else is at it.
            CustodyError: The file can't be used.
        """
        with opened_directory(self._path, self._owner_uids) as directory:
            try:
                descriptor = os.open(
                    self._path.name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
                    dir_fd=directory,
                )
            except OSError as error:
                raise describe_os_error(self._path, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = os.stat(self._path.name, dir_fd=directory, follow_symlinks=False)
                replaced = not os.path.samestat(os.fstat(descriptor), there)
            except OSError:
                replaced = True
            try:
                if replaced:
                    raise StartupError(
                        f"the root key in {self._path} is being replaced by someone else",
                        remedy="wait until that keysided root rotate has ended",
                        exit_code=_EX_TEMPFAIL,
                    )
                yield
            finally:
                os.close(descriptor)

    def load(self) -> FileCustodian:
        """Return the root key in place.

        Raises:
            CustodyError: It can't be used.
        """
        return FileCustodian.load(self._path, owner_uids=self._owner_uids)

    def begin(self) -> tuple[str, bool]:
        """Make the next root key, unless one waits already.

        Returns:
            Its id, and whether it was made just now.

        Raises:
            CustodyError: The one that waits can't be used, or none can be made.
        """
        path = name_next(self._path)
        if not os.path.lexists(path):
            return create_root_key_file(path, self._uid, self._gid), True
        try:
            waiting = FileCustodian.load(path, owner_uids=self._owner_uids)
        except CustodyError as error:
            raise CustodyError(
                f"the root key that is to follow can't be used: {error}",
                remedy=f"if no store and no backup belongs to it (keysided root show), remove "
                f"{path}, and have another one made; otherwise {error.remedy}",
            ) from error
        if waiting.key_id == self.load().key_id:
            raise CustodyError(
                f"{path} holds the same root key as {self._path}", remedy=f"remove {path}"
            )
        self._make_durable(path)
        return waiting.key_id, False

    def settle(self, key_id: str) -> Path | None:
        """Put the root key that waits in place, and keep the one that was there.

        Args:
            key_id: The root key that the store belongs to, by what was just read from it.

        Returns:
            Where the former one is now; None where all was in place already.

        Raises:
            CustodyError: That root key does not wait, or something is in the way. What was in place
                still is.
        """
        former = self.load()
        if former.key_id == key_id:
            return None
        following, kept = name_next(self._path), name_former(self._path, former.key_id)
        waiting = FileCustodian.load(following, owner_uids=self._owner_uids)
        if waiting.key_id != key_id:
            raise CustodyError(
                f"{following} holds the root key {waiting.key_id}, and the store belongs to "
                f"{key_id}",
                remedy=f"find the file with the root key {key_id}, and put it there",
            )
        with opened_directory(self._path, self._owner_uids) as directory:
            try:
                with suppress(FileExistsError):
                    os.link(
                        self._path.name,
                        kept.name,
                        src_dir_fd=directory,
                        dst_dir_fd=directory,
                        follow_symlinks=False,
                    )
                self._require_kept(kept, former.key_id)
                self._make_durable(following)
                os.fsync(directory)
                os.rename(
                    following.name, self._path.name, src_dir_fd=directory, dst_dir_fd=directory
                )
                os.fsync(directory)
            except OSError as error:
                raise describe_os_error(self._path, error) from error
        return kept

    def _make_durable(self, path: Path) -> None:
        """Have a file that somebody put there survive a power cut before it is relied on."""
        with opened_directory(path, self._owner_uids) as directory:
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                descriptor = os.open(path.name, flags, dir_fd=directory)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.fsync(directory)
            except OSError as error:
                raise describe_os_error(path, error) from error

    def _require_kept(self, path: Path, key_id: str) -> None:
        try:
            found = FileCustodian.load(path, owner_uids=self._owner_uids).key_id
        except CustodyError as error:
            raise CustodyError(
                f"the former root key can't be kept in {path}: {error}",
                remedy=f"move {path} away, and run keysided root rotate again",
            ) from error
        if found != key_id:
            raise CustodyError(
                f"the former root key can't be kept in {path}, which holds {found}",
                remedy=f"move {path} away, and run keysided root rotate again",
            )
