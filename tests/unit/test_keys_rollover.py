"""When a key rolls over: tables of decisions over policy, versions, both clocks and usage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.names import KeyName, VersionNumber
from keyside_sidecar.keys.rollover import (
    Moment,
    RolloverPolicy,
    Step,
    clock_is_behind,
    compute_next_rollover,
    decide,
)
from keyside_sidecar.store import VersionInfo, VersionState, VersionUsage

DAY = 86_400.0
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MOMENT = Moment(NOW, 1_000 * DAY)
UNUSED = VersionUsage()

AGE = RolloverPolicy(90 * DAY, None, None, 60.0)
AT_ONCE = RolloverPolicy(90 * DAY, None, None, 0.0)
COUNTED = RolloverPolicy(90 * DAY, 8_000, 8 << 20, 60.0)
COUNTED_AT_ONCE = RolloverPolicy(90 * DAY, 8_000, 8 << 20, 0.0)
SHORT = RolloverPolicy(3_600.0, None, None, 1_800.0)


class Age(NamedTuple):
    """How long ago something was, by the wall clock and in observed time (None: not recorded)."""

    clock_s: float
    observed_s: float | None


class Row(NamedTuple):
    """What is decided upon, and what is to be decided."""

    policy: RolloverPolicy
    current: Age
    pending: Age | None
    usage: VersionUsage
    expected: Step | None


def used(messages: int = 0, plaintext_bytes: int = 0) -> VersionUsage:
    return VersionUsage(messages=messages, plaintext_bytes=plaintext_bytes)


def make_version(
    number: int, state: VersionState, at: datetime, observed_s: float | None
) -> VersionInfo:
    pending = state is VersionState.PENDING
    return VersionInfo(
        key_name=KeyName("mail"),
        number=VersionNumber(number),
        version_id=bytes([number]) * 16,
        state=state,
        created_at=at,
        created_observed_s=observed_s,
        activated_at=None if pending else at,
        activated_observed_s=None if pending else observed_s,
    )


def make_aged(number: int, state: VersionState, age: Age) -> VersionInfo:
    observed_s = None if age.observed_s is None else MOMENT.observed_s - age.observed_s
    return make_version(number, state, NOW - timedelta(seconds=age.clock_s), observed_s)


def even(seconds: float) -> Age:
    """Both clocks agree."""
    return Age(seconds, seconds)


MAKE, ACTIVATE, ROTATE = Step.MAKE_PENDING, Step.ACTIVATE_PENDING, Step.ROTATE
TABLE = {
    # --- by age
    "new": Row(AGE, even(0), None, UNUSED, None),
    "in the middle of its life": Row(AGE, even(45 * DAY), None, UNUSED, None),
    "just not near": Row(AGE, even(90 * DAY - 60.001), None, UNUSED, None),
    "near to the second": Row(AGE, even(90 * DAY - 60), None, UNUSED, MAKE),
    "nearly expired, no successor": Row(AGE, even(90 * DAY - 0.001), None, UNUSED, MAKE),
    "expired to the second, no successor": Row(AGE, even(90 * DAY), None, UNUSED, ROTATE),
    "everything was off for a month": Row(AGE, Age(120 * DAY, 89 * DAY), None, UNUSED, ROTATE),
    "off for years": Row(AGE, Age(5000 * DAY, 1 * DAY), None, UNUSED, ROTATE),
    "near, has a successor": Row(AGE, even(90 * DAY - 30), even(30), UNUSED, None),
    "successor too old, key not expired": Row(AGE, even(90 * DAY - 1), even(600), UNUSED, None),
    "successor of long ago, key not near": Row(AGE, even(DAY), even(DAY), UNUSED, None),
    "expired, successor just too new": Row(AGE, even(90 * DAY), even(59.999), UNUSED, None),
    "expired, successor old enough": Row(AGE, even(90 * DAY), even(60), UNUSED, ACTIVATE),
    "expired long ago, successor new": Row(AGE, even(190 * DAY), even(0), UNUSED, None),
    "expired long ago, successor old": Row(AGE, even(190 * DAY), even(9 * DAY), UNUSED, ACTIVATE),
    # --- no propagation
    "at once: just not expired": Row(AT_ONCE, even(90 * DAY - 0.001), None, UNUSED, None),
    "at once: expired": Row(AT_ONCE, even(90 * DAY), None, UNUSED, ROTATE),
    "at once: expired, a successor is there": Row(
        AT_ONCE, even(90 * DAY), even(0), UNUSED, ACTIVATE
    ),
    "at once: nearly used up": Row(COUNTED_AT_ONCE, even(DAY), None, used(7_999), None),
    "at once: used up": Row(COUNTED_AT_ONCE, even(DAY), None, used(8_000), ROTATE),
    # --- half of its life is propagation
    "shortest life: before the half": Row(SHORT, even(1_799.9), None, UNUSED, None),
    "shortest life: at the half": Row(SHORT, even(1_800), None, UNUSED, MAKE),
    "shortest life: at its end": Row(SHORT, even(3_600), even(1_800), UNUSED, ACTIVATE),
    # --- by messages
    "messages: none": Row(COUNTED, even(DAY), None, used(0), None),
    "messages: just not near": Row(COUNTED, even(DAY), None, used(6_999), None),
    "messages: 7/8": Row(COUNTED, even(DAY), None, used(7_000), MAKE),
    "messages: 7/8, has a successor": Row(COUNTED, even(DAY), even(DAY), used(7_000), None),
    "messages: just not used up": Row(COUNTED, even(DAY), even(DAY), used(7_999), None),
    "messages: used up, no successor": Row(COUNTED, even(DAY), None, used(8_000), ROTATE),
    "messages: used up, successor new": Row(COUNTED, even(DAY), even(59), used(8_000), None),
    "messages: used up, successor old": Row(COUNTED, even(DAY), even(60), used(8_000), ACTIVATE),
    "messages: far over": Row(COUNTED, even(DAY), None, used(1 << 62), ROTATE),
    "messages: no limit": Row(AGE, even(DAY), None, used(1 << 62, 1 << 62), None),
    # --- by bytes
    "bytes: just not near": Row(COUNTED, even(DAY), None, used(1, (7 << 20) - 1), None),
    "bytes: 7/8": Row(COUNTED, even(DAY), None, used(1, 7 << 20), MAKE),
    "bytes: used up, no successor": Row(COUNTED, even(DAY), None, used(1, 8 << 20), ROTATE),
    "bytes: used up, successor old": Row(COUNTED, even(DAY), even(60), used(1, 8 << 20), ACTIVATE),
    # --- clocks that disagree: the older of two ages counts
    "clock back by a year": Row(AGE, Age(-365 * DAY, 5 * DAY), None, UNUSED, None),
    "clock back by a year, life over": Row(AGE, Age(-275 * DAY, 90 * DAY), None, UNUSED, ROTATE),
    "clock back by a year, near": Row(AGE, Age(-275 * DAY, 90 * DAY - 60), None, UNUSED, MAKE),
    "clock back, successor waits in observed time": Row(
        AGE, Age(-275 * DAY, 90 * DAY), Age(-275 * DAY, 59), UNUSED, None
    ),
    "clock back, successor has waited": Row(
        AGE, Age(-275 * DAY, 90 * DAY), Age(-275 * DAY, 60), UNUSED, ACTIVATE
    ),
    "clock back, used up": Row(COUNTED, Age(-DAY, 0), None, used(8_000), ROTATE),
    "clock forward by a year": Row(AGE, Age(370 * DAY, 5 * DAY), None, UNUSED, ROTATE),
    "clock forward, successor is there": Row(
        AGE, Age(370 * DAY, 5 * DAY), Age(366 * DAY, DAY), UNUSED, ACTIVATE
    ),
    "clock forward into the last minute": Row(
        AGE, Age(90 * DAY - 1, 5 * DAY), None, UNUSED, MAKE
    ),
    "both clocks before its time": Row(AGE, Age(-DAY, -DAY), None, UNUSED, None),
    # --- what was made before observed time was recorded
    "not recorded: by the clock alone": Row(AGE, Age(90 * DAY, None), None, UNUSED, ROTATE),
    "not recorded: not expired": Row(AGE, Age(89 * DAY, None), None, UNUSED, None),
    "not recorded: successor by the clock": Row(
        AGE, Age(90 * DAY, None), Age(60, None), UNUSED, ACTIVATE
    ),
    "not recorded, clock back": Row(AGE, Age(-DAY, None), None, UNUSED, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    row = TABLE[name]
    current = make_aged(1, VersionState.CURRENT, row.current)
    pending = row.pending and make_aged(2, VersionState.PENDING, row.pending)
    for _ in range(2):  # nothing is remembered
        step = decide(row.policy, current=current, pending=pending, usage=row.usage, moment=MOMENT)
        assert step is row.expected


NEXT = {
    "new": (even(0), 90 * DAY),
    "in the middle": (even(40 * DAY), 50 * DAY),
    "due": (even(90 * DAY), 0),
    "overdue": (even(900 * DAY), -810 * DAY),
    "clock back: what is left by observed time": (Age(-DAY, 40 * DAY), 50 * DAY),
    "clock back, nothing observed": (Age(-DAY, 0), 90 * DAY),
    "off meanwhile: what is left by the clock": (Age(40 * DAY, 10 * DAY), 50 * DAY),
    "not recorded": (Age(40 * DAY, None), 50 * DAY),
}


@pytest.mark.parametrize("name", NEXT)
def test_next_rollover(name: str) -> None:
    age, left_s = NEXT[name]
    current = make_aged(1, VersionState.CURRENT, age)
    assert compute_next_rollover(AGE, current, MOMENT) == NOW + timedelta(seconds=left_s)


def test_next_rollover_is_one_time_whoever_is_asked_and_whenever() -> None:
    """Observed time moves in steps of ten seconds and each worker learns of them on its own."""
    key = make_key(AGE, (NOW, 995.0), None, UNUSED)  # the last step was five seconds ago
    told = {
        compute_next_rollover(
            AGE, key.current, Moment(NOW + timedelta(seconds=second + late), observed_s)
        )
        for second in range(0, 300, 7)
        for late in (0.0, 0.4)
        for observed_s in (990.0 + second, 1_000.0 + second, 1_010.0 + second)
    }
    assert told == {NOW + timedelta(days=90)}


def test_a_rollover_comes_when_it_was_said_to_come() -> None:
    """Observed time's step, which is ahead of the clock, does not bring it earlier."""
    key = make_key(AGE, (NOW, 995.0), None, UNUSED)
    due = compute_next_rollover(AGE, key.current, Moment(NOW, 1_000.0))
    before = Moment(due - timedelta(seconds=1), 995.0 + 90 * DAY + 9.0)
    expired = {Step.ROTATE, Step.ACTIVATE_PENDING}
    assert key.decide(before) not in expired
    assert (
        decide(AT_ONCE, current=key.current, pending=None, usage=UNUSED, moment=Moment(due, 0.0))
        in expired
    )


BEHIND = {"a second before": (-1.0, True), "the same time": (0.0, False), "after": (1.0, False)}


@pytest.mark.parametrize("name", BEHIND)
def test_clock_is_behind(name: str) -> None:
    clock_s, expected = BEHIND[name]
    current = make_aged(1, VersionState.CURRENT, Age(clock_s, 10 * DAY))
    assert clock_is_behind(current, MOMENT) is expected


def test_clock_is_not_behind_where_nothing_is_recorded() -> None:
    assert not clock_is_behind(make_aged(1, VersionState.PENDING, Age(-5, None)), MOMENT)


# --- whatever the times are

EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
MOMENTS = st.builds(
    Moment,
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=14))])),
    st.floats(0, 1e12),
)
POLICIES = st.builds(
    lambda rotate_every_s, messages, plaintext_bytes, part: RolloverPolicy(
        rotate_every_s, messages, plaintext_bytes, rotate_every_s * part
    ),
    st.floats(3_600, 3_650 * DAY),
    st.none() | st.integers(1_000, 10**15),
    st.none() | st.integers(1 << 20, 1 << 50),
    st.sampled_from([0.0, 0.001, 0.1, 0.5]),
)
USAGES = st.builds(used, st.integers(0, 1 << 62), st.integers(0, 1 << 62))
STAMPS = st.tuples(st.datetimes(timezones=st.just(UTC)), st.none() | st.floats(0, 1e12))


@dataclass
class Key:
    """A key as the store would have it after each step."""

    policy: RolloverPolicy
    current: VersionInfo
    pending: VersionInfo | None
    usage: VersionUsage

    def decide(self, moment: Moment) -> Step | None:
        """Decide, and leave everything as it is."""
        return decide(
            self.policy,
            current=self.current,
            pending=self.pending,
            usage=self.usage,
            moment=moment,
        )

    def take(self, step: Step, moment: Moment) -> None:
        """Do what was decided."""
        number = 1 + (self.pending or self.current).number
        stamp = moment.now, moment.observed_s
        if step is Step.MAKE_PENDING:
            assert self.pending is None
            self.pending = make_version(number % 256, VersionState.PENDING, *stamp)
            return
        if step is Step.ROTATE:
            assert self.pending is None
        else:
            assert self.pending is not None
        self.current = make_version(number % 256, VersionState.CURRENT, *stamp)
        self.pending, self.usage = None, UNUSED


def make_key(
    policy: RolloverPolicy,
    current: tuple[datetime, float | None],
    pending: tuple[datetime, float | None] | None,
    usage: VersionUsage,
) -> Key:
    return Key(
        policy,
        make_version(1, VersionState.CURRENT, *current),
        make_version(2, VersionState.PENDING, *pending) if pending else None,
        usage,
    )


KEYS = st.builds(make_key, POLICIES, STAMPS, st.none() | STAMPS, USAGES)


@given(KEYS, MOMENTS)
def test_after_any_step_nothing_more_is_decided_at_the_same_moment(
    key: Key, moment: Moment
) -> None:
    """So a sidecar that is slow to see its own change does nothing twice."""
    step = key.decide(moment)
    if step is not None:
        key.take(step, moment)
        assert key.decide(moment) is None


@given(KEYS, MOMENTS, MOMENTS)
def test_a_decision_depends_on_nothing_but_its_arguments(
    key: Key, moment: Moment, other: Moment
) -> None:
    first = key.decide(moment)
    key.decide(other)
    assert key.decide(moment) is first


@given(KEYS, MOMENTS, st.datetimes(timezones=st.just(UTC)))
def test_a_clock_that_jumps_ahead_makes_one_version_at_most(
    key: Key, moment: Moment, ahead: datetime
) -> None:
    """Nor does it make another when it is put right again: observed time has not moved."""
    key = dataclasses.replace(key, pending=None)
    for version_moment in (moment, Moment(ahead, moment.observed_s), moment):
        before = key.current
        made = 0
        while (step := key.decide(version_moment)) is not None:
            key.take(step, version_moment)
            made += key.current is not before
            before = key.current
        assert made <= 1


JUMPS = st.lists(
    st.tuples(st.floats(0, 40 * DAY), st.floats(-4_000 * DAY, 4_000 * DAY) | st.just(0.0)),
    max_size=40,
)


@given(JUMPS)
def test_versions_made_are_bounded_by_observed_time_and_jumps_ahead(
    jumps: list[tuple[float, float]],
) -> None:
    """The wall clock may do what it likes: each jump ahead is good for one version."""
    moment = MOMENT
    key = make_key(AGE, (moment.now, moment.observed_s), None, UNUSED)
    made = jumps_ahead = 0
    for passed_s, jump_s in jumps:
        step_s = timedelta(seconds=passed_s + jump_s)
        moment = Moment(moment.now + step_s, moment.observed_s + passed_s)
        jumps_ahead += jump_s > 0
        step = key.decide(moment)
        if step is not None:
            key.take(step, moment)
            made += step is not Step.MAKE_PENDING
    lived_s = moment.observed_s - MOMENT.observed_s
    assert made <= jumps_ahead + lived_s / AGE.rotate_every_s


@given(st.floats(-4_000 * DAY, 0))
def test_a_clock_that_is_put_back_does_not_keep_a_key_from_rolling_over(back_s: float) -> None:
    """By observed time alone, once a minute: a successor, and 60 s later its turn."""
    key = make_key(SHORT, (NOW, 0.0), None, UNUSED)
    steps = []
    for minute in range(121):
        moment = Moment(NOW + timedelta(seconds=back_s), minute * 60.0)
        step = key.decide(moment)
        if step is not None:
            steps.append((minute, step))
            key.take(step, moment)
    assert steps == [(30, MAKE), (60, ACTIVATE), (90, MAKE), (120, ACTIVATE)]


@given(KEYS, MOMENTS)
def test_display_never_fails(key: Key, moment: Moment) -> None:
    """Time arithmetic stays within what can be shown."""
    assert EARLIEST <= compute_next_rollover(key.policy, key.current, moment) <= LATEST
    clock_is_behind(key.current, moment)


@pytest.mark.parametrize("now", [EARLIEST, LATEST])
@pytest.mark.parametrize("then", [EARLIEST, LATEST])
def test_ends_of_time_are_times_like_any_other(now: datetime, then: datetime) -> None:
    key = make_key(AGE, (then, None), (then, None), UNUSED)
    moment = Moment(now, 0.0)
    assert key.decide(moment) is None, "propagation is not a matter of the wall clock"
    waited = Moment(now, 1e9)
    assert key.decide(waited) is (ACTIVATE if now > then else None)
    assert then <= compute_next_rollover(AGE, key.current, moment) <= LATEST
