"""From READY=1 to the last socket file: starting, draining, dying, being replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.processes import await_ended, is_running
from support.remote import Remote, RemoteError
from support.sidecar import (
    OPERATOR_UID,
    OTHER_UID,
    PYTHON,
    SIDECAR_UID,
    START_TIMEOUT_S,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

KEY = "mail-credentials"
LOCK = ".keyside.sock.lock"
# What a stranger's health probe and a service's hold on to while the sidecar drains.
PROBE = """
from grpc_health.v1 import health_pb2, health_pb2_grpc
channel = grpc.insecure_channel(target)
health = health_pb2_grpc.HealthStub(channel)
def check(service=""):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(health.Check(request).status)
"""
# An interpreter that becomes the daemon, with the listening socket as descriptor 3.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def store_locked(sidecar: Sidecar) -> Iterator[None]:
    """Hold the store's write lock, so that a rotation has to wait."""
    writer = sqlite3.connect(sidecar.store, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        yield
    finally:
        writer.close()


def list_leftovers(sidecar: Sidecar) -> list[str]:
    """Return what is beside the socket, but for the lock, which stays."""
    return sorted(set(os.listdir(sidecar.socket.parent)) - {LOCK})


def test_ready_and_stopping_are_announced_and_nothing_is_left_behind() -> None:
    with running_sidecar(settings="workers = 2") as sidecar:
        workers = sidecar.workers()
        assert len(workers) == 2
        assert sidecar.notified == ["READY=1"]
        assert len(list_leftovers(sidecar)) == 3, "the socket and two private directories"
        assert sidecar.stop() == 0
        assert sidecar.notified == ["READY=1", "STOPPING=1"]
        assert list_leftovers(sidecar) == []
        assert not any(map(is_running, workers))


def test_sigterm_finishes_the_call_under_way_and_turns_everything_else_away() -> None:
    with (
        running_sidecar() as sidecar,
        Remote(sidecar, OPERATOR_UID) as operator,
        Remote(sidecar) as service,
        Remote(sidecar, OTHER_UID + 100) as stranger,
    ):
        operator.run("client.status()")
        stranger.run(PROBE + "answer = check()")
        service.run(PROBE + "watch = health.Watch(health_pb2.HealthCheckRequest())")
        assert service.run("answer = next(watch).status") == 1
        with store_locked(sidecar):
            operator.begin(f"answer = client.rotate_key({KEY!r}, timeout_s=30).version.number")
            assert operator.is_busy(0.5)
            assert sidecar.process is not None
            sidecar.process.terminate()
            sidecar.await_notification("STOPPING=1")
            assert stranger.run("answer = check()") == "NOT_SERVING"
            assert stranger.run("answer = check('keyside.v1.KeyService')") == "NOT_SERVING"
            assert service.run("answer = [status.status for status in watch]") == [2]
            with pytest.raises(RemoteError) as refused:
                service.run(
                    f"keyside.Client(expected_owner=owner, retry=False).encrypt({KEY!r}, b'')"
                )
            assert (refused.value.kind, refused.value.reason) == ("Unavailable", "SOCKET_MISSING")
            assert operator.is_busy()
        assert operator.finish() == 2
        assert sidecar.wait() == 0
        assert list_leftovers(sidecar) == []
        sidecar.start()
        assert service.run(f"answer = client.get_key({KEY!r}).current_version") == 2


def test_a_call_that_does_not_end_is_cut_off_after_the_drain_timeout() -> None:
    with (
        running_sidecar(settings='drain_timeout = "500ms"') as sidecar,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        operator.run("client.status()")
        with store_locked(sidecar):
            operator.begin(f"client.rotate_key({KEY!r}, timeout_s=30)")
            assert operator.is_busy(0.5)
            began = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - began < 4.5, "limit, a moment to close, and no more"
            with pytest.raises(RemoteError) as cut:
                operator.finish()
            assert cut.value.kind == "Unavailable"
        assert list_leftovers(sidecar) == []
        sidecar.start()
        assert operator.run(f"answer = client.get_key({KEY!r}).current_version") == 1


def test_sigterm_during_the_start_ends_it_soon() -> None:
    """The workers' call to themselves, which nobody answers any more, must not hold it up."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        try:
            sidecar.start(wait=False)
            deadline = time.monotonic() + START_TIMEOUT_S
            while not sidecar.workers():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            began = time.monotonic()
            assert sidecar.stop() == 0
            assert time.monotonic() - began < 8.0  # the start itself takes below one
            assert sidecar.notified == ["STOPPING=1"]
            assert list_leftovers(sidecar) == []
        finally:
            sidecar.kill()


def test_workers_end_with_a_killed_supervisor_and_the_next_start_cleans_up() -> None:
    with running_sidecar(settings="workers = 2") as sidecar, Remote(sidecar) as service:
        envelope = service.run(f"answer = client.encrypt({KEY!r}, b'before')")
        workers = sidecar.workers()
        assert sidecar.process is not None
        sidecar.process.kill()
        assert sidecar.wait() == -signal.SIGKILL
        await_ended(workers, 5.0)
        left = list_leftovers(sidecar)
        assert len(left) == 3, "a socket that nobody answers on, and two private directories"
        sidecar.start()
        now = list_leftovers(sidecar)
        assert len(now) == 3
        assert set(now) & set(left) == {sidecar.socket.name}
        code = "answer = client.decrypt(bytes.fromhex(envelope))"
        assert service.run(code, envelope=envelope) == b"before".hex()


def test_a_killed_worker_is_replaced_and_clients_come_back_by_themselves() -> None:
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        envelope = service.run(f"answer = client.encrypt({KEY!r}, b'before')")
        for _ in range(2):
            (worker,) = sidecar.workers()
            os.kill(worker, signal.SIGKILL)
            code = "answer = client.decrypt(bytes.fromhex(envelope), timeout_s=30)"
            assert service.run(code, envelope=envelope) == b"before".hex()
            (successor,) = sidecar.workers()
            assert successor != worker
        assert len(list_leftovers(sidecar)) == 2, "the dead workers' directories are gone"
        assert sidecar.notified == ["READY=1"]
        assert sidecar.stop() == 0


def test_a_second_sidecar_on_the_same_socket_is_refused_and_the_first_unharmed() -> None:
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        service.run(f"client.encrypt({KEY!r}, b'')")
        before = (sidecar.socket.stat().st_ino, list_leftovers(sidecar), sidecar.workers())
        second = sidecar.keysided("serve")
        assert second.returncode == 69
        assert f"another sidecar serves on {sidecar.socket}" in second.stderr
        assert "what to do: stop it first, or configure another socket" in second.stderr
        after = (sidecar.socket.stat().st_ino, list_leftovers(sidecar), sidecar.workers())
        assert after == before
        service.run(f"client.encrypt({KEY!r}, b'')")  # on its old connection
        assert sidecar.call(f"client.encrypt({KEY!r}, b'')").returncode == 0


def test_a_socket_from_the_service_manager_is_served_and_left_in_place() -> None:
    """Callers that connect while no sidecar runs wait for the next one."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(sidecar.socket))
            os.chown(sidecar.socket, SIDECAR_UID, -1)
            sidecar.socket.chmod(0o666)
            listening.listen()
            sidecar.descriptors = [listening.fileno()]
            sidecar.launcher = [PYTHON, "-c", ACTIVATE, str(listening.fileno())]
            file = sidecar.socket.stat().st_ino
            try:
                with Remote(sidecar) as service:
                    service.begin(f"answer = client.encrypt({KEY!r}, b'waits', timeout_s=30)")
                    assert service.is_busy(0.5)
                    sidecar.start()
                    envelope = service.finish()
                    assert sidecar.stop() == 0
                    assert sidecar.notified == ["READY=1", "STOPPING=1"]
                    assert sidecar.socket.stat().st_ino == file
                    assert list_leftovers(sidecar) == [sidecar.socket.name]
                    code = "answer = client.decrypt(bytes.fromhex(envelope), timeout_s=30)"
                    service.begin(code, envelope=envelope)
                    assert service.is_busy(0.5)
                    sidecar.start()
                    assert service.finish() == b"waits".hex()
            finally:
                sidecar.kill()


def count_sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return sum(target.startswith("socket:") for target in targets)


def test_connections_are_spread_evenly_and_all_workers_see_a_rotation() -> None:
    """Nine connections on three workers; each has the new version within a second."""
    with (
        running_sidecar(settings="workers = 3") as sidecar,
        Remote(sidecar) as service,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        idle = [count_sockets(pid) for pid in sidecar.workers()]
        service.run(
            "import time\n"
            "clients = [keyside.Client(expected_owner=owner) for _ in range(9)]\n"
            f"for each in clients: each.encrypt({KEY!r}, b'')"
        )
        busy = [count_sockets(pid) for pid in sidecar.workers()]
        grown = [after - before for before, after in zip(idle, busy, strict=True)]
        assert grown[0] > 0
        assert len(set(grown)) == 1, grown
        taken = []
        for version in range(2, 7):
            service.begin(
                "def all_under(version):\n"
                "    for each in clients:\n"
                "        facts = each.status().keys[0]\n"
                "        if facts.current_version != version: return False\n"
                "    return True\n"
                "while not all_under(version): time.sleep(0.01)\n"
                "answer = time.monotonic()",
                version=version,
            )
            code = f"import time; client.rotate_key({KEY!r}); answer = time.monotonic()"
            rotated = operator.run(code)
            taken.append(service.finish() - rotated)
        assert statistics.median(taken) < 1.0, taken
