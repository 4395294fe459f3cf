"""Root keys in files: who may own them, who may read them, and what damage looks like."""

from __future__ import annotations

import os
import pickle
import stat
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.custody import FileCustodian, create_root_key_file, name_next
from keyside_sidecar.errors import CustodyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ME = frozenset({os.geteuid()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "root.key"
    create_root_key_file(path, os.geteuid(), os.getegid())
    return path


def load(path: Path) -> FileCustodian:
    return FileCustodian.load(path, owner_uids=ME)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(CustodyError, match=message) as caught:
        load(path)
    assert caught.value.remedy


def test_a_created_file_loads_and_is_private(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(load(path).key_id) == 16


def test_creation_says_the_key_id_that_loading_finds(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    key_id = create_root_key_file(tmp_path / "a", os.geteuid(), os.getegid())
    assert load(tmp_path / "a").key_id == key_id


def test_a_custodian_from_the_same_file_unwraps_what_another_wrapped(path: Path) -> None:
    assert load(path).unwrap(load(path).wrap(b"k" * 32, b"b"), b"b") == b"k" * 32


def test_creation_never_overwrites(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(CustodyError, match="not overwritten"):
        create_root_key_file(path, os.geteuid(), os.getegid())
    assert path.read_bytes() == before


def test_creation_follows_no_link(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CustodyError):
        create_root_key_file(tmp_path / "link", os.geteuid(), os.getegid())
    assert not (tmp_path / "elsewhere").exists()


def test_creation_ignores_a_generous_umask(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    old = os.umask(0)
    try:
        create_root_key_file(tmp_path / "a", os.geteuid(), os.getegid())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o700, 0o4600])
def test_any_permission_beyond_0600_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    refuse(path, "has mode")


def test_a_file_that_is_read_only_for_its_owner_is_fine(path: Path) -> None:
    path.chmod(0o400)
    assert load(path).key_id


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(CustodyError, match="does not exist") as caught:
        load(tmp_path / "none")
    assert "keysided init" in caught.value.remedy


def test_a_symbolic_link_is_refused(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    refuse(link, "symbolic link")


def test_a_fifo_is_refused_and_does_not_hang(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"), 0o600)
    refuse(path.with_name("fifo"), "not a regular file")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    try:
        refuse(path, "someone else may replace")
    finally:
        path.parent.chmod(0o700)


def test_a_file_of_someone_else_is_refused(path: Path) -> None:
    with pytest.raises(CustodyError, match="belongs to uid"):
        FileCustodian.load(path, owner_uids=frozenset({os.geteuid() + 1}))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown to another uid")
def test_a_directory_of_someone_else_is_refused(path: Path) -> None:
    """Its owner can put another root key there, whatever the file's mode."""
    os.chown(path.parent, 4711, -1)
    refuse(path, "belongs to uid 4711")
    with pytest.raises(CustodyError, match="belongs to uid 4711"):
        create_root_key_file(path.with_name("new"), os.geteuid(), os.getegid())
    assert not path.with_name("new").exists()
    os.chown(path, 4711, -1)
    assert FileCustodian.load(path, owner_uids=frozenset({4711})).key_id
    os.chown(path.parent, 0, -1)
    assert FileCustodian.load(path, owner_uids=frozenset({4711})).key_id, "root may anyway"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown to another uid")
def test_creation_gives_the_file_to_the_owner_that_was_asked_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    create_root_key_file(tmp_path / "a", 4711, 4712)
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid) == (4711, 4712)
    FileCustodian.load(tmp_path / "a", owner_uids=frozenset({4711}))


def test_damage_is_told_from_a_cut_and_from_a_foreign_file(path: Path) -> None:
    line = path.read_bytes()
    for length in range(len(line)):
        path.write_bytes(line[:length])
        refuse(path, "cut short")
    altered = bytearray(line)
    altered[30] = ord("A") if altered[30] != ord("A") else ord("B")
    path.write_bytes(altered)
    refuse(path, "damaged")
    path.write_bytes(line + b"\n")
    refuse(path, "damaged")
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    refuse(path, "not a Keyside root key")
    path.write_bytes(line.replace(b"KEY-1:", b"KEY-2:"))
    refuse(path, "does not know")


def test_any_altered_character_is_refused(path: Path) -> None:
    line = path.read_bytes()
    for position in range(len(line)):
        altered = bytearray(line)
        altered[position] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CustodyError):
            load(path)


def test_no_error_shows_the_key(path: Path) -> None:
    """I7: a message about a damaged root key holds nothing of it."""
    line = path.read_bytes()
    path.write_bytes(line[:-3] + b"!!\n")
    with pytest.raises(CustodyError) as caught:
        load(path)
    assert line[19:40].decode() not in f"{caught.value}{caught.value.remedy}"


def test_a_custodian_shows_nothing_of_its_key(path: Path) -> None:
    """I7."""
    custodian = load(path)
    assert "redacted" in repr(custodian)
    with pytest.raises(TypeError):
        pickle.dumps(custodian)


def _replace(path: Path) -> None:
    other = path.with_name("other.key")
    create_root_key_file(other, os.geteuid(), os.getegid())
    other.replace(path)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "overwritten": (lambda path: path.write_bytes(bytes(80)), "not a Keyside root key"),
    "emptied": (lambda path: os.truncate(path, 0), "cut short"),
    "cut": (lambda path: os.truncate(path, 40), "cut short"),
    "one bit": (
        lambda path: path.write_bytes(path.read_bytes()[:30] + b"!" + path.read_bytes()[31:]),
        "damaged",
    ),
    "removed": (lambda path: path.unlink(), "does not exist"),
    "replaced by another": (_replace, "and the one in use is"),
    "a link": (lambda path: path.symlink_to(path.rename(path.with_name("x"))), "symbolic link"),
    "readable by others": (lambda path: path.chmod(0o644), "mode 0644"),
    "its directory open": (lambda path: path.parent.chmod(0o777), "may replace files"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_key_that_was_kept_well_is_looked_at_again(path: Path, name: str) -> None:
    """However often it was found in order before; and once it is put back, it is in order again."""
    spoil, said = SPOILT[name]
    content, custodian = path.read_bytes(), load(path)
    for _ in range(2):
        custodian.require_kept()
    spoil(path)
    for _ in range(2):
        with pytest.raises(CustodyError, match=said):
            custodian.require_kept()
    path.unlink(missing_ok=True)
    path.parent.chmod(0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    custodian.require_kept()


def test_a_key_that_follows_another_is_kept_beside_it_until_its_turn(path: Path) -> None:
    """As ``keysided root rotate`` has it, in the moment between the store and the file."""
    create_root_key_file(name_next(path), os.geteuid(), os.getegid())
    following = load(path).find(load(name_next(path)).key_id)
    following.require_kept()
    name_next(path).unlink()
    with pytest.raises(CustodyError, match="and the one in use is"):
        following.require_kept()
