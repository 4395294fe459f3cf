"""grpc.health.v1.Health, from the serving board.

The messages are grpcio-health-checking's. Its servicer is not used: its ``Watch`` holds a lock
while it writes, so a prober that stops reading could keep every answer from changing, and health
would stay green for ever.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2

from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row, describe, make_decoder
from keyside_sidecar.api.v1 import access, audit, encryption, keys, overview
from keyside_sidecar.server.call import StreamRpc, UnaryRpc
from keyside_sidecar.services.failures import UnknownService
from keyside_sidecar.services.shapes import AboutNothing
from keyside_sidecar.serving import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.server.call import Rpc
    from keyside_sidecar.server.pipeline.stream import Stream
    from keyside_sidecar.serving import ServingBoard

_WATCH_INTERVAL_S: Final = 0.25
_ENCRYPTION: Final = encryption.SERVICE.full_name
# Both need the store, and a log that takes what people do.
_OF_PEOPLE: Final = (keys.SERVICE.full_name, access.SERVICE.full_name)
_ALWAYS: Final = (audit.SERVICE.full_name, overview.SERVICE.full_name)
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
_CHECK: Final = Row("Check", Operation.HEALTH, public=True)
_LIST: Final = Row("List", Operation.HEALTH, public=True)
_WATCH: Final = Row("Watch", Operation.HEALTH, public=True)
ROWS: Final = (_CHECK, _LIST, _WATCH)


@dataclass(frozen=True, slots=True)
class _Probe(AboutNothing):
    service: str = ""


class Health:
    """Answers probes.

    Args:
        board: What is served.
    """

    def __init__(self, board: ServingBoard) -> None:
        self._board = board

    def bind(self) -> Iterator[Rpc]:
        """Give its RPCs."""
        for row, read, serve in (
            (_CHECK, lambda request: _Probe(request.service), self._check),
            (_LIST, lambda _request: _Probe(), self._list),
        ):
            yield UnaryRpc(
                **describe(SERVICE, row),
                decode=make_decoder(SERVICE.methods_by_name[row.name]),
                read=read,
                serve=serve,
                write=lambda response: response.SerializeToString(),
            )
        yield StreamRpc(
            **describe(SERVICE, _WATCH),
            decode=make_decoder(SERVICE.methods_by_name["Watch"]),
            read=lambda request: _Probe(request.service),
            converse=self._watch,
        )

    async def _check(self, _caller: Caller, probe: _Probe) -> health_pb2.HealthCheckResponse:
        """Answer once.

        Raises:
            UnknownService: There is no such service.
        """
        status = self._status(probe.service)
        if status == _SERVICE_UNKNOWN:
            raise UnknownService
        return health_pb2.HealthCheckResponse(status=status)

    async def _list(self, _caller: Caller, _probe: _Probe) -> health_pb2.HealthListResponse:
        """Answer for every service."""
        services = ("", _ENCRYPTION, *_OF_PEOPLE, *_ALWAYS)
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=self._status(service))
                for service in services
            }
        )

    async def _watch(self, stream: Stream) -> None:
        """Answer now and on every change, until the caller goes away or the sidecar drains."""
        request = await stream.receive_one()
        last = None
        while not self._board.is_succeeded:  # who asks again is answered by a successor
            draining = self._board.phase is Phase.DRAINING
            status = self._status(request.service)
            if status != last:
                response = health_pb2.HealthCheckResponse(status=status)
                await stream.send(response.SerializeToString())
                last = status
            if draining:
                return
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _status(self, service: str) -> int:
        if not service:
            serving = self._board.is_well()
        elif service == _ENCRYPTION:
            serving = self._board.serves_encryption()
        elif service in _OF_PEOPLE:
            serving = self._board.serves_keys()
        elif service in _ALWAYS:
            serving = self._board.phase is Phase.RUNNING
        else:
            unknown: int = _SERVICE_UNKNOWN
            return unknown
        status: int = _SERVING if serving else _NOT_SERVING
        return status
