"""The host's own accounts, and what its name service says (the directory: tests/integration)."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.peer.accounts import Account, NameService, NameServiceUnavailable
from keyside_sidecar.peer.libc import with_growing_buffer
from keyside_sidecar.peer.switch import Switch

if TYPE_CHECKING:
    import ctypes
    from pathlib import Path

ROOT = Account("root", 0, 0)
NO_SUCH_ID = 3_999_999_999


@pytest.fixture(scope="module")
def names() -> NameService:
    """The host's own name service."""
    return NameService()


def test_every_local_account_is_found_by_uid_and_by_name(names: NameService) -> None:
    for entry in pwd.getpwall():
        assert names.uid_of(entry.pw_name) == entry.pw_uid
        account = names.account(entry.pw_uid)
        assert account is not None
        assert account.uid == entry.pw_uid
    assert names.account(0) == ROOT


def test_every_local_group_is_found_by_name(names: NameService) -> None:
    for entry in grp.getgrall():
        assert names.gid_of(entry.gr_name) == entry.gr_gid


def test_an_accounts_groups_are_those_of_getgrouplist(names: NameService) -> None:
    every_gid = [entry.gr_gid for entry in grp.getgrall()]
    for entry in pwd.getpwall():
        account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        expected = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
        assert names.group_ids(account, every_gid) == expected


def test_what_does_not_exist_is_none(names: NameService) -> None:
    assert names.account(NO_SUCH_ID) is None
    assert names.uid_of("no-such-account") is None
    assert names.gid_of("no-such-group") is None
    assert names.group_ids(ROOT, [NO_SUCH_ID]) == frozenset(os.getgrouplist("root", 0))


@pytest.mark.parametrize("name", ["", "root\0", "root\n", "\ud800", "x" * 100_000, "é", "0"])
def test_a_name_that_nothing_can_have_is_none(names: NameService, name: str) -> None:
    assert names.uid_of(name) is None
    assert names.gid_of(name) is None


def test_any_number_of_threads_may_ask_at_once(names: NameService) -> None:
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(50):
            answer = (names.account(0), names.gid_of("daemon"), names.group_ids(ROOT, [1, 2]))
            if answer[0] != ROOT or answer[1] != grp.getgrnam("daemon").gr_gid:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_broken_nsswitch_conf_is_an_outage_and_not_an_absence(tmp_path: Path) -> None:
    path = tmp_path / "nsswitch.conf"
    path.write_text("passwd: files [NOTFOUND=perhaps]\n")
    names = NameService(Switch(path))
    assert names.account(0) == ROOT
    with pytest.raises(NameServiceUnavailable):
        names.account(NO_SUCH_ID)


def test_without_nsswitch_conf_the_files_answer(tmp_path: Path) -> None:
    names = NameService(Switch(tmp_path / "missing"))
    assert names.account(NO_SUCH_ID) is None
    assert 0 in names.group_ids(ROOT, [NO_SUCH_ID])


def test_an_unreadable_nsswitch_conf_is_an_outage(tmp_path: Path) -> None:
    names = NameService(Switch(tmp_path))  # a directory: EISDIR
    with pytest.raises(NameServiceUnavailable, match="directory"):
        names.group_ids(ROOT, [NO_SUCH_ID])


def test_a_service_whose_library_isnt_installed_is_passed_over_as_libc_does(
    tmp_path: Path,
) -> None:
    path = tmp_path / "nsswitch.conf"
    path.write_text("passwd: files nosuchservice\ngroup: files nosuchservice\n")
    names = NameService(Switch(path))
    assert names.account(NO_SUCH_ID) is None
    assert names.group_ids(ROOT, [NO_SUCH_ID])


def test_a_buffer_that_is_too_small_grows_up_to_a_limit() -> None:
    sizes: list[int] = []

    def call(buffer: ctypes.Array[ctypes.c_char]) -> int:
        sizes.append(len(buffer))
        return errno.ERANGE

    assert with_growing_buffer(call) == errno.ERANGE
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 16 * 1024 * 1024


def test_an_interrupted_call_is_made_again_but_not_for_ever() -> None:
    answers = iter([errno.EINTR, errno.EINTR, 0])
    assert with_growing_buffer(lambda _: next(answers)) == 0
    assert with_growing_buffer(lambda _: errno.EINTR) == errno.EINTR


@pytest.mark.parametrize("state", ["never ran", "runs", "stopped"])
def test_sssd_that_ran_and_is_gone_is_an_outage(tmp_path: Path, state: str) -> None:
    path = tmp_path / "nss"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        if state != "never ran":
            listening.bind(str(path))
            listening.listen()
        if state == "stopped":
            listening.close()
        switch = Switch(sssd_socket=path)
        if state == "stopped":
            with pytest.raises(OSError, match="SSSD"):
                switch._check_sssd()
        else:
            switch._check_sssd()
