"""Whether this worker serves, what is wrong, and since when.

    STARTING ──► RUNNING ──► DRAINING

STARTING and DRAINING are NOT_SERVING for everything. While RUNNING (I12), ``""`` and
EncryptionService serve as long as every key's current version is in memory, store or no store: a
liveness probe must not kill a sidecar that serves from memory. KeyService and AccessService need
the store, and an audit log that can be written (I8); EncryptionService needs the log as far as
``[audit] on_failure`` says. StatusService and AuditService always answer. A store that was tampered
with turns ``""`` red, and KeyService and AccessService (I6). A log that fails turns ``""`` red, and
so does a root key that is no longer where it is kept. EncryptionService goes on with what was
authentic when it was read.

A worker whose successors serve already (a reload) is RUNNING until its callers have gone to them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from keyside_sidecar.severity import Severity, severity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyside_sidecar.clock import Clock


class Phase(enum.Enum):
    """Where the worker is in its life."""

    STARTING = enum.auto()
    RUNNING = enum.auto()
    DRAINING = enum.auto()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, or that weakens the protection.

    Args:
        reason: A constant such as ``"STORE_UNAVAILABLE"``.
        summary: One sentence.
        remedy: What to do about it.
        since: When it was first seen.
        blocks_encryption: It keeps some EncryptionService call from being served.
        blocks_keys: It keeps KeyService and AccessService from being served.
        summary_for_strangers: What callers who are allowed nothing are told in its place; nothing
            unless given.
        is_alarm: It turns health red for the sidecar as a whole, whatever is still served (I6).
    """

    reason: str
    summary: str
    remedy: str
    since: datetime
    blocks_encryption: bool = False
    blocks_keys: bool = False
    summary_for_strangers: str = ""
    is_alarm: bool = False

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return severity_of(self.reason)


class Notice(NamedTuple):
    """What the supervisor has to say: for the fields see ``Problem``.

    ``since_s``, in seconds since 1970, is the supervisor's to fill in: every worker tells the same,
    one that is started later too.
    """

    reason: str
    summary: str
    remedy: str
    is_alarm: bool = False
    since_s: float = 0.0


class ServingBoard:
    """Gathers problems from those who see them.

    Args:
        clock: For since when.
        started_at: When the sidecar was started, as far as that was before this worker.
    """

    def __init__(self, clock: Clock, started_at: datetime | None = None) -> None:
        self.phase = Phase.STARTING
        self.started_at = started_at or clock.now()
        # Successors serve: calls that last end, so that they come back to those.
        self.is_succeeded = False
        self._notices: tuple[Problem, ...] = ()
        self._standing: list[Problem] = []
        self._sources: list[Callable[[], Iterable[Problem]]] = []

    def add_standing(self, reason: str, summary: str, remedy: str) -> None:
        """Add something that holds for the whole run and blocks nothing."""
        self._standing.append(Problem(reason, summary, remedy, self.started_at))

    def set_notices(self, notices: Iterable[Notice]) -> None:
        """Show what the supervisor has to say, in place of what it said before."""
        self._notices = tuple(
            Problem(
                notice.reason,
                notice.summary,
                notice.remedy,
                datetime.fromtimestamp(notice.since_s, UTC),
                is_alarm=notice.is_alarm,
            )
            for notice in notices
        )

    def add_source(self, source: Callable[[], Iterable[Problem]]) -> None:
        """Ask ``source`` for its problems whenever someone wants to know."""
        self._sources.append(source)

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong now, what blocks first."""
        found = [problem for source in self._sources for problem in source()]
        found.sort(key=lambda problem: not (problem.blocks_encryption or problem.blocks_keys))
        return (*found, *self._notices, *self._standing)

    def is_degraded(self) -> bool:
        """Return whether anything needs attention: notes do not."""
        return any(problem.severity > Severity.NOTE for problem in self.problems())

    def serves_encryption(self) -> bool:
        """Return whether EncryptionService is served."""
        return self.phase is Phase.RUNNING and not any(
            problem.blocks_encryption for problem in self.problems()
        )

    def is_well(self) -> bool:
        """Return whether the sidecar as a whole serves, and nothing raises an alarm."""
        return self.serves_encryption() and not any(problem.is_alarm for problem in self.problems())

    def serves_keys(self) -> bool:
        """Return whether KeyService and AccessService are served."""
        return self.phase is Phase.RUNNING and not any(
            problem.blocks_keys for problem in self.problems()
        )
