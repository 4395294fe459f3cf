"""Real callers for tests of who is calling: forked children that connect to a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.peer.credential import read_credential
from keyside_sidecar.peer.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.peer import caller as callers

SERVICE_UID = 70001
SERVICE_GID = 70002

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root: takes other uids")


def make_listener() -> socket.socket:
    """Return a listening socket that every uid can reach."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(f"\0keyside-test-{secrets.token_hex(16)}")
    listening.listen()
    return listening


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def fork(body: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:  # noqa: BLE001  # nothing of the test may run on in the child
            os._exit(1)
        os._exit(0)
    return pid


class Caller:
    """A child that connects, after ``prepare`` ran in it, and lives until it is killed."""

    def __init__(self, prepare: Callable[[], object], *, heir: bool) -> None:
        self.reaped = False

        def live() -> None:
            prepare()
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(listening.getsockname())
            if heir and os.fork() != 0:
                os._exit(0)
            signal.alarm(60)
            connection.recv(1)  # until the other end closes

        with make_listener() as listening:
            self.pid = fork(live)
            listening.settimeout(20)
            self.connection, _ = listening.accept()

    def wait_until_zombie(self) -> None:
        """Wait until the caller has ended, and leave it unreaped."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> None:
        """Wait until the caller has ended, and reap it."""
        os.waitpid(self.pid, 0)
        self.reaped = True

    def kill(self) -> None:
        """End the caller, and leave it unreaped."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_until_zombie()

    def finish(self) -> None:
        """Close the connection and end the caller."""
        self.connection.close()
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            self.reap()


@contextlib.contextmanager
def calling(
    prepare: Callable[[], object] = lambda: None, *, heir: bool = False
) -> Iterator[Caller]:
    """Have a child call; check that whatever is done with it leaves no descriptor open.

    Args:
        prepare: Runs in the child before it connects.
        heir: The child leaves its connection to a child of its own, and ends.
    """
    before = count_descriptors()
    caller = Caller(prepare, heir=heir)
    try:
        yield caller
    finally:
        caller.finish()
    assert count_descriptors() == before


def become(uid: int, gid: int = SERVICE_GID, groups: tuple[int, ...] = ()) -> Callable[[], None]:
    def prepare() -> None:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)

    return prepare


def read(
    connection: socket.socket,
    *,
    process_mode: bool = False,
    kernel: Kernel | None = None,
    accepted_s: float | None = None,
) -> callers.Caller:
    """Read a credential and close the pidfd, which is there exactly where it isn't refused."""
    credential, pidfd = read_credential(
        connection,
        process_mode=process_mode,
        kernel=kernel or Kernel(),
        accepted_s=accepted_s,
    )
    assert (pidfd is None) == (credential.standing is not None)
    if pidfd is not None:
        os.close(pidfd)
    return credential


class OldKernel(Kernel):
    """A kernel without SO_PEERPIDFD."""

    def read_pidfd(self, _connection: socket.socket) -> int:
        """Fail as such a kernel does."""
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
