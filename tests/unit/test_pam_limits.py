"""How failures are limited in rate, on a clock of the test's own."""

from __future__ import annotations

import pytest

from keyside_sidecar.pam import limits
from keyside_sidecar.pam.errand import Fault, Outcome, Verdict, read_exit_code
from keyside_sidecar.pam.limits import FailureLimits

UID = 70001
OTHER = 70002


class Clock:
    """Seconds, as the test has them."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.mark.parametrize(
    ("failures", "wait_s"),
    [(0, 0), (1, 0), (2, 0), (3, 5), (4, 10), (5, 20), (6, 40), (10, 640), (11, 900), (99, 900)],
)
def test_from_the_third_failure_on_the_wait_doubles_up_to_a_quarter_of_an_hour(
    clock: Clock, failures: int, wait_s: float
) -> None:
    counted = FailureLimits(clock)
    for _ in range(failures):
        clock.now_s += counted.wait_s(UID)
        counted.note_failure(UID)
    assert counted.wait_s(UID) == wait_s
    clock.now_s += wait_s
    assert counted.wait_s(UID) == 0


def test_success_is_a_fresh_start_for_that_uid_alone(clock: Clock) -> None:
    counted = FailureLimits(clock)
    for uid in (UID, OTHER) * 3:
        counted.note_failure(uid)
    counted.note_success(UID)
    assert (counted.wait_s(UID), counted.wait_s(OTHER)) == (0, 5)


@pytest.mark.parametrize(
    ("later_s", "wait_s"), [(5 + 299.0, 10), (5 + 301.0, 0)], ids=["remembered", "forgotten"]
)
def test_failures_are_forgotten_five_minutes_after_the_wait(
    clock: Clock, later_s: float, wait_s: float
) -> None:
    """Whoever fails once more by then waits longer; afterwards it is the first failure again."""
    counted = FailureLimits(clock)
    for _ in range(3):
        counted.note_failure(UID)
    clock.now_s += later_s
    counted.note_failure(UID)
    assert counted.wait_s(UID) == wait_s


def test_many_uids_do_not_fill_the_memory_nor_set_anybody_free(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UIDS", 10)
    counted = FailureLimits(clock)
    for _ in range(5):
        counted.note_failure(UID)
    for uid in range(100):
        clock.now_s += 0.1
        if not counted.wait_s(uid):
            counted.note_failure(uid)
    assert len(counted._failures) == 10
    assert counted.wait_s(UID) > 0, "nobody is forgotten for others"
    assert counted.wait_s(99) == 5, "while so many have failed, others have to wait"
    clock.now_s += 3600
    assert counted.wait_s(99) == 0


@pytest.mark.parametrize(
    "verdict",
    [
        *(Verdict(each) for each in Outcome if each is not Outcome.UNAVAILABLE),
        *(Verdict(Outcome.UNAVAILABLE, each) for each in Fault),
    ],
    ids=lambda verdict: (verdict.fault or verdict.outcome).name,
)
def test_a_verdict_survives_the_exit_code(verdict: Verdict) -> None:
    assert read_exit_code(verdict.exit_code) == verdict


@pytest.mark.parametrize("code", [0, 1, 2, 70, 127, 134, 255, -6, -9, -11])
def test_no_other_end_of_a_process_is_an_answer(code: int) -> None:
    """0 is what a module that calls exit(0) leaves; success is another code."""
    assert read_exit_code(code) == Verdict(Outcome.UNAVAILABLE)
