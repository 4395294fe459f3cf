"""Service calls, counted: with ``service_calls = "summary"``, one record for all of a kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

INTERVAL_S: Final = 10.0
_MAX_KINDS: Final = 1024
_COMMON: Final = ("outcome", "reason", "key", "version")


class Summary:
    """Counts calls. Pure: time is passed in."""

    def __init__(self) -> None:
        self._counts: dict[tuple[object, ...], int] = {}
        self._since_s = 0.0
        self._since = ""

    def add(self, record: Mapping[str, object], now_s: float, time: str) -> None:
        """Count one call; of a batch, each item, by its key and version."""
        details = record.get("details")
        items = details.get("items") if isinstance(details, dict) else None
        if not isinstance(items, list):
            self._add(record, now_s, time, 1)
            return
        listed = 0
        for item in items:
            listed += item["count"]
            one = {**record, "key": item["key"], "version": item["version"], "outcome": "ok"}
            self._add(one, now_s, time, item["count"])
        count = record.get("count")
        if isinstance(count, int) and count > listed:
            left = {name: record[name] for name in ("event", "caller") if name in record}
            self._add({**left, "outcome": record.get("outcome")}, now_s, time, count - listed)

    def _add(self, record: Mapping[str, object], now_s: float, time: str, count: int) -> None:
        if not self._counts:
            self._since_s, self._since = now_s, time
        caller = record.get("caller")
        who = caller if isinstance(caller, dict) else {}
        kind = (
            record.get("event"),
            *(record.get(name) for name in _COMMON),
            who.get("uid"),
            who.get("account"),
        )
        if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
            kind = (record.get("event"), *(None for _ in _COMMON), None, None)
        self._counts[kind] = self._counts.get(kind, 0) + count

    def take_due(self, now_s: float, *, everything: bool = False) -> list[dict[str, Any]]:
        """Return the records of what was counted, if it is time."""
        if not self._counts or (now_s - self._since_s < INTERVAL_S and not everything):
            return []
        due = [
            {
                "event": "encryption.summary",
                **{name: value for name, value in zip(_COMMON, kind[1:], strict=False) if value},
                **_name_caller(kind[-2], kind[-1]),
                "count": count,
                "details": {"operation": kind[0], "since": self._since},
            }
            for kind, count in self._counts.items()
        ]
        self._counts.clear()
        return due


def _name_caller(uid: object, account: object) -> dict[str, Any]:
    if uid is None:
        return {}
    return {"caller": {"uid": uid, **({"account": account} if account else {})}}
