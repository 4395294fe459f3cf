"""What is wrong with the store, since when; says so in the log once, and again when it is over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from keyside_sidecar.errors import (
    CustodyError,
    StoreSchemaError,
    StoreTampered,
    StoreUnavailable,
)
from keyside_sidecar.keys.notices import tell_nobody
from keyside_sidecar.log import event
from keyside_sidecar.severity import severity_of

if TYPE_CHECKING:
    from datetime import datetime

    from keyside_sidecar.clock import Clock
    from keyside_sidecar.keys.notices import Tell

_log = logging.getLogger(__name__)

STORE_UNAVAILABLE: Final = "STORE_UNAVAILABLE"
STORE_TAMPERED: Final = "STORE_TAMPERED"
STORE_SCHEMA: Final = "STORE_SCHEMA"
ROOT_KEY_UNUSABLE: Final = "ROOT_KEY_UNUSABLE"

# The first of these that is wrong is the one that is told.
_ORDER: Final = (STORE_TAMPERED, ROOT_KEY_UNUSABLE, STORE_SCHEMA, STORE_UNAVAILABLE)


class StoreProblem(NamedTuple):
    """Why the store can't be used or trusted.

    Args:
        reason: A constant: ``STORE_TAMPERED``, ``ROOT_KEY_UNUSABLE``, ``STORE_SCHEMA`` or
            ``STORE_UNAVAILABLE``.
        since: When it was first noticed.
        summary: One sentence.
        remedy: What to do about it.
    """

    reason: str
    since: datetime
    summary: str
    remedy: str


class StoreHealth:
    """Gathers what the keyring notices about its store.

    Args:
        clock: For since when.
        tell: Told of each problem and of its end.
    """

    def __init__(self, clock: Clock, tell: Tell = tell_nobody) -> None:
        self._clock = clock
        self._tell = tell
        self._since: dict[str, datetime] = {}
        self._said: dict[str, str] = {}
        self._remedies: dict[str, str] = {}

    @property
    def problem(self) -> StoreProblem | None:
        """The worst that is wrong now."""
        for reason in _ORDER:
            if reason in self._since:
                said, remedy = self._said[reason], self._remedies[reason]
                return StoreProblem(reason, self._since[reason], said, remedy)
        return None

    def has(self, reason: str) -> bool:
        """Return whether this is wrong now, among other things or alone."""
        return reason in self._since

    @property
    def is_doubtful(self) -> bool:
        """Whether something was found that only checking the whole store again can clear."""
        return STORE_TAMPERED in self._since or ROOT_KEY_UNUSABLE in self._since

    def note(self, error: Exception) -> None:
        """Take note of what a call to the store has raised."""
        reason = _name(error)
        text = str(error)
        self._remedies[reason] = remedy = getattr(error, "remedy", "") or StoreUnavailable.remedy
        if self._said.get(reason) != text:
            self._said[reason] = text
            facts = {"reason": reason, "summary": text, "what_to_do": remedy}
            event(_log, severity_of(reason).log_level, "store problem", **facts)
            told = {"outcome": "failed", "reason": reason, "details": {"why": text}}
            self._tell("store.problem", told)
        self._since.setdefault(reason, self._clock.now())

    def clear_absence(self) -> None:
        """The store has answered."""
        self._clear(STORE_UNAVAILABLE, STORE_SCHEMA)

    def clear_doubt(self) -> None:
        """The whole store was checked, and everything fits."""
        self._clear(STORE_TAMPERED, ROOT_KEY_UNUSABLE)

    def _clear(self, *reasons: str) -> None:
        for reason in reasons:
            since = self._since.pop(reason, None)
            self._said.pop(reason, None)
            if since is not None:
                event(_log, logging.WARNING, "store problem is over", reason=reason, since=since)
                self._tell("store.sound", {"outcome": "ok", "reason": reason})


def _name(error: Exception) -> str:
    if isinstance(error, StoreTampered):
        return STORE_TAMPERED
    if isinstance(error, StoreSchemaError):
        return STORE_SCHEMA
    if isinstance(error, CustodyError):
        return ROOT_KEY_UNUSABLE
    return STORE_UNAVAILABLE
