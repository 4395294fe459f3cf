"""A call's message comes in time, or the call ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyside_sidecar.errors import BadRequest
from keyside_sidecar.server.pipeline import receive as receiving
from keyside_sidecar.server.pipeline.receive import Arrivals


class Context:
    """As much of an exchange as receiving needs."""

    def __init__(self, message: object, delay_s: float = 0.0) -> None:
        self._message = message
        self._delay_s = delay_s

    async def read(self) -> object:
        await asyncio.sleep(self._delay_s)
        return self._message


async def receive(context: Context, limit_s: int) -> bytes:
    waiting = Arrivals()
    ticking = asyncio.create_task(waiting.run())
    call: asyncio.Task[bytes] = asyncio.create_task(receive_with(waiting, context, limit_s))
    try:
        return await call
    finally:
        ticking.cancel()
        assert not waiting._due
        assert not waiting._late


async def receive_with(waiting: Arrivals, context: Any, limit_s: int) -> bytes:
    return await waiting.receive(context.read(), limit_s)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_TICK_S", 0.02)


def test_a_message_in_time_is_returned() -> None:
    """The limit leaves it alone."""
    assert asyncio.run(receive(Context(b"message", delay_s=0.05), 50)) == b"message"


def test_a_message_that_is_late_ends_the_call_with_its_limit() -> None:
    """The caller is told how long it had; the task goes on to say so."""
    with pytest.raises(BadRequest, match="did not arrive within 2 s"):
        asyncio.run(receive(Context(b"message", delay_s=30), 2))


def test_a_call_without_a_message_is_refused() -> None:
    """The end of the stream is no message."""
    with pytest.raises(BadRequest, match="has no message"):
        asyncio.run(receive(Context(object()), 2))


def test_a_call_that_its_caller_cancels_is_cancelled() -> None:
    """Only lateness is turned into an answer."""

    async def scenario() -> None:
        waiting = Arrivals()
        call = asyncio.create_task(receive_with(waiting, Context(b"", delay_s=30), 5))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not waiting._due

    asyncio.run(scenario())
