"""Which exit code says what: sysexits(3)."""

from __future__ import annotations

from typing import Final

from keyside.errors import (
    AccessRefused,
    Conflict,
    EnvelopeRejected,
    InvalidArgument,
    KeysideError,
    LimitExceeded,
    NoSuchRecord,
    NoSuchRequest,
    NoSuchVersion,
    NotPermitted,
    Unavailable,
    UntrustedSocket,
    VersionUnusable,
    WrongVersionState,
)

OK: Final = 0
DECLINED: Final = 1
USAGE: Final = 64
DATA: Final = 65
NO_INPUT: Final = 66
UNAVAILABLE: Final = 69
INTERNAL: Final = 70
CANT_CREATE: Final = 73
IO_ERROR: Final = 74
TRY_AGAIN: Final = 75
NOT_PERMITTED: Final = 77
CONFIG: Final = 78
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

_BY_ERROR: Final[tuple[tuple[type[KeysideError], int], ...]] = (
    (InvalidArgument, DATA),
    (EnvelopeRejected, DATA),
    (VersionUnusable, DATA),
    (NoSuchVersion, DATA),
    (WrongVersionState, DATA),
    (NoSuchRequest, DATA),
    (AccessRefused, DATA),
    (NoSuchRecord, DATA),
    (Conflict, DATA),
    (Unavailable, UNAVAILABLE),
    (LimitExceeded, UNAVAILABLE),
    (NotPermitted, NOT_PERMITTED),
    (UntrustedSocket, NOT_PERMITTED),
)


class CommandError(Exception):
    """The command itself can't go on.

    Args:
        message: What is wrong.
        exit_code: One of this module's.
        remedy: What to do about it.
    """

    def __init__(self, message: str, exit_code: int, remedy: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.remedy = remedy


def code_of(error: KeysideError) -> int:
    """Return the exit code for an error of the client."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), INTERNAL)
