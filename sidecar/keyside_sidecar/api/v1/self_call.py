"""The sidecar's call to itself, made at start through its own public socket."""

from __future__ import annotations

from typing import TypeAlias

import grpc

from keyside.v1 import status_pb2

_Call: TypeAlias = (
    "grpc.aio.UnaryUnaryMultiCallable[status_pb2.GetStatusRequest, status_pb2.GetStatusResponse]"
)
_METHOD = "/keyside.v1.StatusService/GetStatus"
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class SelfCallFailed(Exception):
    """The call failed, or was answered where it should have been refused."""


async def who_am_i(socket_path: str) -> tuple[int, int]:
    """Return the pid and uid that the sidecar sees when this process calls ``socket_path``.

    Raises:
        SelfCallFailed: The call failed.
    """
    async with grpc.aio.insecure_channel(f"unix:{socket_path}", options=_OPTIONS) as channel:
        call: _Call = channel.unary_unary(
            _METHOD,
            request_serializer=status_pb2.GetStatusRequest.SerializeToString,
            response_deserializer=status_pb2.GetStatusResponse.FromString,
        )
        try:
            answer = await call(status_pb2.GetStatusRequest(), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise SelfCallFailed(f"{error.code().name}: {error.details()}") from None
    return answer.you.pid, answer.you.uid


async def check_direct_refused(private_path: str) -> None:
    """Check that a call which goes round the relay is refused.

    Raises:
        SelfCallFailed: It was answered, or failed in another way.
    """
    async with grpc.aio.insecure_channel(f"unix:{private_path}", options=_OPTIONS) as channel:
        try:
            call: _Call = channel.unary_unary(
                _METHOD,
                request_serializer=status_pb2.GetStatusRequest.SerializeToString,
                response_deserializer=status_pb2.GetStatusResponse.FromString,
            )
            await call(status_pb2.GetStatusRequest())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            raise SelfCallFailed(f"direct call: {error.code().name}") from None
    raise SelfCallFailed("a call from an unregistered address was answered")
