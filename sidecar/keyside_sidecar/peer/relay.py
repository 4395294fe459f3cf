"""Relays a caller's bytes to the inner gRPC server and back.

Each direction is one pipe::

    READING ──short write──► BLOCKED ──drained──► READING ──end of input──► FINISHED

READING waits for input and writes it on at once. BLOCKED holds what could not be written (at most
one buffer) and reads nothing until it is gone: that is the back-pressure. FINISHED has passed the
end of input on (``shutdown(SHUT_WR)``). The relay closes when the server's end is finished (a
caller must not keep a connection that has no server), when the caller's socket fails, when the
caller's process ends, or when told to; closing twice does nothing. Told to send its caller away, it
puts a GOAWAY between two of the server's frames (``frames.py``); the caller then ends the
connection when its calls are done.

Sockets are read with ``recv_into`` into one buffer per worker, not through asyncio transports: an
idle connection then costs no buffer, and the order of withdrawing the ticket and closing the
sockets is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from keyside_sidecar.log import event
from keyside_sidecar.peer.frames import GOAWAY, FrameFollower

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.tickets import TicketRegistry

_log = logging.getLogger(__name__)

_BUFFER_BYTES: Final = 256 * 1024
# What is shorter is no call, but one of gRPC's own frames; what is longer is part of a batch.
_SHORTEST_CALL_BYTES: Final = 64
_SHORT_BYTES: Final = 16 * 1024
_CONNECT_TIMEOUT_S: Final = 5.0
_CONNECT_RETRY_S: Final = 0.005


class _Pipe:
    """One direction of a relay."""

    __slots__ = (
        "_buffer",
        "_finished",
        "_frames",
        "_from",
        "_is_last",
        "_loop",
        "_pending",
        "_relay",
        "_says_goodbye",
        "_see",
        "_to",
    )

    def __init__(
        self,
        relay: Relay,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        target: socket.socket,
        buffer: memoryview,
        *,
        frames: FrameFollower | None = None,
    ) -> None:
        self._relay = relay
        self._loop = loop
        self._from = source
        self._to = target
        self._buffer = buffer
        self._pending: memoryview | None = None
        self._finished = False
        self._is_last = False
        self._frames = frames
        self._see = self._see_call if frames is None else frames.follow
        self._says_goodbye = False

    def start(self) -> None:
        self._loop.add_reader(self._from.fileno(), self._on_readable)

    def stop(self) -> None:
        """Wait for nothing any more; the sockets are about to be closed."""
        if not self._finished and self._pending is None:
            self._loop.remove_reader(self._from.fileno())
        if self._pending is not None:
            self._loop.remove_writer(self._to.fileno())
            self._pending = None
        self._finished = True

    def _on_readable(self) -> None:
        try:
            count = self._from.recv_into(self._buffer)
        except BlockingIOError:
            if self._is_last:
                self._finish()
            return
        except OSError:
            self._relay.close()
            return
        if not count:
            self._finish()
            return
        try:
            sent = self._to.send(self._buffer[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            return
        self._see(self._buffer, count)
        if sent < count:
            self._block(memoryview(bytes(self._buffer[sent:count])))
        elif self._says_goodbye:
            self.say_goodbye()

    def _see_call(self, _buffer: memoryview, count: int) -> None:
        if _SHORTEST_CALL_BYTES <= count <= _SHORT_BYTES and not self._relay.public_only:
            self._relay.on_arrival()

    def say_goodbye(self) -> None:
        """Put a GOAWAY in, here or at the next place where that may be done."""
        if self._finished or self._frames is None:
            return
        self._says_goodbye = self._pending is not None or not self._frames.is_between
        if self._says_goodbye:
            return
        try:
            sent = self._to.send(GOAWAY)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._relay.close()
            return
        if sent < len(GOAWAY):
            self._block(memoryview(GOAWAY)[sent:])

    def _block(self, rest: memoryview) -> None:
        self._pending = rest
        self._loop.remove_reader(self._from.fileno())
        self._loop.add_writer(self._to.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        if self._pending is None:
            return
        try:
            sent = self._to.send(self._pending)
        except BlockingIOError:
            return
        except OSError:
            self._break()
            return
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return
        self._pending = None
        self._loop.remove_writer(self._to.fileno())
        self._loop.add_reader(self._from.fileno(), self._on_readable)
        if self._says_goodbye:
            self.say_goodbye()
        if self._is_last:
            self.read_last()

    def read_last(self) -> None:
        """Pass on what is there still, and finish: the other end of the source is closed.

        The event loop is not waited for: it may have told of that already, and tells it once.
        """
        self._is_last = True
        while not self._finished and self._pending is None:
            self._on_readable()

    def _break(self) -> None:
        """Read nothing any more: what is read can't be passed on."""
        self.stop()
        self._relay.pipe_broken(self)

    def _finish(self) -> None:
        self._loop.remove_reader(self._from.fileno())
        self._finished = True
        with contextlib.suppress(OSError):
            self._to.shutdown(socket.SHUT_WR)
        self._relay.pipe_finished(self)


class Relay:
    """Carries one connection, from its hand-over to its end.

    Args:
        connection: What the caller's calls are to run as.
        outer: The caller's socket; the relay owns it from now on.
        pidfd: The caller's process, or None where the kernel gave none; owned likewise.
        registry: Where the inner address is registered.
        buffer: The worker's read buffer, from ``make_buffer()``.
        on_arrival: Called when what may be a short call was passed to the server, of a caller who
            is allowed something.
        on_closed: Called once, after everything has been released.
    """

    __slots__ = (
        "_buffer",
        "_closed",
        "_connection",
        "_inner",
        "_loop",
        "_name",
        "_on_closed",
        "_outer",
        "_pidfd",
        "_pipes",
        "_registry",
        "_sent_away",
        "on_arrival",
    )

    def __init__(
        self,
        connection: Connection,
        outer: socket.socket,
        pidfd: int | None,
        *,
        registry: TicketRegistry,
        buffer: memoryview,
        on_arrival: Callable[[], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.on_arrival = on_arrival
        self._connection = connection
        self._outer = outer
        self._pidfd = pidfd
        self._registry = registry
        self._buffer = buffer
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._inner: socket.socket | None = None
        self._name: str | None = None
        self._pipes: tuple[_Pipe, ...] = ()
        self._closed = False
        self._sent_away = False
        connection.close = self.close
        connection.send_away = self.send_away

    async def start(self, inner_path: str) -> None:
        """Connect to the inner server and begin to relay; on any failure, close."""
        try:
            if self._pidfd is not None:
                self._loop.add_reader(self._pidfd, self._on_caller_ended)
            self._outer.setblocking(False)
            self._inner = inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            inner.setblocking(False)
            self._name = self._registry.register(self._connection)
            inner.bind("\0" + self._name)
            await self._connect(inner, inner_path)
            if self._closed:
                return
            self._pipes = (
                _Pipe(self, self._loop, self._outer, inner, self._buffer),
                _Pipe(self, self._loop, inner, self._outer, self._buffer, frames=FrameFollower()),
            )
            for pipe in self._pipes:
                pipe.start()
            if self._sent_away:
                self._pipes[1].say_goodbye()
        except OSError as error:
            event(_log, logging.WARNING, "relay could not start", error=str(error))
            self.close()
        except BaseException:
            self.close()
            raise

    async def _connect(self, inner: socket.socket, path: str) -> None:
        # asyncio's sock_connect is not used: a full backlog makes a non-blocking connect on a
        # Unix socket fail with EAGAIN, which asyncio takes for "in progress".
        deadline = self._loop.time() + _CONNECT_TIMEOUT_S
        while not self._closed:
            try:
                inner.connect(path)
            except BlockingIOError:
                if self._loop.time() > deadline:
                    raise
                await asyncio.sleep(_CONNECT_RETRY_S)
            else:
                return

    @property
    def closed(self) -> bool:
        """Whether everything has been released."""
        return self._closed

    @property
    def public_only(self) -> bool:
        """Whether the caller is allowed nothing."""
        return self._connection.public_only

    def _on_caller_ended(self) -> None:
        event(_log, logging.DEBUG, "the caller's process ended", connection=self._connection.number)
        self.close()

    def pipe_finished(self, pipe: _Pipe) -> None:
        """Close when the server has ended; a caller that has may still get its answers."""
        if pipe is self._pipes[1]:
            self.close()

    def pipe_broken(self, pipe: _Pipe) -> None:
        """Close when the caller takes nothing more; a server's last words are passed on first."""
        if pipe is self._pipes[1]:
            self.close()
        else:
            self._pipes[1].read_last()

    def send_away(self) -> None:
        """Ask the caller to make its next calls on another connection; safe at any time."""
        if not self._sent_away:
            self._sent_away = True
            if self._pipes:
                self._pipes[1].say_goodbye()

    def close(self) -> None:
        """Withdraw the ticket, then release everything; safe at any time and more than once."""
        if self._closed:
            return
        self._closed = True
        if self._name is not None:
            self._registry.withdraw(self._name)
        for pipe in self._pipes:
            pipe.stop()
        if self._inner is not None:
            self._inner.close()
        self._outer.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._on_closed(self._connection)


def make_buffer() -> memoryview:
    """Return the buffer that all relays of one worker read into, one at a time."""
    return memoryview(bytearray(_BUFFER_BYTES))
