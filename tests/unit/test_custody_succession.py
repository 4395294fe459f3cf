"""Replacing a root key's file: at every instant, and after every kill, the right one is there."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.custody import (
    FileCustodian,
    create_root_key_file,
    name_former,
    name_next,
)
from keyside_sidecar.custody.succession import Succession
from keyside_sidecar.errors import CustodyError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ME = frozenset({os.geteuid()})
STEPS = ["open", "write", "fsync", "link", "unlink", "rename"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    create_root_key_file(tmp_path / "root.key", os.geteuid(), os.getegid())
    return tmp_path / "root.key"


@pytest.fixture
def files(path: Path) -> Succession:
    return Succession(path, os.geteuid(), os.getegid())


def load(path: Path) -> str:
    return FileCustodian.load(path, owner_uids=ME).key_id


def die_at(call: int, work: Callable[[], object]) -> bool:
    """Do something in a process that is killed before its n-th change; say whether it was."""
    pid = os.fork()
    if pid == 0:
        left = call

        def count(real: Callable[..., object]) -> Callable[..., object]:
            def act(*arguments: object, **named: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return act

        for name in STEPS:
            setattr(os, name, count(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_the_next_root_key_is_made_beside_the_one_in_place(files: Succession, path: Path) -> None:
    before = load(path)
    key_id, is_new = files.begin()
    assert is_new
    assert key_id != before
    assert (load(path), load(name_next(path))) == (before, key_id)


def test_one_that_waits_already_is_taken(files: Succession) -> None:
    assert files.begin()[0] == files.begin()[0]
    assert not files.begin()[1]


def test_settling_puts_it_in_place_and_keeps_the_former(files: Succession, path: Path) -> None:
    before = load(path)
    key_id, _ = files.begin()
    assert files.settle(key_id) == name_former(path, before)
    assert (load(path), load(name_former(path, before))) == (key_id, before)
    assert not name_next(path).exists()
    assert files.settle(key_id) is None, "there is nothing left to do"
    assert files.settle(files.begin()[0]) == name_former(path, key_id), "and again"


def test_an_open_custodian_finds_what_waits_and_what_followed(
    files: Succession, path: Path
) -> None:
    custodian = FileCustodian.load(path, owner_uids=ME)
    key_id, _ = files.begin()
    assert custodian.list_ids() == (custodian.key_id, key_id)
    assert custodian.find(key_id).key_id == key_id
    files.settle(key_id)
    assert custodian.find(key_id).key_id == key_id
    with pytest.raises(CustodyError, match="not to be found"):
        custodian.find(key_id).find(custodian.key_id)


def test_another_root_key_than_the_stores_is_not_put_in_place(
    files: Succession, path: Path
) -> None:
    before = load(path)
    files.begin()
    with pytest.raises(CustodyError, match="the store belongs to") as caught:
        files.settle("0123456789abcdef")
    assert caught.value.remedy
    assert load(path) == before


@pytest.mark.parametrize("kept", ["foreign", "text", "link"])
def test_a_file_in_the_way_of_the_former_root_key_is_not_touched(
    files: Succession, path: Path, kept: str
) -> None:
    before = load(path)
    place = name_former(path, before)
    if kept == "foreign":
        create_root_key_file(place, os.geteuid(), os.getegid())
    elif kept == "link":
        place.symlink_to(path)
    else:
        place.write_text("mine")
        place.chmod(0o600)
    content = place.read_bytes()
    key_id, _ = files.begin()
    with pytest.raises(CustodyError, match="can't be kept") as caught:
        files.settle(key_id)
    assert "move" in caught.value.remedy
    assert (load(path), load(name_next(path))) == (before, key_id)
    assert place.read_bytes() == content


@pytest.mark.parametrize("what", ["mode", "link", "cut", "same", "fifo"])
def test_what_somebody_put_there_is_not_taken(files: Succession, path: Path, what: str) -> None:
    following = name_next(path)
    if what == "link":
        create_root_key_file(path.with_name("elsewhere"), os.geteuid(), os.getegid())
        following.symlink_to(path.with_name("elsewhere"))
    elif what == "fifo":
        os.mkfifo(following, 0o600)
    else:
        files.begin()
        if what == "mode":
            following.chmod(0o644)
        elif what == "cut":
            following.write_bytes(following.read_bytes()[:-5])
        else:
            following.write_bytes(path.read_bytes())
    with pytest.raises(CustodyError) as caught:
        files.begin()
    assert caught.value.remedy


def test_a_directory_that_others_can_write_to_is_refused(files: Succession, path: Path) -> None:
    path.parent.chmod(0o770)
    for step in (files.begin, lambda: files.settle("0" * 16), lambda: files.locked().__enter__()):
        with pytest.raises(CustodyError, match="someone else may replace"):
            step()


@pytest.mark.root
def test_a_next_root_key_of_someone_else_is_not_taken(files: Succession, path: Path) -> None:
    files.begin()
    os.chown(name_next(path), 4711, 4711)
    with pytest.raises(CustodyError, match="belongs to uid 4711"):
        files.begin()


def test_only_one_replaces_it_at_a_time(files: Succession, path: Path) -> None:
    other = Succession(path, os.geteuid(), os.getegid())
    with (
        files.locked(),
        pytest.raises(StartupError, match="being replaced by someone else") as caught,
        other.locked(),
    ):
        pass
    assert caught.value.exit_code == 75
    with other.locked():
        pass


def test_a_killed_process_leaves_no_lock(files: Succession) -> None:
    def hold() -> None:
        with files.locked():
            os.kill(os.getpid(), signal.SIGKILL)

    assert die_at(0, hold)
    with files.locked():
        pass


def test_i10_a_kill_at_any_step_leaves_the_root_key_to_be_found(
    files: Succession, path: Path
) -> None:
    """Whichever of the two the store belongs to at that moment."""
    killed = 0
    for call in range(1, 100):
        before = load(path)
        if not die_at(call, files.begin):
            break
        killed += 1
        assert load(path) == before
        assert not name_next(path).exists() or load(name_next(path))
        files.begin()
        name_next(path).unlink()
    assert killed >= 4
    for call in range(1, 100):
        before = load(path)
        key_id, _ = files.begin()

        def settle(key_id: str = key_id) -> None:
            files.settle(key_id)

        was_killed = die_at(call, settle)
        killed += was_killed
        there = {load(it) for it in (path, name_next(path)) if it.exists()}
        assert path.exists()
        assert key_id in there, "what the store belongs to is where sidecars look for it"
        files.settle(key_id)
        assert (load(path), load(name_former(path, before))) == (key_id, before)
        if not was_killed:
            break
    assert killed >= 8
