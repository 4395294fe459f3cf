"""One accepted connection, as its worker knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.peer.caller import Caller


class Connection:
    """A caller's connection: who the kernel says is there, and how to end it.

    Args:
        number: The supervisor's number for it.
        caller: Who it was when it was accepted.
    """

    __slots__ = ("caller", "close", "number", "public_only", "send_away", "server")

    def __init__(self, number: int, caller: Caller) -> None:
        self.number = number
        self.caller = caller
        # Relayed to the server that knows health and public status only.
        self.public_only = True
        # Which of the main servers it is relayed to; None: to none of them, or not yet.
        self.server: int | None = None
        # Set by the relay when it starts; safe to call at any time and more than once.
        self.close: Callable[[], None] = _nothing
        # Likewise: the caller is asked to make its next calls on another connection.
        self.send_away: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return f"<Connection {self.number} pid={self.caller.pid} uid={self.caller.uid}>"


def _nothing() -> None:
    """Stand in for both before there is a relay."""
