"""What a killed command leaves: no name before the end, and what there is is swept by the next one.

One table over everything that writes whole files, killed at each single change to the disk, where
the file system has files without a name and where it has none.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.cli_process import call
from tests.unit.envelope_double import EnvelopeDouble
from tests.unit.killed_walk import be_plain

from keyside import _new_file as new_file
from keyside import _temporary as temporary
from keyside._atomic import AtomicFile
from keyside._new_file import NewFile
from keyside.cli.credential_files import CredentialDestination
from keyside_sidecar.audit import recovery
from keyside_sidecar.audit.places import write_new
from keyside_sidecar.commands.drafts import Draft
from keyside_sidecar.custody.file import create_root_key_file
from keyside_sidecar.store.initialise import make_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
CHANGING = ("link", "rename", "unlink", "fsync", "fchmod", "fchown", "ftruncate", "write", "open")
KILLED = 86
SECRET = b"a secret that nobody may find\n" * 100


def write_atomic(path: Path) -> None:
    file = AtomicFile(path, secret=True)
    try:
        file.write(SECRET)
        file.put_in_place()
    finally:
        file.discard()


def write_new_atomic(path: Path) -> None:
    file = AtomicFile(path, secret=False, exclusive=True)
    try:
        file.write(SECRET)
        file.put_in_place()
    finally:
        file.discard()


def write_credential(path: Path) -> None:
    with CredentialDestination("ar-aaaaaaaaaaaa", str(path)) as destination:
        destination.save(SECRET)


def write_draft(path: Path) -> None:
    with Draft(path) as draft:
        os.write(draft.descriptor, SECRET)
        draft.publish()


def write_aside(path: Path) -> None:
    source = os.memfd_create("log")
    os.pwrite(source, SECRET, 0)
    recovery._keep_aside(source, 0, len(SECRET), path)
    os.close(source)


WRITERS: dict[str, Callable[[Path], object]] = {
    "AtomicFile": write_atomic,
    "AtomicFile, exclusive": write_new_atomic,
    "credential": write_credential,
    "backup": write_draft,
    "audit file": lambda path: write_new(path, SECRET),
    "damaged records": write_aside,
    "root key": lambda path: create_root_key_file(path, os.geteuid(), os.getegid()),
    "store": lambda path: make_file(path, os.geteuid(), os.getegid(), lambda _: None),
}


def run_killed(write: Callable[[Path], object], path: Path, number: int, *, plain: bool) -> bool:
    """Write in a child that ends before its ``number``-th change; return whether it was."""
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in {0, KILLED}
        return code == KILLED
    code = 1
    try:
        count = 0

        def wrap(owner: Any, name: str) -> None:
            genuine = getattr(owner, name)

            def counted(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os._exit(KILLED)
                return genuine(*arguments, **named)

            setattr(owner, name, counted)

        if plain:
            be_plain()
        else:
            wrap(new_file, "rename_without_replacing")
        for name in CHANGING:
            wrap(os, name)
        write(path)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("plain", [False, True], ids=["nameless files", "no nameless files"])
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_any_change_nothing_half_written_has_a_name(
    tmp_path: Path, name: str, *, plain: bool
) -> None:
    """Under the target's name is all of it or nothing; and the next writer there cleans up."""
    write = WRITERS[name]
    whole = tmp_path / "whole"
    whole.mkdir(0o700)
    write(whole / "target")
    size = (whole / "target").stat().st_size
    number = named = 0
    killed = True
    while killed:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir(0o700)
        killed = run_killed(write, folder / "target", number, plain=plain)
        found = {path.name: path for path in folder.iterdir()}
        target = found.pop("target", None)
        assert target is None or target.stat().st_size == size
        assert all(temporary.is_temporary(left) for left in found)
        # What is sealed follows the umask; everything else is its owner's alone from the beginning.
        modes = {stat.S_IMODE(left.stat().st_mode) for left in found.values()}
        assert modes <= {0o644 if name == "AtomicFile, exclusive" else 0o600}
        named += bool(found)
        temporary._swept_s.clear()  # the next command is another process
        write(folder / "other")
        assert {path.name for path in folder.iterdir()} <= {"target", "other"}
        shutil.rmtree(folder)
    assert number > 5
    # In the instant between a link and a rename, or where there is no other way.
    replaces = name == "AtomicFile"
    expected = named > 2 if plain or name == "store" else named <= (2 if replaces else 0)
    assert expected, named


def test_a_store_that_was_being_filled_leaves_no_side_files(tmp_path: Path) -> None:
    """SQLite's own, beside the temporary name."""
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    pid = os.fork()
    if pid == 0:
        make_file(folder / "a", os.geteuid(), os.getegid(), lambda _: os._exit(KILLED))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == KILLED
    left = [path.name for path in folder.iterdir()]
    assert len(left) > 1
    assert all(temporary.is_temporary(name) for name in left)
    temporary._swept_s.clear()
    make_file(folder / "b", os.geteuid(), os.getegid(), lambda _: None)
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_process_that_goes_on_sweeps_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each time: a program may write thousands of files into a directory."""
    now_s = [1000.0]
    monkeypatch.setattr(temporary, "_swept_s", {})
    monkeypatch.setattr("keyside._temporary.time.monotonic", lambda: now_s[0])
    left = tmp_path / temporary.draw_name()
    write_atomic(tmp_path / "a")
    for later_s, gone in ((59.0, False), (60.0, True)):
        left.touch()
        now_s[0] = 1000.0 + later_s
        write_atomic(tmp_path / "a")
        assert left.exists() != gone


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.mark.parametrize(
    ("system", "step", "left"),
    [
        ("able", "made", 0),
        ("able", "before link", 0),
        ("able", "link", 1),
        ("able", "rename", 0),
        ("plain", "made", 1),
        ("plain", "before rename", 1),
        ("plain", "rename", 0),
    ],
)
def test_a_killed_decrypt_leaves_no_plaintext_behind(
    double: EnvelopeDouble, tmp_path: Path, system: str, step: str, left: int
) -> None:
    """Not for longer than until the next command that writes there, whatever it writes."""
    folder = tmp_path / "files"
    folder.mkdir()
    (tmp_path / "e").write_bytes(double.seal(SECRET))
    target = folder / "plain"
    arguments = ("decrypt", "-i", str(tmp_path / "e"), "-o", str(target))
    killed = subprocess.run(
        [sys.executable, "-m", "tests.unit.killed_walk", system, step, "1", *arguments],
        env={**os.environ, "KEYSIDE_SOCKET": double.socket},
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert target.exists() == (step == "rename")
    assert len([path for path in folder.iterdir() if path != target]) == left
    temporary._swept_s.clear()
    assert call(double, "encrypt", "mail", "-i", "/dev/null", "-o", str(folder / "sealed")) == 0
    assert {path.name for path in folder.iterdir()} <= {"plain", "sealed"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_a_storm_of_kills_leaves_nothing(
    double: EnvelopeDouble, tmp_path: Path, number: signal.Signals
) -> None:
    """While a large file is being opened, and at any other moment."""
    folder = tmp_path / "files"
    folder.mkdir()
    sealed, plain = tmp_path / "e", folder / "plain"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    assert call(double, "encrypt", "mail", "-i", str(tmp_path / "large"), "-o", str(sealed)) == 0
    choose = random.Random(number)
    stopped = amid = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "keyside.cli", "decrypt", "-i", str(sealed), "-o", str(plain)],
            env={**os.environ, "KEYSIDE_SOCKET": double.socket},
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            if holds_nameless(process.pid, folder):
                amid += 1
                break
            time.sleep(0.002)
        time.sleep(choose.random() * 0.2)
        process.send_signal(number)
        stopped += process.wait(30) == -number
        assert not [path for path in folder.iterdir() if path != plain]
        plain.unlink(missing_ok=True)
    assert stopped >= 3
    assert amid >= 3


def holds_nameless(pid: int, folder: Path) -> bool:
    """Whether a process has a file open there that has no name."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            link = str(descriptor.readlink())
            if link.startswith(f"{folder}/") and link.endswith(" (deleted)"):
                return True
    return False


def test_what_others_write_is_not_swept(tmp_path: Path) -> None:
    """Neither a live one, nor a link, a directory, a pipe, or a file with another name."""
    folder = temporary.open_folder(str(tmp_path))
    names = [temporary.draw_name() for _ in range(4)]
    (tmp_path / names[0]).symlink_to("/etc/passwd")
    (tmp_path / names[1]).mkdir()
    os.mkfifo(tmp_path / names[2])
    (tmp_path / names[3]).write_bytes(b"left over")
    (tmp_path / ".keyside-12.tmp").touch()
    with NewFile(folder, named=True) as live:
        temporary.remove_leftovers(folder, os.listdir(folder))
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*names[:3], ".keyside-12.tmp", live.name}
    os.close(folder)
