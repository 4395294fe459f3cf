"""One call at a time: what a caller waits for, and what others' batches add to it."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rows import Target, compare, pick
from support.remote import Remote
from support.sidecar import running_sidecar, sidecar_directory
from unary import ECHO_METHOD, PAYLOAD, SERVERS, SERVICE, make_requests, running_echo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from plan import Plan
    from rows import Row, Taken

_PROGRAM = Path(__file__).with_name("caller_latency.py").read_text()
PERCENTILES = ("p50", "p99")
# Of each round.
SLICES = 10


class Line:
    """A caller's process with an open channel for each kind of call."""

    def __init__(self, service: Remote) -> None:
        self._service = service
        service.run(_PROGRAM)

    def open(self, name: str, target: str, method: str, request: bytes) -> None:
        """Open a channel, and make the first call."""
        code = "calls[name] = open_line(place, method, bytes.fromhex(request))"
        self._service.run(code, name=name, place=target, method=method, request=request.hex())

    def sample(self, name: str, count: int) -> list[float]:
        """Make calls one after the other; return how long each took, in microseconds."""
        code = "answer = time_calls(calls[name], count)"
        taken: list[float] = self._service.run(code, name=name, count=count)
        return taken


def take_slices(
    contenders: Mapping[str, Callable[[int], list[float]]], rounds: int, count: int
) -> Taken:
    """Let everybody make ``count`` calls in each round, a slice at a time and in turns.

    A moment in which the machine is busy is shorter than a slice or hits everybody's, so that
    percentiles can be compared.

    Returns:
        The percentiles of each, round by round.
    """
    taken: Taken = {name: [] for name in contenders}
    for sample in contenders.values():
        sample(count // SLICES)
    for _ in range(rounds):
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(SLICES):
            for name in list(contenders)[:: (1, -1)[number % 2]]:
                samples[name] += contenders[name](count // SLICES)
        for name, times in samples.items():
            times.sort()
            found = times[len(times) // 2], times[len(times) * 99 // 100]
            taken[name].append(dict(zip(PERCENTILES, found, strict=True)))
    return taken


def run(plan: Plan) -> Iterator[Row]:
    """Measure Encrypt and Decrypt beside the echo, all through the same Python client code."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(sidecar_directory())
        sidecar = stack.enter_context(running_sidecar())
        echo = stack.enter_context(running_echo("aio", directory))
        line = Line(stack.enter_context(Remote(sidecar)))
        line.open("echo", f"unix:{echo.socket}", ECHO_METHOD, PAYLOAD)
        requests = make_requests(sidecar)
        for name, (request, _) in requests.items():
            line.open(name, f"unix:{sidecar.socket}", SERVICE + name, request)
        taken = take_slices(
            {name: partial(line.sample, name) for name in ("echo", *requests)},
            plan.rounds,
            plan.calls // 4,
        )
    for name in requests:
        for part in PERCENTILES:
            yield compare(
                f"unary {name}, one at a time, {part} / echo on {SERVERS['aio']}",
                "µs",
                pick(taken, name, part),
                pick(taken, "echo", part),
                target=Target(1.3, at_least=False),
            )
