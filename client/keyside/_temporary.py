"""Temporary names beside the files that will be replaced, and what killed runs left under them.

    given, its file locked → renamed over its target, or removed
                           → left behind by a kill: nobody holds the lock; the next run removes it

The name alone tells such a file from data; the lock (flock, which ends with its process, however
that ends) tells one that is being written from one that is left over. SQLite's files beside a
temporary one have its name and an ending, and are locked by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAME: Final = re.compile(r"(\.keyside-[0-9a-f]{32}\.tmp)(-journal|-wal|-shm)?", re.ASCII)
_MAX_SWEPT: Final = 1024
_SWEEP_EVERY_S: Final = 60.0

_swept_s: dict[tuple[int, int], float] = {}


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one of ours, and so no data."""
    return _NAME.fullmatch(name) is not None


def draw_name() -> str:
    """Return a temporary name that nobody has."""
    return f".keyside-{secrets.token_hex(16)}.tmp"


def open_folder(path: str, *, within: int | None = None) -> int:
    """Return a descriptor of a directory, to look names up in.

    Raises:
        OSError: It can't be opened, or is no directory, or a symbolic link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, dir_fd=within)


def sweep_folder(folder: int) -> None:
    """Remove what killed runs left in a directory, unless this process did so within the minute.

    A program that writes a thousand files into a directory would list a thousand names each time.
    """
    with contextlib.suppress(OSError):
        status = os.fstat(folder)
        key, now_s = (status.st_dev, status.st_ino), time.monotonic()
        if now_s - _swept_s.get(key, -math.inf) >= _SWEEP_EVERY_S:
            if len(_swept_s) >= _MAX_SWEPT:
                _swept_s.clear()
            _swept_s[key] = now_s
            remove_leftovers(folder, os.listdir(folder))


def remove_leftovers(folder: int, names: Iterable[str]) -> None:
    """Remove what killed runs left in a directory; what can't be removed, or locked, stays.

    Args:
        folder: The directory's descriptor.
        names: The names in it; all but temporary files' are passed over.
    """
    everything = list(names)
    # SQLite's files after the one that they belong to.
    found = sorted(filter(is_temporary, everything), key=len)
    if not found:
        return
    with _holding(folder, fcntl.LOCK_EX) as alone:
        for name in found:
            with contextlib.suppress(OSError):
                if alone:
                    _remove_leftover(folder, name, everything)


@contextlib.contextmanager
def kept_unswept(folder: int) -> Iterator[bool]:
    """Keep others from removing leftovers in a directory; says whether that could be done.

    For the instant in which somebody's data may stand under a temporary name.
    """
    with _holding(folder, fcntl.LOCK_SH) as held:
        yield held


def lock(descriptor: int) -> bool:
    """Return whether a file's lock is ours now; False where somebody else has it.

    Raises:
        OSError: There are no locks here.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _holding(folder: int, kind: int) -> Iterator[bool]:
    try:
        fcntl.flock(folder, kind | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def _remove_leftover(folder: int, name: str, everything: list[str]) -> None:
    beside = _NAME.fullmatch(name)
    assert beside is not None  # noqa: S101
    if beside[2]:
        _remove_side_file(folder, beside[1], name)
        return
    # A special file is not to be opened: that alone may do something.
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    is_linked = status.st_nlink == 2 and _has_place(folder, status, everything)  # noqa: PLR2004
    if not _is_removable(status, is_linked=is_linked):
        return
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        # A locked one may be renamed over its target at any moment; a name is never used again.
        if _is_removable(os.fstat(descriptor), is_linked=is_linked) and lock(descriptor):
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(descriptor)


def _remove_side_file(folder: int, owner: str, name: str) -> None:
    """Remove SQLite's file beside a temporary one that is gone."""
    try:
        os.stat(owner, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if _is_removable(os.stat(name, dir_fd=folder, follow_symlinks=False)):
            os.unlink(name, dir_fd=folder)


def _has_place(folder: int, status: os.stat_result, everything: list[str]) -> bool:
    """Whether a file stands in its place in this directory, and only its other name is left over.

    Without renameat2(2) a place is taken by a link, before the temporary name goes.
    """
    for name in everything:
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not is_temporary(name) and os.path.samestat(found, status):
                return True
    return False


def _is_removable(status: os.stat_result, *, is_linked: bool = False) -> bool:
    ours = os.geteuid() in (0, status.st_uid)
    return stat.S_ISREG(status.st_mode) and (status.st_nlink == 1 or is_linked) and ours
