"""``keyside status`` says what a problem keeps from being served, and what goes on."""

from __future__ import annotations

import pytest

from keyside.cli.status import _print_problem
from keyside.facts import Problem, Serving


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        (Serving.DEGRADED, "keeps keys and access from being changed, and encryption goes on"),
        (Serving.NO, "keeps calls from being served"),
    ],
)
def test_blocking_problem_says_what_is_blocked(
    capsys: pytest.CaptureFixture[str], serving: Serving, said: str
) -> None:
    """A store that is away, while what is in memory is served: encryption is not blocked."""
    _print_problem(Problem("STORE_UNAVAILABLE", "it is away", "", None, blocking=True), serving)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"problem: STORE_UNAVAILABLE; {said}"


def test_problem_that_blocks_nothing_says_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    _print_problem(Problem("X", "it is so", "", None, blocking=False), Serving.DEGRADED)
    assert capsys.readouterr().out.splitlines()[0] == "problem: X"
