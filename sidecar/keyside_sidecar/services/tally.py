"""Tally of a batch: what became of its items, counted for the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyside.errors import KeysideError
from keyside_sidecar.errors import AccessRefused, Refused, SidecarError
from keyside_sidecar.services.failures import describe_failure

if TYPE_CHECKING:
    from keyside_sidecar.services.failures import Failure

# What the log has room for (audit/records.py): the versions and reasons with the largest counts.
_LISTED: Final = 100
_MAX_REASONS: Final = 20


class Tally:
    """Counts one batch.

    Args:
        path: The RPC's full name, for the log.
    """

    __slots__ = ("_failures", "_path", "_reasons", "_unexpected", "_used")

    def __init__(self, path: str) -> None:
        self._path = path
        self._used: dict[tuple[str, int, int], int] = {}
        self._reasons: dict[str, int] = {}
        self._failures = {True: 0, False: 0}  # by whether access control refused
        self._unexpected: Failure | None = None

    def count(self, key: str, version: int, items: int, *, new_version: int = 0) -> None:
        """Count items that succeeded; a negative number takes some back.

        Args:
            key: The key.
            version: The version that wrapped, or wraps, their data keys.
            items: How many.
            new_version: The version that they were rewrapped to.
        """
        place = key, version, new_version
        self._used[place] = self._used.get(place, 0) + items

    def fail(self, error: Exception) -> Failure:
        """Count an item that did not succeed; return what its caller is told."""
        failure = self._describe(error)
        self._failures[isinstance(error, (Refused, AccessRefused))] += 1
        self._reasons[failure.reason] = self._reasons.get(failure.reason, 0) + 1
        return failure

    def describe(self) -> dict[str, Any]:
        """Return outcome, count and details, as the audit log has them."""
        used = {place: count for place, count in self._used.items() if count}
        succeeded, refused, failed = sum(used.values()), *self._failures.values()
        details: dict[str, object] = {}
        listed = sorted(used.items(), key=_by_count)[:_LISTED]
        if listed:
            details["items"] = [
                {
                    "key": key,
                    "version": version,
                    **({"new_version": new_version} if new_version else {}),
                    "count": count,
                }
                for (key, version, new_version), count in sorted(listed)
            ]
        details["refused"], details["failed"] = refused, failed
        if unlisted := succeeded - sum(count for _, count in listed):
            details["unlisted"] = unlisted
        if self._reasons:
            details["reasons"] = dict(sorted(self._reasons.items(), key=_by_count)[:_MAX_REASONS])
        if succeeded:
            outcome = "partial" if refused or failed else "ok"
        elif failed:
            outcome = "failed"
        else:
            outcome = "refused" if refused else "ok"
        count = succeeded + refused + failed
        facts: dict[str, Any] = {"outcome": outcome, "count": count, "details": details}
        if len(self._reasons) == 1 and not succeeded:
            (facts["reason"],) = self._reasons
        if len(keys := {key for key, _, _ in used}) == 1:
            (facts["key"],) = keys
        if len(versions := {place[:2] for place in used}) == 1:
            ((_, facts["version"]),) = versions
        return facts

    def _describe(self, error: Exception) -> Failure:
        """Return an error's failure; what is unexpected is logged once for a batch."""
        expected = isinstance(error, (KeysideError, SidecarError))
        if self._unexpected is not None and not expected:
            return self._unexpected
        failure = describe_failure(error, self._path)
        if failure.reason == "INTERNAL":
            self._unexpected = failure
        return failure


def _by_count(entry: tuple[Any, int]) -> tuple[int, Any]:
    return -entry[1], entry[0]
