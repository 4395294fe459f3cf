"""An interpreter that the sidecar's account can't reach is found before anything is done.

Python below /root, as pyenv, uv and pipx put it there; or packages that root installed under umask
077. Every command that becomes the account says so in one line, and changes nothing.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.sidecar import SIDECAR_UID, Sidecar, sidecar_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

CONFIG = 78
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = Path(sysconfig.get_path("purelib"))
BASE = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Install:
    """A way to install the program so that the account can't read it.

    Args:
        name: What is closed.
        make: Makes it below a directory; returns the interpreter.
        closed: What the message names, below that directory.
    """

    name: str
    make: Callable[[Path], Path]
    closed: str


def make_environment(directory: Path) -> Path:
    """Make a virtual environment with our packages; return its interpreter."""
    subprocess.run([BASE, "-m", "venv", "--without-pip", directory], check=True)
    packages = directory / "lib" / VERSION / "site-packages"
    for entry in PACKAGES.iterdir():
        (packages / entry.name).symlink_to(entry)
    return directory / "bin" / "python"


def make_python(directory: Path) -> Path:
    """Copy the interpreter, as a Python of its own with all that belongs to it."""
    (directory / "bin").mkdir(parents=True)
    shutil.copy2(BASE, directory / "bin" / VERSION)
    library = directory / "lib" / VERSION
    library.mkdir(parents=True)
    for entry in Path(os.__file__).parent.iterdir():
        if entry.name not in {"site-packages", "dist-packages"}:
            (library / entry.name).symlink_to(entry)
    (library / "site-packages").symlink_to(PACKAGES)
    (library / "dist-packages").symlink_to(PACKAGES)
    return directory / "bin" / VERSION


def own(environment: Path, name: str) -> Path:
    """Give an environment a copy of one of its packages; return where that is."""
    place = environment / "lib" / VERSION / "site-packages" / name
    original = place.resolve()
    place.unlink()
    if original.is_dir():
        shutil.copytree(original, place)
    else:
        shutil.copy2(original, place)
    return place


def below_a_closed_directory(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(directory: Path) -> Path:
        (directory / "root").mkdir(mode=0o700)
        return make(directory / "root" / "python")

    return made


def with_closed(package: str, below: str, mode: int) -> Callable[[Path], Path]:
    def made(directory: Path) -> Path:
        python = make_environment(directory / "venv")
        (own(directory / "venv", package) / below).chmod(mode)
        return python

    return made


def with_closed_extension(directory: Path) -> Path:
    python = make_environment(directory / "venv")
    (extension,) = own(directory / "venv", "uvloop").glob("loop*.so")
    extension.chmod(0o600)
    return python


def with_closed_base(directory: Path) -> Path:
    """A virtual environment that all can read, of a Python that they can't."""
    (directory / "root").mkdir(mode=0o700)
    base = make_python(directory / "root" / "python")
    venv = ("-m", "venv", "--without-pip", str(directory / "venv"))
    subprocess.run([base, *venv], check=True, capture_output=True)
    packages = directory / "venv" / "lib" / VERSION / "site-packages"
    for entry in PACKAGES.iterdir():
        (packages / entry.name).symlink_to(entry)
    return directory / "venv" / "bin" / "python"


def with_an_access_list(directory: Path) -> Path:
    """Open by its mode, and closed to the account by an access list (acl(5), version 2)."""
    python = make_environment(directory / "venv")
    none = 0xFFFFFFFF
    entries = [
        (0x01, 7, none),
        (0x02, 0, SIDECAR_UID),
        (0x04, 5, none),
        (0x10, 5, none),
        (0x20, 5, none),
    ]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(directory / "venv", "system.posix_acl_access", access)
    return python


INSTALLS = [
    Install("Python below a closed directory", below_a_closed_directory(make_python), "root"),
    Install("environment below one", below_a_closed_directory(make_environment), "root"),
    Install("environment of a closed Python", with_closed_base, "root"),
    Install(
        "package for its owner only",
        with_closed("sqlalchemy", "", 0o700),
        f"venv/lib/{VERSION}/site-packages/sqlalchemy",
    ),
    Install(
        "module for its owner only",
        with_closed("keyside_sidecar", "worker.py", 0o600),
        f"venv/lib/{VERSION}/site-packages/keyside_sidecar/worker.py",
    ),
    Install(
        "extension for its owner only",
        with_closed_extension,
        f"venv/lib/{VERSION}/site-packages/uvloop/loop",
    ),
    Install("closed by an access list", with_an_access_list, "venv"),
]
COMMANDS = [
    ("init",),
    ("init", "--only-audit"),
    ("check",),
    ("check", "--json"),
    ("serve",),
    ("backup", "BACKUP"),
    ("restore", "keyside.toml"),
    ("migrate",),
    ("root", "show"),
    ("root", "rotate"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    with sidecar_directory() as directory:
        yield directory


def look(directory: Path) -> dict[str, tuple[int, int]]:
    """Return all that is in a directory, with what would tell of a change."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in directory.rglob("*")
    }


def configure(directory: Path) -> Sidecar:
    """Return a sidecar of which there is a configuration, and nothing else yet."""
    directory.mkdir()
    sidecar = Sidecar(directory)
    sidecar.lay_out()
    return sidecar


def run(python: Path, sidecar: Sidecar, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = [str(sidecar.directory / it) if it.isupper() else it for it in arguments]
    return subprocess.run(
        [python, "-B", "-m", "keyside_sidecar", "--config", sidecar.config_path, *given],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], closed: Path) -> None:
    assert done.returncode == CONFIG, done.stdout + done.stderr
    assert done.stdout == ""
    *log, said, remedy = done.stderr.splitlines()
    assert all(line.startswith("ts=") for line in log), done.stderr
    assert said.startswith(f"keysided: the sidecar's account (uid {SIDECAR_UID}) can't read "), said
    assert str(closed) in said
    assert remedy.startswith("  what to do: install Python and Keyside where every account may")


@pytest.mark.parametrize("install", INSTALLS, ids=lambda install: install.name)
def test_a_program_that_the_account_cant_read_is_found_before_anything_is_written(
    place: Path, install: Install
) -> None:
    """By ``init``, which would else leave half a host behind; once it can be read, all goes on."""
    python = install.make(place)
    sidecar = configure(place / "keyside")
    before = look(sidecar.directory)
    refused(run(python, sidecar, "init"), place / install.closed)
    assert look(sidecar.directory) == before


def test_every_command_that_becomes_the_account_finds_it(place: Path) -> None:
    """Each with the same line, before it touches anything."""
    python = below_a_closed_directory(make_python)(place)
    sidecar = configure(place / "keyside")
    before = look(sidecar.directory)
    for command in COMMANDS:
        refused(run(python, sidecar, *command), place / "root")
        assert look(sidecar.directory) == before, command
    (place / "root").chmod(0o711)
    made = run(python, sidecar, "init")
    assert made.returncode == 0, made.stderr
    found = run(python, sidecar, "check")
    assert found.returncode == 0, found.stdout


def test_every_command_is_in_the_table() -> None:
    """A new one that becomes the account belongs there."""
    from keyside_sidecar.__main__ import cli, root

    # These read and write nothing of the account's.
    others = {"root", "files", "completion"}
    commands: set[tuple[str, ...]] = {(name,) for name in cli.commands if name not in others}
    commands |= {("root", name) for name in root.commands}
    tried = {
        tuple(it for it in command if it.islower() and "." not in it and it[0] != "-")
        for command in COMMANDS
    }
    assert tried == commands


def test_what_no_account_needs_may_be_closed(place: Path) -> None:
    """Another package beside ours, and compiled files, keep nothing from being served."""
    python = make_environment(place / "venv")
    packages = place / "venv" / "lib" / VERSION / "site-packages"
    (packages / "ks_test_other").mkdir(mode=0o700)
    own(place / "venv", "click").joinpath("__pycache__").chmod(0o700)
    sidecar = configure(place / "keyside")
    made = run(python, sidecar, "init")
    assert made.returncode == 0, made.stderr
