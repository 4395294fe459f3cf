"""renameat2(2): what rename(2) can't do, where kernel and file system can."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_NOREPLACE: Final = 1
_EXCHANGE: Final = 2


def rename_without_replacing(folder: int, old: str, new: str) -> None:
    """Rename a file within a directory, if nothing has the new name.

    Raises:
        FileExistsError: Something has.
        OSError: It can't be done, or not in this way (EINVAL, ENOSYS).
    """
    _rename(folder, old, new, _NOREPLACE)


def exchange_names(folder: int, one: str, other: str) -> None:
    """Have two files of a directory swap their names, in one step.

    Raises:
        OSError: It can't be done, or not in this way (EINVAL, ENOSYS).
    """
    _rename(folder, one, other, _EXCHANGE)


def _rename(folder: int, old: str, new: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "renameat2", None)
    if call is None:
        raise OSError(38, os.strerror(38))
    if call(folder, os.fsencode(old), folder, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)
