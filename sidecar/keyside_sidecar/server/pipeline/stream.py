"""Streams: an RPC whose messages come, or go, one by one. The caller is looked at for each (I1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyside_sidecar.errors import Refused
from keyside_sidecar.server.pipeline.identify import identify
from keyside_sidecar.server.pipeline.receive import limit_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.server.call import Exchange, StreamRpc
    from keyside_sidecar.server.pipeline.receive import Arrivals


class Stream:
    """The messages of one call.

    Args:
        rpc: Its row.
        exchange: The call.
        connection: What it came on.
        identifier: Knows who the caller is now.
        policy: What is allowed.
        arrivals: Receives messages.
    """

    def __init__(
        self,
        rpc: StreamRpc,
        exchange: Exchange,
        connection: Connection,
        *,
        identifier: Identifier,
        policy: Policy,
        arrivals: Arrivals,
    ) -> None:
        self._rpc = rpc
        self._exchange = exchange
        self._connection = connection
        self._identifier = identifier
        self._policy = policy
        self._arrivals = arrivals

    async def check(self) -> None:
        """Ask policy about the caller as it is now.

        Raises:
            Refused: It is not allowed.
        """
        caller = await identify(self._identifier, self._connection, self._rpc)
        reason = self._policy.decide(caller, self._rpc.operation, None)
        if reason is not None:
            raise Refused(reason)

    async def receive_one(self) -> Any:
        """Return the caller's one message, decoded.

        Raises:
            BadRequest: It is none, or did not come in time.
        """
        limit_s = limit_of(self._connection)
        data = await self._arrivals.receive(self._exchange.read(), limit_s)
        return self._rpc.decode(data)

    async def receive_each(self) -> AsyncIterator[Any]:
        """Give the caller's messages, decoded, until it sends no more.

        Raises:
            Refused: The caller is not allowed any more.
            BadRequest: One is no such message.
        """
        while isinstance(data := await self._exchange.read(), bytes):
            await self.check()
            yield self._rpc.decode(data)

    async def send(self, message: bytes) -> None:
        """Send a message, serialised."""
        await self._exchange.write(message)
