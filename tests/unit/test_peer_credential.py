"""What the kernel says of real processes at the other end of real sockets (I2, I3, I4)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from pathlib import Path

import pytest
from tests.unit.forked_caller import (
    SERVICE_GID,
    SERVICE_UID,
    OldKernel,
    become,
    calling,
    fork,
    make_listener,
    needs_root,
    read,
)

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer.credential import (
    MAX_GROUPS,
)
from keyside_sidecar.peer.executable import read_exe
from keyside_sidecar.peer.kernel import Kernel

CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000


@needs_root
@pytest.mark.root
def test_a_service_is_known_by_the_kernels_pid_uid_and_gid() -> None:
    with calling(become(SERVICE_UID)) as caller:
        credential = read(caller.connection)
        assert (credential.pid, credential.uid, credential.gid) == (
            caller.pid,
            SERVICE_UID,
            SERVICE_GID,
        )
        assert credential.standing is None
        assert credential.pidfd_source == "kernel"
        assert credential.process_gids is None


@needs_root
@pytest.mark.root
def test_the_program_that_a_caller_runs_is_on_the_credential() -> None:
    """Of any account's process, where the supervisor is root."""
    with calling(become(SERVICE_UID)) as caller:
        assert read(caller.connection).exe == str(Path(sys.executable).resolve())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/usr/bin/\xff tool", "/usr/bin/\\xff tool"),
        (b"/" + b"x" * 254, "/" + "x" * 254),
        (b"/" + b"x" * 255, None),
        (None, None),
    ],
    ids=["not UTF-8", "255 bytes", "256 bytes", "unreadable"],
)
def test_a_programs_path_is_bounded_text_or_left_out(
    tmp_path: Path, target: bytes | None, expected: str | None
) -> None:
    (tmp_path / "4711").mkdir()
    if target is not None:
        os.symlink(target, os.fsencode(tmp_path / "4711" / "exe"))  # noqa: PTH211
    assert read_exe(4711, tmp_path) == expected


@needs_root
@pytest.mark.root
def test_process_mode_reads_more_groups_than_pythons_getsockopt_can() -> None:
    groups = tuple(range(100_000, 101_000))
    with calling(become(SERVICE_UID, groups=groups)) as caller:
        assert read(caller.connection, process_mode=True).process_gids == groups


@needs_root
@pytest.mark.root
def test_a_caller_with_more_groups_than_fit_into_a_packet_is_refused() -> None:
    groups = tuple(range(100_000, 100_001 + MAX_GROUPS))
    with calling(become(SERVICE_UID, groups=groups)) as caller:
        credential = read(caller.connection, process_mode=True)
        assert credential.standing is Reason.PEER_CREDENTIAL_UNREADABLE
        assert len(credential.to_json()) < 1000


@needs_root
@pytest.mark.root
def test_i3_uid_65534_is_refused_whatever_account_it_has() -> None:
    with calling(become(65534)) as caller:
        assert read(caller.connection).standing is Reason.PEER_OVERFLOW_UID


@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("gid", "groups"), [(65534, ()), (SERVICE_GID, (5, 65534, 7))], ids=["primary", "supplementary"]
)
def test_i3_the_overflow_gid_is_refused_in_process_mode_only(
    gid: int, groups: tuple[int, ...]
) -> None:
    with calling(become(SERVICE_UID, gid, groups)) as caller:
        refused = read(caller.connection, process_mode=True)
        assert refused.standing is Reason.PEER_OVERFLOW_GID
        assert read(caller.connection).standing is None


def test_i3_an_overflow_uid_that_the_host_chose_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/overflowuid").write_text(f"{os.geteuid()}\n")
    with calling() as caller:
        credential = read(caller.connection, kernel=Kernel(tmp_path))
        assert credential.standing is Reason.PEER_OVERFLOW_UID


@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "reaped"])
@pytest.mark.parametrize("kernel", [Kernel(), OldKernel()], ids=["pidfd", "no-pidfd"])
def test_i3_a_caller_that_left_its_connection_to_a_child_and_ended_is_refused(
    kernel: Kernel, *, reaped: bool
) -> None:
    with calling(heir=True) as caller:
        caller.wait_until_zombie()
        if reaped:
            caller.reap()
        assert read(caller.connection, kernel=kernel).standing is Reason.PEER_ENDED


def test_i3_a_caller_that_ends_while_it_is_looked_at_is_refused() -> None:
    """Its number may be another process's by the time that its login is read."""
    with calling() as caller:

        class SlowKernel(Kernel):
            def read_pidfd(self, connection: socket.socket) -> int:
                pidfd = super().read_pidfd(connection)
                caller.kill()
                return pidfd

        assert read(caller.connection, kernel=SlowKernel()).standing is Reason.PEER_ENDED


def test_i3_a_peer_on_another_kind_of_socket_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
        with client, connection:
            assert read(connection).standing is Reason.PEER_NOT_UNIX


def test_i3_a_socket_whose_peer_was_never_recorded_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unconnected:
        assert read(unconnected).standing is Reason.PEER_CREDENTIAL_UNREADABLE


def reason_seen_from_namespace(namespace: int) -> str:
    """Return the refusal that a sidecar in a new namespace gives to this process."""
    answer, answering = os.pipe()
    listening = make_listener()

    def look() -> None:
        connection, _ = listening.accept()
        credential = read(connection)
        os.write(answering, (credential.standing.name if credential.standing else "none").encode())

    def enter() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(namespace) != 0:
            os.write(answering, f"unshare: {os.strerror(ctypes.get_errno())}".encode())
        elif namespace == CLONE_NEWPID:
            os.waitpid(fork(look), 0)
        else:
            look()

    child = fork(enter)
    os.close(answering)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(listening.getsockname())
        seen = os.read(answer, 100).decode()
        os.close(answer)
        os.waitpid(child, 0)
    listening.close()
    return seen


@needs_root
@pytest.mark.root
def test_i3_a_caller_outside_of_the_sidecars_pid_namespace_is_refused() -> None:
    assert reason_seen_from_namespace(CLONE_NEWPID) == "PEER_PID_ZERO"


@needs_root
@pytest.mark.root
def test_i3_a_caller_outside_of_the_sidecars_user_namespace_is_refused() -> None:
    assert reason_seen_from_namespace(CLONE_NEWUSER) == "PEER_OVERFLOW_UID"


def test_i3_groups_that_can_t_be_read_refuse() -> None:
    class FailingKernel(Kernel):
        def read_groups(self, _connection: socket.socket) -> tuple[int, ...]:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    with calling() as caller:
        credential = read(caller.connection, kernel=FailingKernel(), process_mode=True)
        assert credential.standing is Reason.PEER_CREDENTIAL_UNREADABLE


@needs_root
@pytest.mark.root
def test_i4_a_login_uid_is_seen_through_a_change_to_the_services_account() -> None:
    def log_in_and_become_the_service() -> None:
        Path("/proc/self/loginuid").write_text("1234", encoding="ascii")
        become(SERVICE_UID)()

    with calling(log_in_and_become_the_service) as caller:
        credential = read(caller.connection)
        assert credential.standing is None
        assert (credential.login_uid, credential.login_readable) == (1234, True)
        assert credential.session_id is not None


def test_i4_a_hidden_login_is_unreadable_and_not_unset(tmp_path: Path) -> None:
    with calling() as caller:
        credential = read(caller.connection, kernel=Kernel(tmp_path))
        assert credential.standing is None
        assert not credential.login_readable
