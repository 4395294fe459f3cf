"""Refusals, counted: the first at once, then how many there were, at intervals that grow.

A stranger can be refused as often as it likes, and must not fill the disk by it. So for each
(uid, reason) the first refusal is recorded at once; what follows within 10 seconds is one record
with a count, what follows then within 20 seconds another one, and so on up to 10 minutes. After two
quiet intervals it begins anew. The table is bounded, and so is how fast it takes new entries (one
account may have thousands of uids of its own): 256 at once, then one a second. Beyond that
everything else is counted together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[int, str]

_FIRST_INTERVAL_S: Final = 10.0
_MAX_INTERVAL_S: Final = 600.0
_MAX_ENTRIES: Final = 1024
_NEW_AT_ONCE: Final = 256.0
_NEW_PER_S: Final = 1.0
_REST: Final[Key] = (-1, "")


@dataclass(slots=True)
class _Entry:
    record: dict[str, Any]
    until_s: float
    interval_s: float
    count: int = 0
    since: str = ""


class Coalescer:
    """Decides which refusals become a record of their own. Pure: time is passed in."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._tokens = _NEW_AT_ONCE
        self._filled_s = 0.0

    def note(self, key: Key, record: Mapping[str, object], now_s: float, time: str) -> bool:
        """Count a refusal; return whether it is to be recorded by itself, at once.

        Args:
            key: Whose, and why.
            record: What the record says; what is told with a count is cut down.
            now_s: A monotonic clock's time.
            time: The wall clock's time, as records have it.
        """
        entry = self._entries.get(key)
        if entry is None and not self._has_room(now_s):
            key, entry = _REST, self._entries.get(_REST)
        if entry is None:
            kept = _cut_down(record) if key is not _REST else {"event": record.get("event")}
            until_s = now_s + _FIRST_INTERVAL_S
            self._entries[key] = _Entry(kept, until_s, _FIRST_INTERVAL_S)
            return True
        entry.since = entry.since or time
        entry.count += 1
        return False

    def _has_room(self, now_s: float) -> bool:
        """Return whether there may be a new entry; that uses a token up."""
        since_s, self._filled_s = now_s - self._filled_s, now_s
        self._tokens = min(self._tokens + max(0.0, since_s) * _NEW_PER_S, _NEW_AT_ONCE)
        if len(self._entries) >= _MAX_ENTRIES or self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def take_due(self, now_s: float, *, everything: bool = False) -> list[dict[str, Any]]:
        """Return the records of what was counted, as far as it is time; forget what is quiet."""
        due = []
        for key, entry in list(self._entries.items()):
            if now_s < entry.until_s and not everything:
                continue
            if entry.count:
                due.append(
                    {**entry.record, "count": entry.count, "details": {"since": entry.since}}
                )
                entry.count, entry.since = 0, ""
                entry.interval_s = min(entry.interval_s * 2, _MAX_INTERVAL_S)
                entry.until_s = now_s + entry.interval_s
            elif now_s >= entry.until_s + entry.interval_s:
                del self._entries[key]
        return due


def _cut_down(record: Mapping[str, object]) -> dict[str, Any]:
    """Return what all refusals of one uid for one reason have in common."""
    kept = {name: record[name] for name in ("event", "outcome", "reason") if name in record}
    caller = record.get("caller")
    if isinstance(caller, dict):
        kept["caller"] = {
            name: caller[name] for name in ("uid", "account") if caller.get(name) is not None
        }
    return kept
