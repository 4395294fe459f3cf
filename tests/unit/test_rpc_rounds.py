"""Answers of one round leave together, and none takes another one along."""

import asyncio

from keyside_sidecar.rpc.rounds import Rounds


async def _answer(rounds: Rounds, name: str, log: list[str]) -> None:
    log.append(f"{name} worked")
    await rounds.end()
    log.append(f"{name} left")


def test_what_is_ready_in_one_round_is_worked_on_before_any_answer_leaves() -> None:
    async def run() -> list[str]:
        rounds, log = Rounds(), list[str]()
        await asyncio.gather(*(_answer(rounds, name, log) for name in "abc"))
        await asyncio.gather(*(_answer(rounds, name, log) for name in "de"))
        return log

    assert asyncio.run(run()) == [
        *("a worked", "b worked", "c worked", "a left", "b left", "c left"),
        *("d worked", "e worked", "d left", "e left"),
    ]


def test_a_call_that_is_cancelled_meanwhile_takes_no_other_one_along() -> None:
    async def run() -> tuple[list[str], list[object]]:
        rounds, log = Rounds(), list[str]()
        tasks = [asyncio.create_task(_answer(rounds, name, log)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return log, list(await asyncio.gather(*tasks, return_exceptions=True))

    log, ends = asyncio.run(run())
    assert log == ["a worked", "b worked", "c worked", "a left", "c left"]
    assert ends[0] is None
    assert isinstance(ends[1], asyncio.CancelledError)
    assert ends[2] is None
