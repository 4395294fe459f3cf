"""When a key rolls over: decided from facts, without I/O and without a clock.

A version's age is the larger of two: what the wall clock says, and the store's observed time
(store/observed.py), which no clock can put forward or back. So

* a wall clock that is put forward makes one version at most: the new one begins at that time;
* one that is put back reactivates nothing and stops nothing: observed time goes on;
* if everything was off for a month, the wall clock knows, and an expired key rolls over at once.

Observed time moves in steps, and a version notes the last one: up to a step's lead over the wall
clock is no sign of a clock that was put back, and decides nothing. So when a key rolls over next
follows from what the store holds alone, and every worker tells the same time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyside_sidecar.store import VersionInfo, VersionUsage

_LAST: Final = datetime.max.replace(tzinfo=UTC)
# The longest step of observed time (caretaker.py: three ticks of ten seconds).
_LONGEST_STEP_S: Final = 30.0
_MINUTE_S: Final = 60
# A successor is made when this part of a count is used up: its propagation should end in time.
_NEARLY: Final = (7, 8)


@dataclass(frozen=True, slots=True)
class RolloverPolicy:
    """When a key rolls over by itself: at whichever is reached first.

    Args:
        rotate_every_s: The current version's age, in seconds.
        rotate_after_messages: Messages sealed under it; None for however many.
        rotate_after_bytes: Bytes of plaintext sealed under it; None for however many.
        propagation_s: How long a successor exists before it becomes current, in seconds.
    """

    rotate_every_s: float
    rotate_after_messages: int | None
    rotate_after_bytes: int | None
    propagation_s: float


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by both clocks.

    Args:
        now: The wall clock's time, aware.
        observed_s: The store's observed time, in seconds.
    """

    now: datetime
    observed_s: float


class Step(enum.Enum):
    """What is to be done to a key."""

    MAKE_PENDING = "make a successor"
    ACTIVATE_PENDING = "make the successor current"
    ROTATE = "make a successor and make it current at once"


def decide(
    policy: RolloverPolicy,
    *,
    current: VersionInfo,
    pending: VersionInfo | None,
    usage: VersionUsage,
    moment: Moment,
) -> Step | None:
    """Return what is to be done to a key now, or None.

    Args:
        policy: The key's.
        current: Its current version.
        pending: Its successor, where it has one already.
        usage: Of the current version.
        moment: Now.
    """
    age_s = _age_s(current.activated_at, current.activated_observed_s, moment)
    expired = age_s >= policy.rotate_every_s or is_used_up(policy, usage)
    if expired and pending is None:
        return Step.ROTATE
    if pending is not None:
        # By observed time alone: what matters is that other sidecars had the time to load it.
        waited_s = moment.observed_s - (pending.created_observed_s or 0.0)
        return Step.ACTIVATE_PENDING if expired and waited_s >= policy.propagation_s else None
    near = age_s >= policy.rotate_every_s - policy.propagation_s or is_used_up(
        policy, usage, _NEARLY
    )
    return Step.MAKE_PENDING if near and policy.propagation_s > 0 else None


def compute_next_rollover(policy: RolloverPolicy, current: VersionInfo, moment: Moment) -> datetime:
    """Return when the current version's age will roll the key over, or should have.

    It is the same whenever and wherever it is asked. Where a clock was put back, it is earlier by
    as much, in whole minutes.

    Args:
        policy: The key's.
        current: Its current version.
        moment: Now.
    """
    since = current.activated_at or current.created_at
    lead_s = _lead_s(since, current.activated_observed_s, moment)
    earlier_s = round(lead_s / _MINUTE_S) * _MINUTE_S
    try:
        return since + timedelta(seconds=policy.rotate_every_s - earlier_s)
    except OverflowError:
        return _LAST


def clock_is_behind(current: VersionInfo, moment: Moment) -> bool:
    """Return whether the wall clock says that the current version is not current yet."""
    return current.activated_at is not None and moment.now < current.activated_at


def is_used_up(policy: RolloverPolicy, usage: VersionUsage, part: tuple[int, int] = (1, 1)) -> bool:
    """Return whether a part, by default all, of what a key may be used for is used."""
    return _is_over(usage.messages, policy.rotate_after_messages, part) or _is_over(
        usage.plaintext_bytes, policy.rotate_after_bytes, part
    )


def _is_over(used: int, limit: int | None, part: tuple[int, int]) -> bool:
    return limit is not None and used * part[1] >= limit * part[0]


def _age_s(since: datetime | None, since_observed_s: float | None, moment: Moment) -> float:
    by_clock_s = 0.0 if since is None else (moment.now - since).total_seconds()
    return max(by_clock_s + _lead_s(since, since_observed_s, moment), 0.0)


def _lead_s(since: datetime | None, since_observed_s: float | None, moment: Moment) -> float:
    """Return how much older a version is by observed time than by the wall clock; 0 for a step."""
    if since_observed_s is None:
        return 0.0
    by_clock_s = 0.0 if since is None else (moment.now - since).total_seconds()
    lead_s = moment.observed_s - since_observed_s - by_clock_s
    return lead_s if lead_s > _LONGEST_STEP_S else 0.0
