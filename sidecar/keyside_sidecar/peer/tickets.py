"""Which caller stands behind which inner connection.

The relay binds its own end of each inner connection to an abstract address of 128 random bits
and registers it here *before* it connects; ``context.peer()`` inside an RPC is that address. The
entry is withdrawn *before* the socket is closed, so that a name that has become free again can
never find an entry; and a name is never registered twice, so that one caller's calls can't run as
another's (the kernel's own autobind draws from 2^20 names and reuses them soon).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyside_sidecar.peer.connection import Connection

_PEER_PREFIX: Final = "unix-abstract:"


class TicketRegistry:
    """The open connections of one worker, by the address of their inner end.

    Used from the worker's event loop only.
    """

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def register(self, connection: Connection) -> str:
        """Register a connection under a fresh random name and return the name.

        Returns:
            32 hexadecimal characters; the abstract address is NUL followed by them.
        """
        name = secrets.token_hex(16)
        peer = _PEER_PREFIX + name
        if peer in self._connections:  # 2^-128 a pair; a broken random source shows here
            raise RuntimeError("the random source repeated a 128-bit name")
        self._connections[peer] = connection
        return name

    def find(self, peer: str) -> Connection | None:
        """Return the connection whose inner end gRPC calls ``peer``, or None."""
        return self._connections.get(peer)

    def withdraw(self, name: str) -> None:
        """Forget a name; its later calls, if any could come, are refused."""
        self._connections.pop(_PEER_PREFIX + name, None)

    def connections(self) -> tuple[Connection, ...]:
        """Return all open connections."""
        return tuple(self._connections.values())
