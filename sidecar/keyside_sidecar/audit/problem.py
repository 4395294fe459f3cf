"""What is wrong with the audit log, as a worker sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

NO_SPACE: Final = "AUDIT_NO_SPACE"
WRITE_FAILED: Final = "AUDIT_WRITE_FAILED"
NOT_RESPONDING: Final = "AUDIT_NOT_RESPONDING"
NO_RECORDER: Final = "AUDIT_NO_RECORDER"
BUFFER_FULL: Final = "AUDIT_BUFFER_FULL"

TEXTS: Final = {
    NO_SPACE: (
        "there is no room for the audit log",
        "make room on its file system; recording goes on by itself then",
    ),
    WRITE_FAILED: (
        "the audit log can't be written",
        "see the sidecar's log for the error; recording goes on by itself when it is gone",
    ),
    NOT_RESPONDING: (
        "the audit log does not take records in time",
        "see whether the disk that it is on hangs or is overloaded",
    ),
    NO_RECORDER: (
        "the process that writes the audit log is away",
        "see the sidecar's log for why it ended; it is started again by itself",
    ),
    BUFFER_FULL: (
        "more is done than the audit log takes",
        'give it a faster disk, or record less with service_calls = "summary"',
    ),
}


@dataclass(frozen=True, slots=True)
class AuditProblem:
    """Why nothing, or not everything, can be recorded now.

    Args:
        reason: One of this module's constants.
        summary: One sentence.
        remedy: What to do about it.
        since: When it began.
        refuses_service_calls: Whether services' calls are refused because of it, now.
    """

    reason: str
    summary: str
    remedy: str
    since: datetime
    refuses_service_calls: bool
