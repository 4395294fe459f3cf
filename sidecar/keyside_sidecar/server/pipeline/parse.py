"""Parse: a message's bytes become a command, if they are not too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside_sidecar.errors import BadRequest, MessageTooLarge
from keyside_sidecar.services.batches import UnreadableMany

if TYPE_CHECKING:
    from keyside_sidecar.server.call import BatchRpc, UnaryRpc
    from keyside_sidecar.services.shapes import Command


class Parser:
    """Reads messages.

    Args:
        max_call_bytes: The longest message of a call that is no batch.
    """

    def __init__(self, max_call_bytes: int) -> None:
        self._max_call_bytes = max_call_bytes

    def decode(self, rpc: UnaryRpc, data: bytes) -> object:
        """Return a message, decoded; the row says what it asks for.

        Raises:
            MessageTooLarge: It is.
            BadRequest: It is no such message.
        """
        if len(data) > self._max_call_bytes:
            raise MessageTooLarge(len(data), self._max_call_bytes)
        return rpc.decode(data)

    async def parse_batch(self, rpc: BatchRpc, data: bytes) -> Command:
        """Return what a batch's message asks for; one that can't be read is a command, too."""
        try:
            await rpc.require_countable(data)
            command: Command = rpc.read(rpc.decode(data))
        except BadRequest as error:  # not without a record
            return UnreadableMany(error)
        return command
