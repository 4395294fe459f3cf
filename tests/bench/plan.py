"""How thoroughly to measure: everything in a few minutes, or a first look in less than one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Args:
        rounds: Of what takes little time.
        slow_rounds: Of what takes seconds each.
        calls: Unary calls of one contender in one round.
        file_bytes: The file that is sealed.
        archives: How many archived versions the keys have that are compared.
        slice_s: How long something that takes microseconds is repeated in one round.
        soak_calls: How many calls a worker serves before its memory is looked at again.
        soak_s: How long the mixed load lasts.
    """

    rounds: int = 7
    slow_rounds: int = 3
    calls: int = 5_000
    file_bytes: int = 4 << 30
    archives: tuple[int, ...] = (100, 1_000, 10_000)
    slice_s: float = 0.15
    soak_calls: int = 1_000_000
    soak_s: float = 600.0


FULL = Plan()
QUICK = Plan(
    rounds=3,
    slow_rounds=1,
    calls=1_200,
    file_bytes=1 << 30,
    archives=(100, 1_000),
    slice_s=0.05,
    soak_calls=20_000,
    soak_s=20.0,
)
