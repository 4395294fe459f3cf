"""Connections made in unusual ways, and gRPC calls through them."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from support.sidecar import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.sidecar import Sidecar

TIMEOUT_S = 20.0

# Connects, leaves the connection to a child, hands the test a second descriptor of it, and ends
# when the test says so. The child keeps its own open for as long as standard input is.
_LENDER = """
import os, socket, sys
hand = socket.socket(fileno=int(sys.argv[2]))
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(sys.argv[1])
if os.fork() == 0:
    socket.send_fds(hand, [b"!"], [connection.fileno()])
    hand.close()
    sys.stdin.read()
    os._exit(0)
hand.close()
signal = os.read(int(sys.argv[3]), 1)
os._exit(0)
"""


@contextlib.contextmanager
def taking_ids(uid: int, gid: int | None = None) -> Iterator[None]:
    """Run a block of this process under another account.

    What the kernel records of a connection is whoever made it at that moment.
    """
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def connect_as(uid: int, path: str | Path, *, name: str | None = None) -> socket.socket:
    """Return a connection made under ``uid``, bound to an abstract name where one is given."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    try:
        with taking_ids(uid):
            if name is not None:
                connection.bind("\0" + name)
            connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other end has closed by now; what it may have sent is not looked at."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the other end closes."""
    read = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            read += data
    return bytes(read)


@contextlib.contextmanager
def calls_through(connection: socket.socket) -> Iterator[str]:
    """Give a target for gRPC: its first connection is carried over ``connection``."""
    name = f"ks-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("\0" + name)
        listening.listen(1)
        carrier = threading.Thread(target=_carry, args=(listening, connection))
        carrier.start()
        try:
            yield f"unix-abstract:{name}"
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            carrier.join()


def _carry(listening: socket.socket, connection: socket.socket) -> None:
    try:
        near, _ = listening.accept()
    except OSError:
        return
    listening.shutdown(socket.SHUT_RDWR)  # the second connection is refused
    others = {near: connection, connection: near}
    with near, contextlib.suppress(ConnectionError):
        while True:
            for source in select.select(list(others), [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                others[source].sendall(data)


class Lender:
    """A process that connects, hands its connection on, and ends when told."""

    def __init__(self, path: Path, uid: int, gid: int) -> None:
        receiver, hand = socket.socketpair()
        told, self._tell = os.pipe()
        with receiver, hand:
            self._process = subprocess.Popen(
                [
                    *(PYTHON, "-c", _LENDER, str(path), str(hand.fileno()), str(told)),
                ],
                pass_fds=(hand.fileno(), told),
                stdin=subprocess.PIPE,
                user=uid,
                group=gid,
                extra_groups=[],
                cwd="/",
            )
            os.close(told)
            hand.close()
            receiver.settimeout(TIMEOUT_S)
            _, descriptors, _, _ = socket.recv_fds(receiver, 1, 1)
        self.pid = self._process.pid
        self.connection = socket.socket(fileno=descriptors[0])
        self.connection.settimeout(TIMEOUT_S)

    def end_connector(self) -> None:
        """End the process that connected; its child goes on. Returns when it has ended."""
        os.write(self._tell, b"!")
        self._process.wait()

    def end(self) -> None:
        """End everything."""
        self._process.kill()
        self._process.wait()
        os.close(self._tell)
        self.connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()


@contextlib.contextmanager
def lending(path: Path, uid: int, gid: int) -> Iterator[Lender]:
    """Give a process that connects and can hand its connection on."""
    lender = Lender(path, uid, gid)
    try:
        yield lender
    finally:
        lender.end()


@contextlib.contextmanager
def paused(sidecar: Sidecar) -> Iterator[None]:
    """Keep the supervisor from accepting for a while; connections queue up in the kernel."""
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        sidecar.process.send_signal(signal.SIGCONT)


def relay_names(sidecar: Sidecar) -> set[str]:
    """Return the abstract names that the sidecar's workers hold; anybody can read them."""
    held = set()
    for pid in sidecar.workers():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                held.add(entry.readlink().name)
    names = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, _, _, _, inode, *path = line.split()
        if path and path[0].startswith("@") and f"socket:[{inode}]" in held:
            names.add(path[0].removeprefix("@"))
    return names


def private_sockets(sidecar: Sidecar) -> list[Path]:
    """Return the paths of the workers' private sockets."""
    return sorted((sidecar.directory / "run").glob(".keyside.sock~*/*"))
