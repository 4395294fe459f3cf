"""The recorder's end of the pair that it has with one worker."""

from __future__ import annotations

import logging
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.audit.wire import (
    LANES,
    MAX_PACKET_BYTES,
    WireError,
    encode_message,
    parse_packet,
)
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_log = logging.getLogger(__name__)

_PACKETS_PER_TURN: Final = 16
_MAX_OUTBOX: Final = 64


class Link:
    """Talks to one worker; never waits for it.

    Args:
        pid: The worker's.
        descriptor: Our end of the pair; it is ours from here on.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.ended = False
        self._end = socket.socket(fileno=descriptor)
        self._end.setblocking(False)
        self._counts = dict.fromkeys(LANES, 0)
        self._has_news = False
        self._outbox: deque[bytes] = deque()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._end.fileno()

    @property
    def has_more_to_say(self) -> bool:
        """Whether the pair had no room for something."""
        return bool(self._outbox)

    def receive(self) -> Iterator[tuple[str, list[bytes]] | dict[str, Any]]:
        """Return what has come, a limited number of packets."""
        for _ in range(_PACKETS_PER_TURN):
            try:
                data = self._end.recv(MAX_PACKET_BYTES)
                packet = parse_packet(data) if data else None
            except BlockingIOError:
                return
            except OSError:
                packet = None
            except WireError as error:
                event(
                    _log, logging.ERROR, "worker is not listened to", pid=self.pid, why=str(error)
                )
                packet = None
            if packet is None:
                self.ended = True
                return
            yield packet

    def count(self, lane: str, count: int) -> None:
        """Take note that so many more records of a lane are on the disk."""
        self._counts[lane] += count
        self._has_news = True

    def acknowledge(self) -> None:
        """Tell the worker what is on the disk, if there is news."""
        if self._has_news and not self._outbox:
            self._has_news = False
            self.say({"ack": self._counts})

    def say(self, fields: Mapping[str, object]) -> None:
        """Send a packet, now or when there is room."""
        if len(self._outbox) < _MAX_OUTBOX:
            self._outbox.append(encode_message(fields))
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        try:
            while self._outbox:
                self._end.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return
        except OSError:  # it has ended; receiving says so, too
            self._outbox.clear()

    def close(self) -> None:
        """Close our end."""
        self._end.close()
