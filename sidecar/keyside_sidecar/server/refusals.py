"""Refusals of callers in the log: the first at once, repeated ones counted.

A stranger can make refusals as fast as it likes; the log must not be filled by it. So each (uid,
reason) is written when it first happens and then at most once an interval, with the number of
times since. The table is bounded; beyond the bound everything else is counted as one. The audit log
counts for itself, over longer times (audit/sender.py).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from keyside_sidecar.log import event

if TYPE_CHECKING:
    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.peer.caller import Caller

_log = logging.getLogger(__name__)

_INTERVAL_S: Final = 10.0
_MAX_ENTRIES: Final = 1024
_OTHERS: Final = -1


class _Entry:
    __slots__ = ("since_s", "unwritten")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.unwritten = 0


class RefusalLog:
    """Writes refusals, coalesced per uid and reason.

    Args:
        clock: For the interval.
        audit: The way to the audit log.
    """

    def __init__(self, clock: Clock, audit: AuditSender) -> None:
        self._clock = clock
        self._audit = audit
        self._entries: dict[tuple[int, str], _Entry] = {}
        # While the sidecar tries for itself whether it refuses what it must.
        self.muted = False

    def note(self, caller: Caller | None, method: str, reason: str) -> None:
        """Report one refusal.

        Args:
            caller: Whose; None where the address was unknown.
            method: The RPC's full name.
            reason: Why, a constant.
        """
        if self.muted:
            return
        self._audit.note_refusal(
            {
                "event": "caller.refused",
                "outcome": "refused",
                "reason": reason,
                "caller": None if caller is None else caller.describe(),
                "details": {"method": method},
            }
        )
        uid = caller.uid if caller is not None else _OTHERS
        key = (uid, reason)
        now_s = self._clock.monotonic_s()
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= _MAX_ENTRIES:
                self._forget_quiet(now_s)
            if len(self._entries) >= _MAX_ENTRIES:
                uid, key = _OTHERS, (_OTHERS, reason)
                entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(now_s)
        elif now_s - entry.since_s < _INTERVAL_S:
            entry.unwritten += 1
            return
        else:
            entry.since_s = now_s
        repeated = entry.unwritten if entry is not None else 0
        if entry is not None:
            entry.unwritten = 0
        event(
            _log,
            logging.WARNING,
            "call refused",
            reason=reason,
            uid=uid,
            pid=caller.pid if caller is not None else None,
            method=method,
            repeated_before=repeated,
        )

    def _forget_quiet(self, now_s: float) -> None:
        quiet = [
            key for key, entry in self._entries.items() if now_s - entry.since_s >= _INTERVAL_S
        ]
        self.flush()
        for key in quiet:
            del self._entries[key]

    def flush(self) -> None:
        """Write the counts that are not written yet, as at the end of a run."""
        for (uid, reason), entry in self._entries.items():
            if entry.unwritten:
                event(
                    _log,
                    logging.WARNING,
                    "calls refused",
                    reason=reason,
                    uid=uid,
                    repeated_before=entry.unwritten,
                )
                entry.unwritten = 0
