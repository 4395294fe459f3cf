"""The thin shell over ``grpc.aio``: its handlers hand calls to the pipeline, and end them.

To gRPC each RPC is one that takes a stream, which looks the same to a caller: so the call is
counted, and its time limit runs, before its message is received. Otherwise messages that never end
would hold memory that no limit counts (ADR 4).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from keyside_sidecar.server.call import BatchRpc, UnaryRpc
from keyside_sidecar.services.failures import Described

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.tickets import TicketRegistry
    from keyside_sidecar.server.call import Rpc
    from keyside_sidecar.server.pipeline import Pipeline
    from keyside_sidecar.services.failures import Failure
    from keyside_sidecar.services.turns import Turns

    StreamContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

DETAILS_KEY: Final = "grpc-status-details-bin"
# What a caller sends its temporary credential as.
CREDENTIAL_KEY: Final = "keyside-credential"


class _Exchange:
    """A call as grpc.aio has it."""

    __slots__ = ("_context", "connection", "read", "write")

    def __init__(self, context: StreamContext, connection: Connection | None) -> None:
        self._context = context
        self.connection = connection
        self.read: Callable[[], Awaitable[object]] = context.read
        self.write: Callable[[bytes], Awaitable[None]] = context.write

    def find_credential(self) -> str | None:
        for name, value in self._context.invocation_metadata() or ():
            if name == CREDENTIAL_KEY:
                return value if isinstance(value, str) else None
        return None


class Handlers:
    """Makes gRPC handlers of rows.

    Args:
        pipeline: The way of every call.
        registry: The worker's open connections.
        turns: Says whether short calls are under way.
        encode_details: Makes the bytes of a failure's ``google.rpc.Status``.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        registry: TicketRegistry,
        turns: Turns,
        encode_details: Callable[[Failure], bytes],
    ) -> None:
        self._pipeline = pipeline
        self._registry = registry
        self._turns = turns
        self._encode_details = encode_details

    def make(self, rpc: Rpc) -> Handler:
        """Return the handler of an RPC."""
        if isinstance(rpc, UnaryRpc):
            return self._unary(rpc)
        if isinstance(rpc, BatchRpc):
            return self._batch(rpc)
        return self._stream(rpc)

    def refuse(self, path: str) -> Handler:
        """Return a handler that says why, whatever is called; it receives nothing that was sent.

        Args:
            path: The RPC's full name.
        """

        async def handle(_requests: object, context: StreamContext) -> None:
            try:
                await self._pipeline.refuse(path, self._exchange(context))
            except Described as described:
                await self._abort(context, described.failure)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _unary(self, rpc: UnaryRpc) -> Handler:
        turns = self._turns

        async def handle(_requests: object, context: StreamContext) -> bytes:
            try:
                data = await self._pipeline.answer(rpc, self._exchange(context))
            except Described as described:
                return await self._abort(context, described.failure)
            # What else has arrived by now is worked on before gRPC is given the answers (ADR 13);
            # an answer that no other one could join leaves at once.
            if turns.short:
                await asyncio.sleep(0)
            return data

        return grpc.stream_unary_rpc_method_handler(handle)

    def _batch(self, rpc: BatchRpc) -> Handler:
        async def handle(_requests: object, context: StreamContext) -> bytes:
            try:
                return await self._pipeline.answer_batch(rpc, self._exchange(context))
            except Described as described:
                return await self._abort(context, described.failure)

        return grpc.stream_unary_rpc_method_handler(handle)

    def _stream(self, rpc: Any) -> Handler:
        async def handle(_requests: object, context: StreamContext) -> None:
            try:
                await self._pipeline.answer_stream(rpc, self._exchange(context))
            except Described as described:
                await self._abort(context, described.failure)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _exchange(self, context: StreamContext) -> _Exchange:
        return _Exchange(context, self._registry.find(context.peer()))

    async def _abort(self, context: StreamContext, failure: Failure) -> bytes:
        code = grpc.StatusCode[failure.code.name]
        trailing = ((DETAILS_KEY, self._encode_details(failure)),)
        await context.abort(code, failure.text, trailing_metadata=trailing)
        raise AssertionError("abort always raises")
