"""grpc.health.v1.Health, from the serving board.

The messages are grpcio-health-checking's. Its servicer is not used: its ``Watch`` holds a lock
while it writes, so a prober that stops reading could keep every answer from changing, and health
would stay green for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from grpc_health.v1 import health_pb2

from keyside_sidecar.rpc.methods import (
    ACCESS_SERVICE,
    AUDIT_SERVICE,
    ENCRYPTION_SERVICE,
    KEY_SERVICE,
    STATUS_SERVICE,
)
from keyside_sidecar.rpc.status import UnknownService
from keyside_sidecar.serving import Phase

if TYPE_CHECKING:
    from keyside_sidecar.rpc.guard import Call, StreamContext
    from keyside_sidecar.serving import ServingBoard

_WATCH_INTERVAL_S: Final = 0.25
# Both need the store, and a log that takes what people do.
_OF_PEOPLE: Final = (KEY_SERVICE, ACCESS_SERVICE)
_ALWAYS: Final = (AUDIT_SERVICE, STATUS_SERVICE)
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer:
    """Answers probes.

    Args:
        board: What is served.
    """

    def __init__(self, board: ServingBoard) -> None:
        self._board = board

    async def check(
        self, _call: Call, request: health_pb2.HealthCheckRequest
    ) -> health_pb2.HealthCheckResponse:
        """Answer once.

        Raises:
            UnknownService: There is no such service.
        """
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise UnknownService
        return health_pb2.HealthCheckResponse(status=status)

    async def list(
        self, _call: Call, _request: health_pb2.HealthListRequest
    ) -> health_pb2.HealthListResponse:
        """Answer for every service."""
        services = ("", ENCRYPTION_SERVICE, *_OF_PEOPLE, *_ALWAYS)
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=self._status(service))
                for service in services
            }
        )

    async def watch(self, request: health_pb2.HealthCheckRequest, context: StreamContext) -> None:
        """Answer now and on every change, until the caller goes away or the sidecar drains."""
        last = None
        while not self._board.is_succeeded:  # who asks again is answered by a successor
            draining = self._board.phase is Phase.DRAINING
            status = self._status(request.service)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if draining:
                return
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _status(self, service: str) -> int:
        if not service:
            serving = self._board.is_well()
        elif service == ENCRYPTION_SERVICE:
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
