"""What a caller's process runs for latency.py; given to it as text."""

from __future__ import annotations

import gc
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

calls: dict[str, Callable[[], Any]] = {}


def open_line(target: str, method: str, request: bytes) -> Callable[[], Any]:
    """Return what makes one call over a channel of its own."""
    call: Callable[..., Any] = grpc.insecure_channel(target).unary_unary(method)

    def make() -> Any:
        return call(request, timeout=30)

    make()
    return make


def time_calls(call: Callable[[], Any], count: int) -> list[float]:
    """Return how long each of ``count`` calls took, in microseconds."""
    gc.collect()
    taken = []
    for _ in range(count):
        began = perf_counter_ns()
        call()
        taken.append((perf_counter_ns() - began) / 1e3)
    return taken
