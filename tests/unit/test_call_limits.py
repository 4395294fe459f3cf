"""Calls in flight, and how much one account may ask for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.server.pipeline.limit import CallLimits, Slot
from keyside_sidecar.services.allowance import Allowance


class StoppedClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return self.at_s


def test_one_uid_can_not_take_all_calls() -> None:
    """The limit per uid refuses with its reason, and leaves room for others."""
    limits = CallLimits(max_calls=10, max_calls_per_uid=2)
    limits.enter(1)
    limits.enter(1)
    with pytest.raises(Refused) as refused:
        limits.enter(1)
    assert refused.value.reason is Reason.TOO_MANY_CALLS
    limits.enter(2)
    limits.leave(1)
    limits.enter(1)


def test_the_limit_in_all_holds_across_uids() -> None:
    """A refused call is not counted."""
    limits = CallLimits(max_calls=2, max_calls_per_uid=2)
    limits.enter(1)
    limits.enter(2)
    for _ in range(5):
        with pytest.raises(Refused):
            limits.enter(3)
    limits.leave(1)
    limits.enter(3)


def test_a_place_is_kept_as_long_as_somebody_holds_it() -> None:
    """A call that is broken off at once keeps its place until its work is done."""
    limits = CallLimits(max_calls=1, max_calls_per_uid=1)
    limits.enter(1)
    slot = Slot(limits, 1)
    slot.hold()
    slot.leave()
    with pytest.raises(Refused):
        limits.enter(1)
    slot.leave()
    limits.enter(1)


def test_looks_that_find_nothing_run_out_and_come_back_with_time() -> None:
    """A stranger's guesses are limited per uid; another uid is not affected."""
    clock = StoppedClock()
    limit = Allowance(clock, burst=100, per_second=10)
    spent = 0
    while limit.has_some(1):
        limit.charge(1)
        spent += 1
    assert spent == 100
    assert limit.has_some(2)
    clock.at_s += 0.5
    assert limit.has_some(1)
    clock.at_s += 1000
    for _ in range(100):
        assert limit.has_some(1)
        limit.charge(1)


def test_the_table_of_looks_is_bounded() -> None:
    """Uids whose bucket is full again are forgotten."""
    clock = StoppedClock()
    limit = Allowance(clock, burst=100, per_second=10)
    for uid in range(5000):
        limit.charge(uid)
        clock.at_s += 0.2
    assert len(limit._spent) <= 4096
