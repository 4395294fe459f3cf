"""The lock that keeps a log to one writer."""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from keyside_sidecar.audit.places import Places

_WAIT_S: Final = 10.0
_RETRY_S: Final = 0.1
_MODE: Final = 0o600
_EX_TEMPFAIL: Final = 75


def take_lock(places: Places) -> int:
    """Return the lock's descriptor, when no other process has it. Closing it gives the lock up.

    Raises:
        StartupError: Another process keeps it.
        OSError: The file can't be made.
    """
    until_s = time.monotonic() + _WAIT_S
    while True:
        descriptor = os.open(
            places.lock,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK,
            _MODE,
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Removed meanwhile, it would lock nobody else out.
            if is_in_place(places, descriptor):
                return descriptor
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= until_s:
            raise StartupError(
                f"another process writes the audit log {places.log}",
                remedy="see whether another keysided serves under this configuration",
                exit_code=_EX_TEMPFAIL,
            )
        time.sleep(_RETRY_S)


def is_in_place(places: Places, descriptor: int) -> bool:
    """Return whether the lock that we hold is the file that others would find.

    Raises:
        OSError: It can't be looked at.
    """
    try:
        return os.path.samestat(places.lock.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
