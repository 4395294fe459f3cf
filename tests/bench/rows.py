"""What a benchmark finds: one row for each comparison, and whether it reaches its target."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Figures: TypeAlias = dict[str, float]
Taken: TypeAlias = "dict[str, list[Figures]]"


@dataclass(frozen=True)
class Target:
    """What a row has to reach.

    Args:
        bound: Of the ratio, or of our own figure.
        of_ratio: Which of the two.
        at_least: Whether more is better.
        aim: What is hoped for beyond it.
    """

    bound: float
    of_ratio: bool = True
    at_least: bool = True
    aim: float | None = None


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        name: What was done, and what it is compared with.
        unit: Of both figures.
        ours: The median of our figures.
        theirs: The median of theirs, where there is somebody to compare with.
        ratio: The median of ours / theirs, round by round.
        rounds: How many.
        target: What it has to reach, where something was promised.
        facts: Further figures that belong to it, by name and unit.
        low: The lowest of our figures (of the ratios, where there are some).
        high: The highest.
    """

    name: str
    unit: str
    ours: float
    rounds: int
    theirs: float | None = None
    ratio: float | None = None
    target: Target | None = None
    facts: Figures = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    @property
    def judged(self) -> float:
        """What the target is about."""
        if self.target is not None and self.target.of_ratio:
            assert self.ratio is not None
            return self.ratio
        return self.ours

    @property
    def score(self) -> float | None:
        """How many times better than its target it is; below 1 it misses it."""
        if self.target is None:
            return None
        if self.target.at_least:
            return self.judged / self.target.bound
        # A growth, or a count of failures, may be nothing at all.
        return self.target.bound / self.judged if self.judged > 0 else float("inf")

    @property
    def met(self) -> bool | None:
        """Whether it reaches its target."""
        if self.target is None:
            return None
        if self.target.at_least:
            return self.judged >= self.target.bound
        return self.judged <= self.target.bound

    @property
    def target_text(self) -> str:
        """The target; of our own figure, in the row's unit."""
        if self.target is None:
            return ""
        sign = "≥" if self.target.at_least else "≤"
        unit = " ×" if self.target.of_ratio else ""
        text = f"{sign} {write_number(self.target.bound)}{unit}"
        if self.target.aim is not None:
            text += f" (aim: {write_number(self.target.aim)})"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return it for the file."""
        facts = asdict(self) | {"target": self.target_text or None, "met": self.met}
        if self.target is not None:
            facts["bound"] = asdict(self.target)
        return facts


def read_row(facts: dict[str, Any]) -> Row:
    """Return the row that was written as ``as_json`` writes it."""
    kept = {name: value for name, value in facts.items() if name not in {"target", "met", "bound"}}
    bound = facts.get("bound")
    return Row(**kept, target=Target(**bound) if bound else None)


def take_turns(
    contenders: Mapping[str, Callable[[], Figures]], rounds: int, *, warm_up: bool = True
) -> Taken:
    """Measure everybody in each round, another one first each time.

    Args:
        contenders: Each measures once.
        rounds: How often.
        warm_up: Measure everybody once before, for nothing.

    Returns:
        What each has found, round by round.
    """
    names = list(contenders)
    taken: Taken = {name: [] for name in names}
    if warm_up:
        for name in names:
            contenders[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(contenders[name]())
    return taken


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float] = (),
    *,
    target: Target | None = None,
    facts: Figures | None = None,
) -> Row:
    """Return the row of two series that were taken in turns, or of ours alone."""
    ratios = [mine / its for mine, its in zip(ours, theirs, strict=True)] if theirs else []
    return Row(
        name,
        unit,
        statistics.median(ours),
        len(ours),
        statistics.median(theirs) if theirs else None,
        # Round by round, so that a noisy moment hits both sides of a ratio.
        statistics.median(ratios) if ratios else None,
        target,
        facts or {},
        min(ratios or ours),
        max(ratios or ours),
    )


def pick(taken: Taken, name: str, figure: str) -> list[float]:
    """Return one figure of one contender, round by round."""
    return [figures[figure] for figures in taken[name]]


def middle(taken: Taken, name: str, figure: str) -> float:
    """Return the median of one figure of one contender."""
    return statistics.median(pick(taken, name, figure))


def write_number(number: float) -> str:
    """Return a number with three digits that count, or whole."""
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if abs(number) >= 0.1 else f"{number:.3f}"
