"""The socket's file is removed, renamed or replaced while the sidecar serves.

Noticed within seconds; bound again where nothing is in the way, and an alarm where something is.
Connections that are open go on, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket as sockets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.remote import Remote
from support.sidecar import PYTHON, SIDECAR_UID, Sidecar, running_sidecar
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

NOTICED_S = 5.0
CANT_BIND = "can't be bound again"
# One connection that is open already, and calls without a pause on it until told to stop. Not
# Keyside's client: that looks at the file before it calls, and refuses what it can't trust.
LOAD = """
import threading
from grpc_health.v1 import health_pb2, health_pb2_grpc
from keyside.v1 import encryption_pb2, encryption_pb2_grpc, status_pb2, status_pb2_grpc
channel = grpc.insecure_channel(target)
encryption = encryption_pb2_grpc.EncryptionServiceStub(channel)
health = health_pb2_grpc.HealthStub(channel)
status = status_pb2_grpc.StatusServiceStub(channel)
request = encryption_pb2.EncryptRequest(key="mail-credentials", plaintext=b"content")
encryption.Encrypt(request)
going, calls, failures = threading.Event(), [], []
def load():
    while not going.is_set():
        try:
            calls.append(encryption.Encrypt(request, timeout=10))
        except Exception as error:
            failures.append(repr(error))
thread = threading.Thread(target=load)
thread.start()
"""
SETTLE = "going.set(); thread.join(); answer = [len(calls), failures]"
HEALTH = (
    "answer = health_pb2.HealthCheckResponse.ServingStatus.Name("
    "health.Check(health_pb2.HealthCheckRequest()).status)"
)
STATUS = (
    "found = status.GetStatus(status_pb2.GetStatusRequest()).problems\n"
    "answer = {it.reason: [it.summary, it.remedy] for it in found}"
)


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar() as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> Iterator[Sidecar]:
    """One whose socket is in its place again after each test."""
    with running_sidecar() as running:
        yield running


def encrypts(sidecar: Sidecar) -> bool:
    """Whether somebody who has no connection yet is served."""
    done = sidecar.keyside("encrypt", "mail-credentials", stdin=b"content")
    return done.returncode == 0


def connects(sidecar: Sidecar) -> bool:
    with sockets.socket(sockets.AF_UNIX) as client:
        return client.connect_ex(str(sidecar.socket)) == 0


def records(sidecar: Sidecar, event: str) -> list[dict[str, object]]:
    lines = map(json.loads, sidecar.audit_log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def leave_dead_socket(sidecar: Sidecar) -> None:
    """Put the file of a program that has ended there."""
    sidecar.socket.unlink()
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(sidecar.socket))


def replace_directory(sidecar: Sidecar) -> None:
    shutil.rmtree(sidecar.socket.parent)
    sidecar.socket.parent.mkdir(mode=0o755)
    os.chown(sidecar.socket.parent, SIDECAR_UID, SIDECAR_UID)


LOSSES: dict[str, Callable[[Sidecar], object]] = {
    "removed": lambda sidecar: sidecar.socket.unlink(),
    "renamed": lambda sidecar: sidecar.socket.rename(sidecar.socket.with_name("away")),
    "replaced by a dead socket": leave_dead_socket,
    "directory removed": lambda sidecar: shutil.rmtree(sidecar.socket.parent),
    "directory replaced": replace_directory,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_socket_that_is_gone_is_bound_again_and_no_call_is_lost(
    sidecar: Sidecar, name: str
) -> None:
    """Under load; as the first one was: for everybody, in a directory that is safe."""
    with Remote(sidecar) as service:
        service.run(LOAD)
        before = sidecar.socket.stat().st_ino
        LOSSES[name](sidecar)
        eventually(lambda: connects(sidecar), bool, NOTICED_S)
        assert encrypts(sidecar)
        made = sidecar.socket.stat()
        assert stat.S_IMODE(made.st_mode) == 0o666
        assert name.startswith("directory") or made.st_ino != before
        assert stat.S_IMODE(sidecar.socket.parent.stat().st_mode) == 0o755
        told = service.run(STATUS)
        assert "was bound again at" in told["SOCKET_WAS_LOST"][0]
        assert str(sidecar.socket.parent) in told["SOCKET_WAS_LOST"][1]
        assert service.run(HEALTH) == "SERVING"
        count, failures = service.run(SETTLE)
        assert count > 100
        assert failures == []
    log = sidecar.log.read_text()
    assert log.count('event="the socket\'s file is not in its place"') == 1
    assert log.count('event="the socket is in its place"') == 1
    assert [it["outcome"] for it in records(sidecar, "socket.lost")] == ["failed"]
    assert [it["outcome"] for it in records(sidecar, "socket.restored")] == ["ok"]
    assert sidecar.stop() == 0
    assert not sidecar.socket.exists()


def test_it_is_bound_again_as_often_as_it_is_removed(sidecar: Sidecar) -> None:
    """And connections that wait to be accepted at the former socket are taken along."""
    for _ in range(3):
        with sockets.socket(sockets.AF_UNIX) as waiting:
            waiting.connect(str(sidecar.socket))
            sidecar.socket.unlink()
            eventually(lambda: connects(sidecar), bool, NOTICED_S)
            waiting.settimeout(5)
            waiting.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            assert waiting.recv(9), "it was closed with the former socket"
    assert len(records(sidecar, "socket.restored")) == 3


def test_workers_that_start_later_serve_at_the_new_socket(sidecar: Sidecar) -> None:
    """A worker proves itself through the public socket, wherever its directory went."""
    shutil.rmtree(sidecar.socket.parent)
    eventually(lambda: connects(sidecar), bool, NOTICED_S)
    (worker,) = sidecar.workers()
    os.kill(worker, 9)
    eventually(lambda: encrypts(sidecar), bool)


# What is not ours to replace.


@dataclass(frozen=True)
class Obstacle:
    """Something that stands where the socket was.

    Args:
        name: What.
        make: Puts it there; returns what takes it away.
        says: What is told of it.
        remedy: What is told to do.
    """

    name: str
    make: Callable[[Sidecar], Callable[[], object]]
    says: str
    remedy: str


def put_file(sidecar: Sidecar) -> Callable[[], object]:
    sidecar.socket.unlink()
    sidecar.socket.write_text("mine")
    return sidecar.socket.unlink


def put_directory(sidecar: Sidecar) -> Callable[[], object]:
    sidecar.socket.unlink()
    sidecar.socket.mkdir()
    return sidecar.socket.rmdir


def put_link(sidecar: Sidecar) -> Callable[[], object]:
    sidecar.socket.rename(sidecar.socket.with_name("away"))
    sidecar.socket.symlink_to("away")
    return sidecar.socket.unlink


def put_live_socket(sidecar: Sidecar) -> Callable[[], object]:
    sidecar.socket.unlink()
    other = sockets.socket(sockets.AF_UNIX)
    other.bind(str(sidecar.socket))
    other.listen()

    def take_away() -> None:
        assert connects(sidecar), "it was replaced while it was alive"
        other.close()

    return take_away


def put_unsafe_directory(sidecar: Sidecar) -> Callable[[], object]:
    directory = sidecar.socket.parent
    shutil.rmtree(directory)
    directory.mkdir()
    directory.chmod(0o777)
    return lambda: directory.chmod(0o755)


def remove_directory_above(sidecar: Sidecar) -> Callable[[], object]:
    directory = sidecar.socket.parent
    shutil.rmtree(directory)
    directory.write_text("no directory")
    return directory.unlink


OBSTACLES = [
    Obstacle("file", put_file, "exists and is not a socket", "remove it"),
    Obstacle("directory", put_directory, "exists and is not a socket", "remove it"),
    Obstacle("symbolic link", put_link, "exists and is not a socket", "remove it"),
    Obstacle("live socket", put_live_socket, "another program serves on", "stop it"),
    Obstacle("open directory", put_unsafe_directory, "can be written by others", "chmod go-w"),
    Obstacle("no directory", remove_directory_above, "is not a directory", "move it away"),
]


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.name)
def test_what_is_in_the_way_is_left_alone_and_turns_health_red(
    shared: Sidecar, obstacle: Obstacle
) -> None:
    """Until it is gone: then the socket is bound again, and health is green."""
    sidecar = shared
    told_before = sidecar.log.read_text().count(CANT_BIND)
    with Remote(sidecar) as service:
        service.run(LOAD)
        assert service.run(HEALTH) == "SERVING"
        take_away = obstacle.make(sidecar)
        told = eventually(lambda: service.run(STATUS), lambda it: "SOCKET_LOST" in it, NOTICED_S)
        summary, remedy = told["SOCKET_LOST"]
        assert summary.startswith(f"nobody new can connect: {sidecar.socket} is not our socket")
        assert obstacle.says in summary
        assert obstacle.remedy in remedy
        eventually(lambda: service.run(HEALTH), lambda it: it == "NOT_SERVING", NOTICED_S)
        time.sleep(1.5)
        take_away()
        # What stays in the way for long is asked less often whether it is alive.
        eventually(lambda: service.run(STATUS), lambda it: "SOCKET_WAS_LOST" in it, 15.0)
        assert "SOCKET_LOST" not in service.run(STATUS)
        assert service.run(HEALTH) == "SERVING"
        assert encrypts(sidecar)
        count, failures = service.run(SETTLE)
        assert count > 100
        assert failures == []
    told_now = sidecar.log.read_text().count(CANT_BIND)
    assert told_now == told_before + 1, "told once, not at each look"


def test_a_socket_that_is_put_back_is_used_again(sidecar: Sidecar) -> None:
    """Whoever renamed it can undo that, while something is in the way."""
    away = sidecar.socket.with_name("away")
    with Remote(sidecar) as service:
        service.run(LOAD + SETTLE)
        assert service.run(STATUS).keys() & {"SOCKET_LOST", "SOCKET_WAS_LOST"} == set()
        sidecar.socket.rename(away)
        sidecar.socket.mkdir()
        eventually(lambda: service.run(STATUS), lambda it: "SOCKET_LOST" in it, NOTICED_S)
        sidecar.socket.rmdir()
        away.rename(sidecar.socket)
        told = eventually(
            lambda: service.run(STATUS), lambda it: "SOCKET_WAS_LOST" in it, NOTICED_S
        )
        assert (
            "put back" in told["SOCKET_WAS_LOST"][0] or "bound again" in told["SOCKET_WAS_LOST"][0]
        )
    assert encrypts(sidecar)


def test_a_lock_that_is_removed_is_taken_anew(sidecar: Sidecar) -> None:
    """Otherwise a second sidecar could take the path while the first one is about to bind it."""
    lock = sidecar.socket.with_name(".keyside.sock.lock")
    lock.unlink()
    eventually(lock.exists, bool, NOTICED_S)
    done = sidecar.keysided("serve")
    assert done.returncode == 69
    assert "another sidecar serves on" in done.stderr
    assert records(sidecar, "socket.lost") == []


def test_nobody_looks_all_the_time(sidecar: Sidecar) -> None:
    """One look a second: a supervisor at rest uses next to no CPU time, socket or no socket."""
    assert sidecar.process is not None
    statistics = Path(f"/proc/{sidecar.process.pid}/stat")

    def used_s() -> float:
        fields = statistics.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    sidecar.socket.unlink()
    sidecar.socket.mkdir()
    time.sleep(1.5)
    before = used_s()
    time.sleep(3)
    assert used_s() - before < 0.3


# The service manager's socket.

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_the_service_manager_is_not_bound_by_us() -> None:
    """It would hand the old one over again; so the alarm says whom to ask."""
    with running_sidecar() as sidecar:
        sidecar.stop()
        with sockets.socket(sockets.AF_UNIX) as given, contextlib.ExitStack() as stack:
            given.bind(str(sidecar.socket))
            sidecar.socket.chmod(0o666)
            given.listen()
            sidecar.descriptors = (given.fileno(),)
            sidecar.launcher = (str(PYTHON), "-c", ACTIVATE, str(given.fileno()))
            sidecar.start()
            service = stack.enter_context(Remote(sidecar))
            service.run(LOAD + SETTLE)
            sidecar.socket.unlink()
            told = eventually(
                lambda: service.run(STATUS), lambda it: "SOCKET_LOST" in it, NOTICED_S
            )
            assert "the service manager made the socket" in told["SOCKET_LOST"][0]
            assert told["SOCKET_LOST"][1].endswith(
                "systemctl restart keyside.socket keyside.service"
            )
            time.sleep(1.5)
            assert not sidecar.socket.exists()
