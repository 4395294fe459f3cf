"""The hold on the calling process, and what stands in for it on an old kernel (I3)."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING, cast

import pytest
from tests.unit.forked_caller import (
    OldKernel,
    calling,
    read,
)

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer import pidfd as pidfds
from keyside_sidecar.peer.credential import (
    read_credential,
)
from keyside_sidecar.peer.kernel import Kernel, Ucred

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def test_the_pidfd_tells_when_the_caller_ends() -> None:
    with calling() as caller:
        _, pidfd = read_credential(caller.connection)
        assert pidfd is not None
        try:
            assert not os.get_inheritable(pidfd)
            assert not pidfds.has_ended(pidfd)
            caller.kill()
            assert select.select([pidfd], [], [], 10)[0]
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("failure", [errno.EMFILE, errno.ENODATA, errno.EPERM, errno.EBADF])
def test_a_failure_of_the_pidfd_call_is_not_taken_for_an_old_kernel(failure: int) -> None:
    class FailingKernel(Kernel):
        def read_pidfd(self, _connection: socket.socket) -> int:
            raise OSError(failure, os.strerror(failure))

        def find_pidfd(self, _ucred: Ucred, _accepted_s: float) -> int:
            raise AssertionError("the fallback is for kernels without the call")

    with calling() as caller:
        credential = read(caller.connection, kernel=FailingKernel())
        assert credential.standing is Reason.PEER_CREDENTIAL_UNREADABLE


@pytest.mark.parametrize("failure", [errno.ESRCH, errno.EINVAL])
def test_older_kernels_way_of_saying_that_the_peer_was_reaped_is_understood(failure: int) -> None:
    class Refusing:
        def getsockopt(self, _level: int, _option: int) -> int:
            raise OSError(failure, os.strerror(failure))

    with pytest.raises(pidfds.ProcessEnded):
        pidfds.ask_kernel(cast("socket.socket", Refusing()))


def test_an_old_kernels_caller_is_found_by_its_number() -> None:
    with calling() as caller:
        credential = read(caller.connection, kernel=OldKernel())
        assert credential.standing is None
        assert credential.pidfd_source == "pidfd_open"


def test_a_process_that_started_after_the_connection_was_accepted_is_not_its_caller() -> None:
    accepted_s = pidfds.boot_time_s() - 1
    with calling() as caller:
        credential = read(caller.connection, kernel=OldKernel(), accepted_s=accepted_s)
        assert credential.standing is Reason.PEER_ENDED


def test_a_process_without_the_recorded_uid_is_not_the_caller() -> None:
    class OtherUid(OldKernel):
        def read_ucred(self, connection: socket.socket) -> Ucred:
            return super().read_ucred(connection)._replace(uid=70009)

    with calling() as caller:
        assert read(caller.connection, kernel=OtherUid()).standing is Reason.PEER_ENDED


def test_a_process_that_proc_hides_is_not_taken_for_the_caller(tmp_path: Path) -> None:
    """With hidepid, another account's process seems not to exist; nothing can be checked."""
    with calling() as caller:
        credential = read(caller.connection, kernel=OldKernel(tmp_path))
        assert credential.standing is Reason.PEER_CREDENTIAL_UNREADABLE


@pytest.mark.parametrize("text", ["", "1 (x) R", "1 (x) R " + "z " * 40])
def test_a_process_that_proc_describes_in_other_words_is_not_taken_for_the_caller(
    tmp_path: Path, text: str
) -> None:
    with calling() as caller:
        (tmp_path / str(caller.pid)).mkdir()
        (tmp_path / str(caller.pid) / "stat").write_text(text)
        credential = read(caller.connection, kernel=OldKernel(tmp_path))
        assert credential.standing is Reason.PEER_CREDENTIAL_UNREADABLE


def test_this_kernel_gives_pidfds_of_peers() -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert pidfds.kernel_gives_peer_pidfd() == (release >= (6, 5))
