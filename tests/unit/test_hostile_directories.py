"""Root replaces files in a directory whose owner exchanges names meanwhile; and holes in files.

Such a file fails and is counted so; nothing outside is touched; nothing that was planted is put in
a file's place and called a success.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.cli_process import call
from tests.unit.envelope_double import EnvelopeDouble
from tests.unit.killed_walk import be_plain

from keyside import _new_file as new_file
from keyside import _temporary as temporary
from keyside._exchange import exchange_names
from keyside.envelope import (
    DEFAULT_SUITE,
    SegmentSealer,
    generate_data_key,
    parse_wrapping_header,
    wrap_data_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ADVERSARY = 12345
GIB = 1 << 30


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnvelopeDouble]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def tree(tmp_path: Path, double: EnvelopeDouble) -> Path:
    made = tmp_path / "tree"
    made.mkdir()
    (made / "a").write_bytes(double.seal(b"secret"))
    double.rotate()
    return made


def version_of(path: Path) -> int:
    return int(parse_wrapping_header(path.read_bytes()).version_number)


# --- one exchange, at a chosen moment


def swap_temporary(tree: Path, name: str) -> None:
    """Have the planted file take the temporary name, and keep what had it."""
    (tree / name).rename(tree / "stolen")
    (tree / "planted").rename(tree / name)


def steal_temporary(tree: Path, name: str) -> None:
    """The same, and nothing is left of what had the name."""
    (tree / name).unlink()
    (tree / "planted").rename(tree / name)


def swap_target(tree: Path, _: str) -> None:
    (tree / "planted").rename(tree / "a")


def link_target(tree: Path, _: str) -> None:
    (tree / "a").unlink()
    (tree / "a").symlink_to(tree.parent / "outside")


def change_target(tree: Path, _: str) -> None:
    (tree / "a").write_bytes(b"planted")


def remove_target(tree: Path, _: str) -> None:
    (tree / "a").unlink()


MEDDLING = (
    swap_temporary, steal_temporary, swap_target, link_target, change_target, remove_target,
)  # fmt: skip


@pytest.mark.parametrize(
    "scene", [*(("rewrap", one) for one in MEDDLING), ("reencrypt", swap_temporary)]
)
def test_an_exchange_in_the_last_instant_is_found_and_undone(
    double: EnvelopeDouble,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scene: tuple[str, Callable[[Path, str], None]],
) -> None:
    """After the last look at the name: what was put there stays, and what was not does not."""
    command, meddle = scene
    (tree / "planted").write_bytes(b"planted")
    outside = tree.parent / "outside"
    outside.write_bytes(b"outside")
    first: list[str] = []

    def exchange(folder: int, one: str, other: str) -> None:
        if not first:
            first.append(one)
            meddle(tree, one)
        exchange_names(folder, one, other)

    monkeypatch.setattr(new_file, "exchange_names", exchange)
    assert call(double, command, "--json", str(tree / "a")) in {73, 75}
    facts = json.loads(capsys.readouterr().out)
    assert (facts["done"], facts["failed"]) == (0, 1)
    assert outside.read_bytes() == b"outside"
    if meddle in {swap_temporary, steal_temporary}:
        assert version_of(tree / "a") == 1
    elif meddle in {swap_target, change_target}:
        assert (tree / "a").read_bytes() == b"planted"
    elif meddle is link_target:
        assert (tree / "a").is_symlink()
    else:
        assert not (tree / "a").exists()


@pytest.mark.parametrize("meddle", [swap_temporary, steal_temporary])
def test_where_names_cant_be_exchanged_it_is_no_success_either(
    double: EnvelopeDouble,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    meddle: Callable[[Path, str], None],
) -> None:
    """The planted file stands there then, as its planter could have had it without us."""
    for owner, name in (
        (os, "open"), (new_file, "exchange_names"), (new_file, "rename_without_replacing"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    be_plain()
    (tree / "planted").write_bytes(b"planted")
    rename = os.rename

    def meddle_first(old: Any, new: Any, **named: Any) -> None:
        if new == "a":
            monkeypatch.setattr(os, "rename", rename)
            meddle(tree, old)
        rename(old, new, **named)

    monkeypatch.setattr(os, "rename", meddle_first)
    assert call(double, "rewrap", "--json", str(tree / "a")) == 75
    facts = json.loads(capsys.readouterr().out)
    assert (facts["done"], facts["failed"]) == (0, 1)


def test_a_single_file_is_looked_at_too(
    double: EnvelopeDouble, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of -o, whoever it was: what stands there is not what was written."""
    (tree / "planted").write_bytes(b"planted")
    rename = os.rename

    def meddle_first(old: Any, new: Any, **named: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        swap_temporary(tree, old)
        rename(old, new, **named)

    monkeypatch.setattr(os, "rename", meddle_first)
    assert call(double, "encrypt", "mail", "-i", "/dev/null", "-o", str(tree / "b")) == 74


# --- a real adversary

ADVERSARY_CODE = """
import os, sys, time
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
os.chdir({tree!r})
print("ready", flush=True)
end = time.monotonic() + 20
number = 0
while time.monotonic() < end:
    try:
        names = os.listdir(".")
    except OSError:
        continue
    for name in names:
        number += 1
        try:
            if name.endswith(".tmp"):
                os.link("planted", f"plant-{{number}}")
                os.rename(name, f"stolen-{{number}}")
                os.rename(f"plant-{{number}}", name)
            elif name.endswith(".sealed") and number % 7 == 0:
                os.rename(name, "away")
                os.symlink({outside!r}, name)
                os.rename("away", name)
        except OSError:
            pass
"""


@pytest.mark.root
def test_the_directorys_owner_exchanges_names_while_root_walks_it(
    double: EnvelopeDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As fast as he can; no file that holds what he planted has been counted as done."""
    tree = tmp_path / "hostile"
    tree.mkdir()
    count = 60
    for number in range(count):
        (tree / f"{number}.sealed").write_bytes(double.seal(b"plain %d" % number))
    (tree / "planted").write_bytes(double.seal(b"planted"))
    for path in (tree, *tree.iterdir()):
        os.chown(path, ADVERSARY, ADVERSARY)
    outside = tmp_path / "outside"
    outside.write_bytes(double.seal(b"outside"))
    outside.chmod(0o600)
    before = (outside.read_bytes(), outside.stat())
    for folder in list(tmp_path.parents)[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    double.rotate()
    code = ADVERSARY_CODE.format(uid=ADVERSARY, tree=str(tree), outside=str(outside))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as adversary:
        assert adversary.stdout is not None
        assert adversary.stdout.readline() == b"ready\n"
        call(double, "rewrap", "--json", str(tree))
        adversary.kill()
    facts = json.loads(capsys.readouterr().out)
    assert (outside.read_bytes(), outside.stat()) == before
    planted = [
        path
        for path in tree.glob("[0-9]*.sealed")
        if path.is_symlink() or double.open(path.read_bytes()) == b"planted"
    ]
    assert len(planted) <= facts["failed"]
    moved = {
        double.open(path.read_bytes())
        for path in tree.iterdir()
        if path.name.startswith("stolen-") and path.stat().st_size
    }
    done = sum(
        not path.is_symlink() and version_of(path) == 2 for path in tree.glob("[0-9]*.sealed")
    )
    assert facts["done"] <= done + len(moved)
    assert facts["failed"] > 0


# --- holes


def plant_hole(double: EnvelopeDouble, path: Path, hole: int) -> bytes:
    """Make a sealed file with a hole in the middle of its payload; return its wrapping header."""
    data_key = generate_data_key()
    sealer = SegmentSealer(data_key, {}, segment_size=1 << 20)
    header = wrap_data_key(double.current, data_key, DEFAULT_SUITE)
    stride = (1 << 20) + 16
    with path.open("wb") as file:
        file.write(header + sealer.header + sealer.seal_segment(bytes(1 << 20), is_last=False))
        count = hole // stride
        file.seek(count * stride, os.SEEK_CUR)
        file.write(os.urandom(stride))
    return header


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("way", ["PATH", "in place", "to another", "small", "small PATH"])
def test_holes_stay_holes(double: EnvelopeDouble, tmp_path: Path, way: str) -> None:
    """A hole of 1 GiB takes no room afterwards, and the content is the same."""
    place, target = tmp_path / "sparse", tmp_path / "sparse"
    header = plant_hole(double, place, 8 << 20 if "small" in way else GIB)
    before, size, room = place.stat(), place.stat().st_size, taken(place)
    assert room < 4 << 20
    double.rotate()
    if "PATH" in way:
        arguments = ["rewrap", str(place)]
    else:
        target = tmp_path / "other" if way == "to another" else place
        arguments = ["rewrap", "-i", str(place), "-o", str(target)]
    with place.open("rb") as old:
        assert call(double, *arguments) == 0
        assert target.stat().st_ino != before.st_ino
        with target.open("rb") as new:
            made = parse_wrapping_header(new.read(4096)).raw
            assert version_of_header(made) == 2
            assert target.stat().st_size - len(made) == size - len(header)
            for begin, length in ((0, 2 << 20), (size - len(header) - (2 << 20), 2 << 20)):
                old.seek(len(header) + begin)
                new.seek(len(made) + begin)
                assert old.read(length) == new.read(length)
    assert taken(target) <= room + (1 << 20)


def version_of_header(header: bytes) -> int:
    return int(parse_wrapping_header(header).version_number)


def test_a_hole_at_the_end_is_kept(tmp_path: Path) -> None:
    from keyside._sparse_copying import copy_rest

    with (tmp_path / "a").open("w+b") as source, (tmp_path / "b").open("w+b") as target:
        source.write(b"x" * 5000)
        source.truncate(50 << 20)
        source.flush()
        os.write(target.fileno(), b"head")
        passed: list[int] = []
        assert copy_rest(source.fileno(), 10, target.fileno(), passed.append) == 50 << 20
        assert os.fstat(target.fileno()).st_size == (50 << 20) - 6
        assert sum(passed) == (50 << 20) - 10
        assert os.pread(target.fileno(), 6000, 0) == b"head" + b"x" * 4990 + bytes(1006)
        assert os.fstat(target.fileno()).st_blocks < 1000


def test_sweeping_waits_for_an_exchange(tmp_path: Path) -> None:
    """What stands under a temporary name for an instant may be somebody's newest data."""
    one, other = (temporary.open_folder(str(tmp_path)) for _ in range(2))
    left = tmp_path / temporary.draw_name()
    left.write_bytes(b"displaced")
    with temporary.kept_unswept(one) as held:
        assert held
        temporary.remove_leftovers(other, [left.name])
        assert left.exists()
    temporary.remove_leftovers(other, [left.name])
    assert not left.exists()
    os.close(one)
    os.close(other)
