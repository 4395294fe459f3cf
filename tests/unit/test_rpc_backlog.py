"""What gRPC has received and nobody has begun is bounded: our own limits don't count it yet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc

from keyside_sidecar.server.inner_servers import BACKLOG_OPTIONS

if TYPE_CHECKING:
    from pathlib import Path

CONNECTIONS = 8
CALLS_EACH = 200
SOFT_LIMIT = 512
HARD_LIMIT = 750
# Those that were begun before the loop was blocked, and gRPC's open requests for the next ones.
BESIDE = 8


class Blocking(grpc.GenericRpcHandler):
    """Answers everything; a call in the meantime keeps the event loop, and so all the others."""

    def __init__(self) -> None:
        self.blocked = threading.Event()
        self.released = threading.Event()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        is_block = handler_call_details.method == "/test/Block"

        async def answer(request: bytes, _context: object) -> bytes:
            if is_block:
                self.blocked.set()
                self.released.wait(60)  # the loop's own thread, on purpose
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


def test_a_blocked_worker_holds_so_many_calls_and_no_more(tmp_path: Path) -> None:
    path, handler, started = f"unix:{tmp_path}/s", Blocking(), threading.Event()
    stop = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server(options=BACKLOG_OPTIONS)
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(path)
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    channels: list[Any] = [
        grpc.insecure_channel(path, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    try:
        assert started.wait(30)
        for channel in channels:
            channel.unary_unary("/test/Answer")(b"x", timeout=30)
        blocking = channels[0].unary_unary("/test/Block").future(b"x", timeout=60)
        assert handler.blocked.wait(30)
        calls: list[Any] = [
            channel.unary_unary("/test/Answer").future(b"x", timeout=60)
            for channel in channels
            for _ in range(CALLS_EACH)
        ]
        deadline = time.monotonic() + 30
        while count_open(calls) > HARD_LIMIT + BESIDE and time.monotonic() < deadline:
            time.sleep(0.05)
        assert SOFT_LIMIT <= count_open(calls) <= HARD_LIMIT + BESIDE
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.CANCELLED}
        handler.released.set()
        assert blocking.result() == b"x"
        # (Some may still have been on their way, and are refused as well.)
        codes = Counter(call.code() for call in calls)
        assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        assert codes[grpc.StatusCode.OK] >= SOFT_LIMIT
    finally:
        handler.released.set()
        stop.set()
        for channel in channels:
            channel.close()
        thread.join(30)


def count_open(calls: list[Any]) -> int:
    return sum(not call.done() for call in calls)
