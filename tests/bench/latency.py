"""One call at a time: what a caller waits for, and what others' batches add to it."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rows import Target, compare, pick, take_turns
from support.remote import Remote
from support.sidecar import running_sidecar, sidecar_directory
from unary import ECHO_METHOD, PAYLOAD, SERVERS, SERVICE, make_requests, running_echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Figures, Row

_PROGRAM = Path(__file__).with_name("caller_latency.py").read_text()
_PERCENTILES = ("p50", "p99")


class Line:
    """A caller's process with an open channel for each kind of call."""

    def __init__(self, service: Remote) -> None:
        self._service = service
        service.run(_PROGRAM)

    def open(self, name: str, target: str, method: str, request: bytes) -> None:
        """Open a channel, and make the first call."""
        code = "calls[name] = open_line(place, method, bytes.fromhex(request))"
        self._service.run(code, name=name, place=target, method=method, request=request.hex())

    def measure(self, name: str, count: int) -> Figures:
        """Make calls one after the other; return percentiles in microseconds."""
        told = self._service.run("answer = time_calls(calls[name], count)", name=name, count=count)
        return dict(zip(_PERCENTILES, told, strict=True))


def run(plan: Plan) -> Iterator[Row]:
    """Measure Encrypt and Decrypt beside the echo, all through the same Python client code."""
    count = plan.calls // 4
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(sidecar_directory())
        sidecar = stack.enter_context(running_sidecar())
        echo = stack.enter_context(running_echo("aio", directory))
        line = Line(stack.enter_context(Remote(sidecar)))
        line.open("echo", f"unix:{echo.socket}", ECHO_METHOD, PAYLOAD)
        requests = make_requests(sidecar)
        for name, (request, _) in requests.items():
            line.open(name, f"unix:{sidecar.socket}", SERVICE + name, request)
        taken = take_turns(
            {name: partial(line.measure, name, count) for name in ("echo", *requests)},
            plan.rounds,
        )
    for name in requests:
        for part in _PERCENTILES:
            yield compare(
                f"unary {name}, one at a time, {part} / echo on {SERVERS['aio']}",
                "µs",
                pick(taken, name, part),
                pick(taken, "echo", part),
                target=Target(1.3, at_least=False),
            )
