"""The directory of a worker's inner sockets: nobody else's, and gone when the worker is.

The worker makes it itself, as its own account: root must not make, chown or remove anything in a
directory that the account can change. Each is locked (flock) by its worker for as long as that
lives, whatever ends it. So one that can be locked is stale, and the next worker removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUN_PATH_BYTES: Final = 107
_LONGEST_NAME: Final = "m0"
_TRIES: Final = 5


class PrivateDirectory:
    """A locked directory, mode 0700.

    Args:
        path: Where it is.
        lock_fd: Its descriptor, locked.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    def remove(self) -> None:
        """Remove it with what is in it, and unlock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)

    @classmethod
    def make(cls, public_path: str) -> PrivateDirectory:
        """Make one, and remove stale ones.

        It lies beside the public socket or, where that isn't allowed, in the unit's runtime
        directory or the one for temporary files.

        Raises:
            StartupError: None of these can be used.
        """
        prefix = f".{Path(public_path).name}~"
        for parent in _parents(public_path):
            _remove_stale(parent, prefix)
            for _ in range(_TRIES):
                made = _try_make(parent, prefix)
                if made is not None:
                    return cls(*made)
        raise StartupError(
            "no directory for the worker's private sockets can be made",
            remedy="let the sidecar's account write to the socket's directory, or set "
            "RuntimeDirectory= in its unit",
        )


def _parents(public_path: str) -> Iterable[Path]:
    yield Path(public_path).parent
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":", maxsplit=1)[0]
    if runtime:
        yield Path(runtime)
    yield Path(tempfile.gettempdir())


def _try_make(parent: Path, prefix: str) -> tuple[Path, int] | None:
    try:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError:
        return None
    lock_fd = _lock(path)
    if lock_fd is None:  # another worker took it for stale before it was locked
        return None
    if len(os.fsencode(path / _LONGEST_NAME)) > _SUN_PATH_BYTES:
        path.rmdir()
        os.close(lock_fd)
        return None
    return path, lock_fd


def _lock(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0 or os.fstat(fd).st_uid != os.geteuid():
            raise BlockingIOError
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove_stale(parent: Path, prefix: str) -> None:
    with contextlib.suppress(OSError):
        for entry in parent.iterdir():
            if entry.name.startswith(prefix) and (fd := _lock(entry)) is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(fd)
