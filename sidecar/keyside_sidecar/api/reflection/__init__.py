"""grpc.reflection.v1alpha.ServerReflection, where the configuration asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row, describe, make_decoder
from keyside_sidecar.server.call import StreamRpc
from keyside_sidecar.services.shapes import AboutNothing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.server.pipeline.stream import Stream

SERVICE: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
ROWS: Final = (Row("ServerReflectionInfo", Operation.REFLECT),)


def bind_reflection(services: Iterable[str]) -> StreamRpc:
    """Return the RPC that shows services.

    Args:
        services: Their full names.
    """
    servicer = reflection_aio.ReflectionServicer(sorted(services))

    async def converse(stream: Stream) -> None:
        async for response in servicer.ServerReflectionInfo(stream.receive_each(), None):
            await stream.send(response.SerializeToString())

    (row,) = ROWS
    return StreamRpc(
        **describe(SERVICE, row),
        decode=make_decoder(SERVICE.methods_by_name[row.name]),
        read=lambda _request: AboutNothing(),
        converse=converse,
    )
