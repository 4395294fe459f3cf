"""What a key version may be used for, and how it gets from one state to another. Pure.

::

    PENDING ───► CURRENT ───► ARCHIVED ◄───► DISABLED ───► DESTROYED
       │            │                            ▲
       └────────────┴────────────────────────────┘

* PENDING: made, not used for sealing yet; every sidecar can have it before it becomes current.
* CURRENT: seals and opens. A key has exactly one. It leaves this state only in the same
  transaction in which its successor takes it: to ARCHIVED, or, where it is compromised, to
  DISABLED, and a PENDING one with it.
* ARCHIVED: opens only, for ever if nobody decides otherwise (I5).
* DISABLED: refused; enabling it makes it ARCHIVED, never CURRENT. Scheduling a version's
  destruction disables it at once: what still needs it shows while it can be brought back.
* DESTROYED: its material is gone; the row stays and nothing leads out of it.

A current version can't be destroyed, and no version becomes current twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.store import VersionState

if TYPE_CHECKING:
    from collections.abc import Mapping

TRANSITIONS: Final[Mapping[VersionState, frozenset[VersionState]]] = {
    VersionState.PENDING: frozenset({VersionState.CURRENT, VersionState.DISABLED}),
    VersionState.CURRENT: frozenset({VersionState.ARCHIVED, VersionState.DISABLED}),
    VersionState.ARCHIVED: frozenset({VersionState.DISABLED}),
    VersionState.DISABLED: frozenset({VersionState.ARCHIVED, VersionState.DESTROYED}),
    VersionState.DESTROYED: frozenset(),
}

# PENDING opens too: another sidecar may have made the version current a moment ago and sealed
# under it, before this one has heard of it.
_OPENS: Final = frozenset({VersionState.PENDING, VersionState.CURRENT, VersionState.ARCHIVED})


def may_open(state: VersionState) -> bool:
    """Return whether envelopes may be opened under a version in ``state``."""
    return state in _OPENS


def may_follow(old: VersionState, new: VersionState) -> bool:
    """Return whether a version may be in ``new`` after it was in ``old``, by any allowed path."""
    reached = {old}
    while new not in reached:
        further = reached.union(*(TRANSITIONS[state] for state in reached))
        if further == reached:
            return False
        reached = further
    return True
