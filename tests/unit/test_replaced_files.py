"""What a file keeps when it is replaced, in one table over everything that replaces files.

Owner, group, mode, access control list and extended attributes; what can't be kept is narrower,
never wider, and is said.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.envelope_double import EnvelopeDouble

import keyside
from keyside import cli
from keyside._access_list import AccessList
from keyside._file_traits import FileTraits, give_traits, read_traits

if TYPE_CHECKING:
    from collections.abc import Iterator

LIST = "system.posix_acl_access"
# user::rw-, user:12345:rw-, group::---, mask::rw-, other::---: the mode is 0660, and the group is
# allowed nothing.
ACCESS_LIST = bytes.fromhex(
    "0200000001000600ffffffff020006003930000004000000ffffffff10000600ffffffff20000000ffffffff"
)
WRITERS = ("encrypt", "rewrap", "reencrypt", "rewrap PATH", "reencrypt PATH", "keyside.open")
OWNER, GROUP, STRANGER = 12345, 12346, 12347


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnvelopeDouble]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        running.allow_data_keys = True
        yield running


@pytest.fixture
def target(tmp_path: Path, double: EnvelopeDouble) -> Path:
    """An envelope with all that a file can have."""
    (tmp_path / "files").mkdir()
    made = tmp_path / "files" / "target"
    made.write_bytes(double.seal(b"secret"))
    os.setxattr(made, LIST, ACCESS_LIST)
    os.setxattr(made, "user.note", b"kept")
    return made


def write(double: EnvelopeDouble, writer: str, target: Path) -> int:
    """Replace the target in that way; return the exit code."""
    double.rotate()
    arguments = {
        "encrypt": ["encrypt", "mail", "-i", "/dev/null", "-o", str(target)],
        "decrypt": ["decrypt", "-i", str(target), "-o", str(target)],
        "rewrap": ["rewrap", "-i", str(target), "-o", str(target)],
        "reencrypt": ["reencrypt", "-i", str(target), "-o", str(target)],
        "rewrap PATH": ["rewrap", str(target)],
        "reencrypt PATH": ["reencrypt", str(target)],
    }
    if writer in arguments:
        return cli._run(["--socket", double.socket, *arguments[writer]])
    with (
        keyside.Client(double.socket) as client,
        keyside.open(target, "wb", key="mail", client=client) as file,
    ):
        file.write(b"new")
    return 0


@pytest.mark.root
@pytest.mark.parametrize("writer", WRITERS)
def test_all_of_it_is_kept_and_nothing_inherited(
    double: EnvelopeDouble, target: Path, capsys: pytest.CaptureFixture[str], writer: str
) -> None:
    """And so is having no list, in a directory that gives new files one."""
    os.chown(target, OWNER, GROUP)
    os.setxattr(target, "security.note", b"kept too")
    os.setxattr(target.parent, "system.posix_acl_default", ACCESS_LIST)
    before = target.stat()
    assert write(double, writer, target) == 0
    after = target.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (OWNER, GROUP, before.st_mode)
    assert os.getxattr(target, LIST) == ACCESS_LIST
    assert os.getxattr(target, "user.note") == b"kept"
    assert os.getxattr(target, "security.note") == b"kept too"
    target.write_bytes(double.seal(b"secret"))
    os.removexattr(target, LIST)
    target.chmod(0o2640)
    assert write(double, writer, target) == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o2640
    assert LIST not in os.listxattr(target)
    assert capsys.readouterr().err == ""


@pytest.mark.root
def test_a_plaintext_is_its_owners_alone(double: EnvelopeDouble, target: Path) -> None:
    """Decrypt keeps all of it too, and lets nobody but the owner in."""
    os.chown(target, OWNER, GROUP)
    assert write(double, "decrypt", target) == 0
    after = target.stat()
    assert (after.st_uid, after.st_gid) == (OWNER, GROUP)
    assert stat.S_IMODE(after.st_mode) == 0o600
    assert os.getxattr(target, "user.note") == b"kept"
    found = AccessList(os.getxattr(target, LIST))
    assert (found.mode, found.group) == (0o600, 0)
    assert os.getxattr(target, LIST)[:20] == ACCESS_LIST[:20]  # the entries, under an empty mask
    target.write_bytes(double.seal(b"secret"))
    target.chmod(0o400)
    assert write(double, "decrypt", target) == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o400


AS_STRANGER = """
import os, runpy, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.umask(0)
sys.argv = ["keyside", *sys.argv[1:]]
runpy.run_module("keyside.cli", run_name="__main__")
"""


def run_as_stranger(double: EnvelopeDouble, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_STRANGER.format(uid=STRANGER), *arguments],
        env={**os.environ, "KEYSIDE_SOCKET": double.socket, "KEYSIDE_EXPECTED_OWNER": "root"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def open_up(path: Path) -> None:
    """Let a stranger reach it, and write there."""
    for folder in (path, *list(path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (path.parent / "k.sock").chmod(0o777)
    path.chmod(0o777)


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "access_list", "becomes"),
    [
        (0o664, None, 0o604),
        (0o604, None, 0o600),
        (0o646, None, 0o604),
        (0o6775, None, 0o705),
        (0o660, ACCESS_LIST, 0o660),
    ],
    ids=["group", "group denied", "group less than others", "set-id", "list"],
)
def test_what_a_stranger_cant_keep_is_narrower_and_said(
    double: EnvelopeDouble, target: Path, mode: int, access_list: bytes | None, becomes: int
) -> None:
    """Owner and group are others; the former group gains nothing, nor does the new one."""
    os.removexattr(target, LIST)
    target.chmod(mode)
    if access_list:
        os.setxattr(target, LIST, access_list)
    os.chown(target.parent, STRANGER, STRANGER)
    os.chown(target, OWNER, GROUP)
    target.chmod(mode)
    open_up(target.parent)
    finished = run_as_stranger(double, "encrypt", "mail", "-i", "/dev/null", "-o", str(target))
    assert finished.returncode == 0, finished.stderr
    after = target.stat()
    assert (after.st_uid, after.st_gid) == (STRANGER, STRANGER)
    assert stat.S_IMODE(after.st_mode) == becomes
    assert f"not kept: owner {OWNER}, group {GROUP}" in finished.stderr
    if access_list:
        # Whom the list names may what they might; the group it is now gets nothing.
        assert os.getxattr(target, LIST) == access_list


@pytest.mark.root
def test_a_planted_file_in_everybodys_directory_does_not_get_the_plaintext(
    double: EnvelopeDouble, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who made /tmp/report in advance owns nothing of what root writes there."""
    target.parent.chmod(0o1777)
    planted = target.parent / "report"
    planted.touch()
    os.chown(planted, STRANGER, STRANGER)
    os.setxattr(planted, LIST, ACCESS_LIST)
    source = tmp_path / "e"
    source.write_bytes(double.seal(b"secret"))
    given = ["decrypt", "-i", str(source), "-o", str(planted)]
    assert cli._run(["--socket", double.socket, *given]) == 0
    after = planted.stat()
    assert (after.st_uid, stat.S_IMODE(after.st_mode)) == (0, 0o600)
    assert f"not kept: owner {STRANGER}" in capsys.readouterr().err
    assert planted.read_bytes() == b"secret"


def traits(**attributes: bytes) -> FileTraits:
    status = list(Path("/etc/passwd").stat())
    status[0], status[4], status[5] = stat.S_IFREG | 0o664, os.geteuid(), os.getegid()
    return FileTraits(os.stat_result(status), attributes)


def test_a_list_that_cant_be_kept_leaves_the_owner_alone(tmp_path: Path) -> None:
    """Because it can't be set, can't be read, or is of no known form: the mode is its mask."""
    for number, given in enumerate(
        (
            traits(**{LIST: b"\x02\x00\x00\x00"}),
            traits(**{LIST: ACCESS_LIST[:-3]}),
            FileTraits(traits().status, {}, (LIST,)),
            traits(**{"system.nfs4_acl": b"another kind of list"}),
        )
    ):
        place = tmp_path / str(number)
        with place.open("w") as file:
            kept = give_traits(file.fileno(), given)
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        assert any("access control list" in lost for lost in kept.describe_lost())


def test_attributes_that_cant_be_kept_are_named(
    double: EnvelopeDouble, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every way; the library gives a warning, and says it of the file."""
    with (target.parent / "new").open("wb") as file:
        kept = give_traits(file.fileno(), traits(**{"none.such": b"x", "user.note": b"y"}))
        assert kept.describe_lost() == ["extended attribute none.such"]
        assert os.getxattr(file.fileno(), "user.note") == b"y"
    os.link(target, target.parent / "other")
    assert write(double, "encrypt", target) == 0
    assert "target: not kept: 1 other name, of the former content" in capsys.readouterr().err
    (target.parent / "other").unlink()
    os.link(target, target.parent / "other")
    with keyside.Client(double.socket) as client:
        sealed = keyside.open(target, "wb", key="mail", client=client)
        assert not sealed.not_kept
        with pytest.warns(RuntimeWarning, match="not kept: 1 other name, of the former content"):
            sealed.close()
        assert sealed.not_kept == ("1 other name, of the former content",)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            keyside.open(target, "wb", key="mail", client=client).close()


def test_computed_sums_are_left_to_the_kernel(tmp_path: Path) -> None:
    """They are of the former content."""
    with (tmp_path / "f").open("wb") as file:
        kept = give_traits(file.fileno(), traits(**{"security.ima": b"\x01" + bytes(20)}))
        assert kept.describe_lost() == []
        assert "security.ima" not in os.listxattr(file.fileno())


def test_what_is_read_is_what_was_given(target: Path) -> None:
    found = read_traits(str(target), target.stat())
    assert found.attributes[LIST] == ACCESS_LIST
    assert found.attributes["user.note"] == b"kept"
    assert found.unreadable == ()
