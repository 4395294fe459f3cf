"""Paths that name a descriptor of this process: /dev/stdout, /dev/fd/N, /proc/self/fd/N.

What is read from or written to one goes on where it stands. Opened anew by its path, a file would
be read from its beginning and written over, a socket could not be opened at all, and a name could
only be replaced where there is one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from typing import Final

_OWN: Final = "/proc/self"
_FOLDER: Final = re.compile(r"(/task/[0-9]+)?/fd", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_MAX_LINKS: Final = 40


def find_descriptor(path: str) -> int | None:
    """Return which descriptor of this process a path names, through whatever links."""
    own = ""
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        try:
            target = os.readlink(path)  # noqa: PTH115
        except (OSError, ValueError):
            return None
        folder = os.path.realpath(folder)
        if _NUMBER.fullmatch(name) and folder.endswith("/fd"):
            own = own or os.path.realpath(_OWN)
            if folder.startswith(own) and _FOLDER.fullmatch(folder[len(own) :]):
                return int(name)
        path = os.path.join(folder, target)  # noqa: PTH118
    return None


def open_input(path: str | bytes | os.PathLike[str]) -> int:
    """Return a descriptor to read what a path names, from where it stands.

    Raises:
        OSError: It can't be opened.
    """
    number = find_descriptor(os.fsdecode(path))
    if number is not None:
        return duplicate(number, unfit=os.O_WRONLY)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def duplicate(number: int, *, unfit: int) -> int:
    """Return another descriptor of what a descriptor leads to.

    Args:
        number: The descriptor.
        unfit: The way in which it must not be open: ``os.O_WRONLY`` or ``os.O_RDONLY``.

    Raises:
        OSError: It is not open, or in that way.
    """
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE in {unfit, os.O_ACCMODE}:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    copy: int = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    return copy
