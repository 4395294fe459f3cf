"""Whether an account is locked, as real accounts and real rights have it."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.pam import UNIX, People, made_people, pam_service
from tests.unit.forked_caller import become
from tests.unit.pam_scene import made_scene

from keyside_sidecar.pam import shadow
from keyside_sidecar.pam.shadow import can_read_shadow, is_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

NOBODYS_UID = 70003


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    """Accounts in each state that a hash can have."""
    with made_people() as made:
        made.add_person("well", "a password")
        made.add_person("locked", "a password")
        made.lock("locked")
        made.add_user("new")
        made.add_user("elsewhere")
        made.unlock_without_password("elsewhere")
        yield made


def in_child(act: Callable[[], object]) -> str:
    """Return what ``act`` returns, or the name of what it raises, in a process of its own."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            answer = repr(act())
        except BaseException as error:  # noqa: BLE001  (nothing of the test may run on here)
            answer = type(error).__name__
        theirs.send(answer.encode())
        os._exit(0)
    theirs.close()
    with ours:
        answer = ours.recv(1000).decode()
    os.waitpid(pid, 0)
    return answer


@pytest.mark.parametrize(
    ("name", "locked"), [("well", False), ("locked", True), ("new", True), ("elsewhere", False)]
)
def test_a_mark_before_the_hash_is_a_lock(people: People, name: str, *, locked: bool) -> None:
    """An account without a password yet has the mark too; "*" means a password elsewhere."""
    assert is_locked(people.full_name(name).encode()) is locked


def test_who_has_no_entry_is_not_locked() -> None:
    assert is_locked(b"ks-test-nobody") is False
    assert can_read_shadow()


def test_a_host_without_a_shadow_file_locks_nobody(tmp_path: Path) -> None:
    """Whose entry is missing although the account is the host's own: PAM speaks for itself."""
    passwd = tmp_path / "passwd"
    passwd.write_text("ks-test-nobody:x:1:1::/:/bin/sh\n")
    assert is_locked(b"ks-test-nobody", shadow=tmp_path / "none", passwd=passwd) is False
    assert can_read_shadow(tmp_path / "none")


@pytest.mark.parametrize(
    "failure", [0, errno.ENOENT, errno.EACCES], ids=["not found", "ENOENT", "EACCES"]
)
def test_what_may_not_be_read_is_never_taken_for_no_lock(
    people: People, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    """Whatever glibc says of it: with two services for "shadow" it says "not found"."""
    monkeypatch.setattr(shadow, "_ask", lambda _name: (None, failure))
    name = people.full_name("locked").encode()

    def ask(name: bytes) -> Callable[[], object]:
        def act() -> object:
            become(NOBODYS_UID)()
            return is_locked(name)

        return act

    assert in_child(ask(name)) == "PermissionError"
    assert in_child(ask(b"ks-test-nobody")) == "False", "an account of a directory"


def test_an_outage_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_ask", lambda _name: (None, errno.EAGAIN))
    with pytest.raises(OSError, match="unavailable"):
        is_locked(b"ks-test-nobody")


@pytest.mark.parametrize(
    ("groups", "answers"),
    [
        ((), "['unavailable', 'unavailable', 'unavailable']"),
        ((Path("/etc/shadow").stat().st_gid,), "['ok', 'denied', 'locked']"),
    ],
    ids=["alone", "in the group of the shadow file"],
)
def test_an_unprivileged_supervisor_needs_the_group_of_the_shadow_file(
    people: People, groups: tuple[int, ...], answers: str
) -> None:
    """On Debian that is enough, even where set-user-id programs give nothing."""
    if Path("/etc/shadow").stat().st_mode & 0o040 == 0:
        pytest.skip("this host's shadow file is root's alone")
    entry = pwd.getpwuid(people.uid_of("well"))
    with pam_service(UNIX) as service:

        def act() -> object:
            from keyside_sidecar import hardening

            become(NOBODYS_UID, entry.pw_gid, groups)()
            hardening.harden_process(no_new_privs=True)
            with made_scene(service) as scene:
                return [
                    scene.ask(people.uid_of("well"), b"a password"),
                    scene.ask(people.uid_of("well"), b"another"),
                    scene.ask(people.uid_of("locked"), None),
                ]

        assert in_child(act) == answers
