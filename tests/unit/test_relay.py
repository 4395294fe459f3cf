"""The relay: back-pressure, half-close, and clean-up in every order of closing."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.peer.credential import read_credential
from keyside_sidecar.peer.frames import GOAWAY
from keyside_sidecar.peer.relay import Relay, make_buffer
from keyside_sidecar.peer.tickets import TicketRegistry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from keyside_sidecar.peer.caller import Caller


@dataclass
class Rig:
    """A relay between a test's client socket and a test's inner server socket."""

    inner_path: str
    inner_listener: socket.socket
    registry: TicketRegistry = field(default_factory=TicketRegistry)
    closed: list[Connection] = field(default_factory=list)
    arrivals: list[bool] = field(default_factory=list)
    client: socket.socket | None = None
    inner: socket.socket | None = None
    relay: Relay | None = None

    async def connect(self, pidfd: int | None = None) -> tuple[socket.socket, socket.socket]:
        client, outer = socket.socketpair()
        client.setblocking(False)
        connection = Connection(1, credential_of(outer))
        self.relay = Relay(
            connection,
            outer,
            pidfd,
            registry=self.registry,
            buffer=make_buffer(),
            on_arrival=lambda: self.arrivals.append(True),
            on_closed=self.closed.append,
        )
        await self.relay.start(self.inner_path)
        loop = asyncio.get_running_loop()
        inner, address = await loop.sock_accept(self.inner_listener)
        inner.setblocking(False)
        assert isinstance(address, bytes)
        assert address.startswith(b"\0")
        found = self.registry.find("unix-abstract:" + address[1:].decode())
        assert found is connection
        self.client, self.inner = client, inner
        return client, inner


def credential_of(end: socket.socket) -> Caller:
    credential, pidfd = read_credential(end, process_mode=True)
    if pidfd is not None:
        os.close(pidfd)
    return credential


def run(scenario: Callable[[Rig], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "inner")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                listener.setblocking(False)
                rig = Rig(path, listener)
                try:
                    await scenario(rig)
                finally:
                    for end in (rig.client, rig.inner):
                        if end is not None:
                            end.close()
                    if rig.relay is not None:
                        rig.relay.close()

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def read_all(end: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    pieces = []
    while piece := await loop.sock_recv(end, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


async def read_exactly(end: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    pieces = bytearray()
    while len(pieces) < count:
        pieces += await loop.sock_recv(end, 1 << 20)
    return bytes(pieces)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_bytes_pass_both_ways_unchanged() -> None:
    """What one end writes the other reads, in both directions at once."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()
        there, back = os.urandom(3_000_000), os.urandom(2_000_000)

        got = await asyncio.gather(
            loop.sock_sendall(client, there),
            loop.sock_sendall(inner, back),
            read_exactly(inner, len(there)),
            read_exactly(client, len(back)),
        )
        assert got[2] == there
        assert got[3] == back

    run(scenario)


def test_a_reader_that_stops_makes_the_writer_wait() -> None:
    """Back-pressure: a relay holds one buffer at most, whatever the writer would like to send."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        sent = 0
        chunk = bytes(65536)
        idle = 0
        while idle < 50:
            try:
                sent += client.send(chunk)
                idle = 0
            except BlockingIOError:
                idle += 1
                await asyncio.sleep(0.002)
        assert sent < 4_000_000
        client.shutdown(socket.SHUT_WR)
        assert len(await read_all(inner)) == sent

    run(scenario)


def test_half_close_passes_on_and_the_other_direction_goes_on() -> None:
    """A caller that has finished sending still gets its answer."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"request")
        client.shutdown(socket.SHUT_WR)
        assert await read_all(inner) == b"request"
        assert not rig.closed
        await loop.sock_sendall(inner, b"answer")
        inner.close()
        assert await read_all(client) == b"answer"
        await until(lambda: len(rig.closed) == 1)

    run(scenario)


async def _client_first(rig: Rig) -> None:
    assert rig.client is not None
    assert rig.inner is not None
    rig.client.close()
    assert await read_all(rig.inner) == b""
    rig.inner.close()


async def _inner_first(rig: Rig) -> None:
    assert rig.client is not None
    assert rig.inner is not None
    rig.inner.close()
    assert await read_all(rig.client) == b""
    rig.client.close()


async def _both_at_once(rig: Rig) -> None:
    assert rig.client is not None
    assert rig.inner is not None
    rig.client.close()
    rig.inner.close()


async def _with_unread_bytes(rig: Rig) -> None:
    assert rig.client is not None
    assert rig.inner is not None
    rig.client.send(b"x" * 100_000)
    await asyncio.sleep(0.02)
    rig.inner.close()  # resets: bytes were never read
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            await asyncio.get_running_loop().sock_sendall(rig.client, b"more")
            await asyncio.sleep(0.001)


async def _blocked_then_closed(rig: Rig) -> None:
    assert rig.client is not None
    blocked = 0
    while blocked < 20:
        try:
            rig.client.send(bytes(65536))
        except BlockingIOError:
            blocked += 1
            await asyncio.sleep(0.002)
    assert rig.relay is not None
    rig.relay.close()


async def _relay_twice(rig: Rig) -> None:
    assert rig.relay is not None
    rig.relay.close()
    rig.relay.close()


def test_a_caller_does_not_keep_a_connection_that_has_no_server() -> None:
    """When the server has ended, the slot, the ticket and the descriptors are free at once."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        inner.shutdown(socket.SHUT_WR)
        await until(lambda: len(rig.closed) == 1)
        assert len(rig.registry) == 0
        assert await read_all(client) == b""

    run(scenario)


@pytest.mark.parametrize(
    "order",
    [
        _client_first,
        _inner_first,
        _both_at_once,
        _with_unread_bytes,
        _blocked_then_closed,
        _relay_twice,
    ],
)
def test_whatever_closes_first_everything_is_released_once(
    order: Callable[[Rig], Awaitable[None]],
) -> None:
    """Tickets and descriptors are gone, and the end is reported once."""

    async def scenario(rig: Rig) -> None:
        before = set(os.listdir("/proc/self/fd"))
        await rig.connect()
        await order(rig)
        await until(lambda: len(rig.closed) >= 1)
        await asyncio.sleep(0.05)
        assert len(rig.closed) == 1
        assert len(rig.registry) == 0
        for end in (rig.client, rig.inner):
            assert end is not None
            end.close()
        assert set(os.listdir("/proc/self/fd")) <= before

    run(scenario)


def test_the_connection_ends_with_the_callers_process() -> None:
    """I3: a process that ended is served no more, though a child may hold its socket."""

    async def scenario(rig: Rig) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(reader, 1)
            os._exit(0)
        pidfd = os.pidfd_open(pid)
        client, _inner = await rig.connect(pidfd)
        assert not rig.closed
        os.write(writer, b"x")
        await until(lambda: len(rig.closed) == 1)
        assert await read_all(client) == b""
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)

    run(scenario)


def test_what_may_be_a_short_call_is_told_of_and_nothing_else() -> None:
    """Not gRPC's own small frames, not parts of a batch, and not what the server answers."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()

        async def carry(source: socket.socket, target: socket.socket, size: int) -> int:
            before = len(rig.arrivals)
            await loop.sock_sendall(source, bytes(size))
            assert len(await loop.sock_recv(target, 1 << 20)) == size
            return len(rig.arrivals) - before

        assert await carry(client, inner, 400) == 0, "a stranger's holds nobody up"
        (connection,) = rig.registry.connections()
        connection.public_only = False
        for size, told in ((17, 0), (63, 0), (64, 1), (400, 1), (16_384, 1), (16_385, 0)):
            assert await carry(client, inner, size) == told
        assert await carry(inner, client, 400) == 0

    run(scenario)


def test_an_inner_server_that_is_away_ends_this_connection_alone() -> None:
    """A relay that can't connect closes its own sockets and reports its end."""

    async def scenario(rig: Rig) -> None:
        rig.inner_listener.close()
        client, outer = socket.socketpair()
        client.setblocking(False)
        relay = Relay(
            Connection(7, credential_of(outer)),
            outer,
            None,
            registry=rig.registry,
            buffer=make_buffer(),
            on_arrival=lambda: None,
            on_closed=rig.closed.append,
        )
        await relay.start(rig.inner_path)
        assert [connection.number for connection in rig.closed] == [7]
        assert len(rig.registry) == 0
        assert await read_all(client) == b""
        client.close()

    run(scenario)


def test_a_withdrawn_name_is_unknown_even_if_somebody_takes_it() -> None:
    """A name that became free again, and is taken by another, finds no caller (I2)."""

    async def scenario(rig: Rig) -> None:
        await rig.connect()
        (connection,) = rig.registry.connections()
        assert rig.inner is not None
        address = rig.inner.getpeername()
        assert rig.relay is not None
        rig.relay.close()
        squatter = socket.socket(socket.AF_UNIX)
        squatter.bind(address)
        assert rig.registry.find("unix-abstract:" + address[1:].decode()) is None
        assert connection not in rig.registry.connections()
        squatter.close()

    run(scenario)


FRAME = (1000).to_bytes(3, "big") + bytes(6) + bytes(1000)  # DATA


def test_a_caller_is_sent_away_between_two_frames_once() -> None:
    """Not in the middle of one, nor before the first; what follows passes on unchanged."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()
        assert rig.relay is not None
        for _ in range(2):
            rig.relay.send_away()
        await loop.sock_sendall(inner, FRAME[:500])
        assert await read_exactly(client, 500) == FRAME[:500]
        await loop.sock_sendall(inner, FRAME[500:])
        assert await read_exactly(client, 509 + len(GOAWAY)) == FRAME[500:] + GOAWAY
        rig.relay.send_away()
        await loop.sock_sendall(inner, FRAME)
        await loop.sock_sendall(client, b"its calls go on")
        assert await read_exactly(inner, 15) == b"its calls go on"
        assert await read_exactly(client, len(FRAME)) == FRAME
        client.close()
        assert await loop.sock_recv(inner, 1) == b""

    run(scenario)


def test_a_caller_that_reads_nothing_is_sent_away_when_it_does() -> None:
    """The GOAWAY waits behind what the caller has no room for."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()
        assert rig.relay is not None
        data = FRAME * 3_000
        sending = loop.create_task(loop.sock_sendall(inner, data))
        await asyncio.sleep(0.05)
        rig.relay.send_away()
        got = await read_exactly(client, len(data) + len(GOAWAY))
        await sending
        before, goaway, after = got.partition(GOAWAY)
        assert goaway
        assert len(before) % len(FRAME) == 0
        assert before + after == data

    run(scenario)


def test_what_a_server_said_last_is_passed_on_though_it_takes_nothing_more() -> None:
    """A caller's acknowledgements meet a closed socket, and must not cost it the answer."""

    async def scenario(rig: Rig) -> None:
        client, inner = await rig.connect()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(inner, b"the answer")
        inner.close()
        assert rig.relay is not None
        rig.relay._pipes[0]._to.shutdown(socket.SHUT_WR)  # as if that had been seen first
        await loop.sock_sendall(client, b"an acknowledgement")
        rig.relay._pipes[0]._on_readable()
        assert await read_all(client) == b"the answer"
        assert len(rig.closed) == 1

    run(scenario)
