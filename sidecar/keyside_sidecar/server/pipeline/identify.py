"""Identify: which connection a call came on, and who the caller is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused

if TYPE_CHECKING:
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.server.call import Exchange, Rpc


def find_connection(exchange: Exchange) -> Connection:
    """Return the connection that a call came on.

    Raises:
        Refused: It came on none of ours (I2).
    """
    if exchange.connection is None:
        raise Refused(Reason.PEER_UNKNOWN)
    return exchange.connection


async def identify(identifier: Identifier, connection: Connection, rpc: Rpc) -> Caller:
    """Return the caller with the groups that it has now (I1).

    Raises:
        Refused: It is refused everything but what is public, and the RPC isn't.
    """
    caller = identifier.known(connection.caller)
    if caller is None:
        caller = await identifier.identify(connection.caller)
    if caller.standing is not None and not rpc.public:
        raise Refused(caller.standing)
    return caller
