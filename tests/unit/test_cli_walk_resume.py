"""A walk that was killed, interrupted or left without a sidecar goes on when it is run again.

Asserted each time: every envelope opens before and after, what was done is not done again, and
nothing is left behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli_process import call
from tests.unit.envelope_double import EnvelopeDouble

from keyside import _temporary as temporary
from keyside._new_file import NewFile
from keyside.cli import replacing
from keyside.envelope import DEFAULT_SUITE, parse_wrapping_header, seal

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LEFT = f".keyside-{'0' * 32}.tmp"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "keyside"


@pytest.fixture
def tree(tmp_path: Path, double: EnvelopeDouble, state: Path) -> Path:
    """Envelopes under version 1 in two directories; version 2 is current."""
    assert not state.exists()
    return plant(tmp_path / "tree", double, 6)


def plant(top: Path, double: EnvelopeDouble, count: int) -> Path:
    (top / "sub").mkdir(parents=True)
    for number in range(count):
        folder = top / "sub" if number % 2 else top
        (folder / f"{number}.sealed").write_bytes(double.seal(b"plain %d" % number))
    double.rotate()
    return top


def sealed(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tree.rglob("*.sealed")}


def is_done(envelope: bytes) -> bool:
    return parse_wrapping_header(envelope).version_number == 2


def leftovers(tree: Path) -> list[Path]:
    return [path for path in tree.rglob("*") if temporary.is_temporary(path.name)]


def opens(double: EnvelopeDouble, tree: Path) -> None:
    for name, envelope in sealed(tree).items():
        assert double.open(envelope) == b"plain " + name.split(".")[0].encode()


def start(double: EnvelopeDouble, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "KEYSIDE_SOCKET": double.socket},
        cwd=ROOT,
    )


def resume(double: EnvelopeDouble, tree: Path, state: Path, command: str) -> None:
    """Run the command again to its end; see the module's docstring."""
    opens(double, tree)
    before = sealed(tree)
    done = {name for name, envelope in before.items() if is_done(envelope)}
    sealed_anew = list(double.reencrypted)
    assert call(double, command, str(tree)) == 0
    opens(double, tree)
    after = sealed(tree)
    assert all(is_done(envelope) for envelope in after.values())
    assert {name for name in before if before[name] == after[name]} == done
    now_sealed = double.reencrypted[len(sealed_anew) :]
    assert not {b"plain " + name.split(".")[0].encode() for name in done} & set(now_sealed)
    assert leftovers(tree) == []
    assert not list(state.glob("*")) if state.exists() else True


@pytest.mark.parametrize(
    "scene",
    [
        ("rewrap able before link", 2, 0),
        ("rewrap able link", 2, 1),
        ("rewrap able exchange", 3, 1),
        ("rewrap able unlink", 3, 0),
        ("reencrypt able made", 2, 0),
        ("reencrypt able journalled", 2, 0),
        ("reencrypt able link", 2, 1),
        ("reencrypt able exchange", 3, 1),
        ("rewrap plain made", 2, 1),
        ("rewrap plain rename", 3, 0),
        ("reencrypt plain journalled", 2, 1),
        ("reencrypt plain before rename", 2, 1),
    ],
)
def test_a_kill_at_any_step_loses_nothing_and_repeats_nothing(
    double: EnvelopeDouble, tree: Path, state: Path, scene: tuple[str, int, int]
) -> None:
    """The third file's turn ends at that step; a name is left only where there was one."""
    way, done, left = scene
    command, system, step = way.split(" ", 2)
    killed = start(double, "tests.unit.killed_walk", system, step, "3", command, str(tree))
    killed.communicate(timeout=30)
    assert killed.returncode == -signal.SIGKILL
    assert sum(is_done(envelope) for envelope in sealed(tree).values()) == done
    assert len(leftovers(tree)) == left
    resume(double, tree, state, command)


def test_a_kill_from_outside_in_the_middle_of_many(
    double: EnvelopeDouble, tmp_path: Path, state: Path
) -> None:
    tree = plant(tmp_path / "many", double, 40)
    double.pause_s = 0.01
    walk = start(double, "keyside.cli", "reencrypt", str(tree))
    wait_until(lambda: len(double.reencrypted) >= 15)
    walk.kill()
    walk.communicate(timeout=30)
    double.pause_s = 0
    assert 14 <= sum(is_done(envelope) for envelope in sealed(tree).values()) < 40
    resume(double, tree, state, "reencrypt")
    assert len(double.reencrypted) <= 41


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_walk_between_whole_files(
    double: EnvelopeDouble, tree: Path, state: Path, number: signal.Signals
) -> None:
    double.pause_s = 0.2
    walk = start(double, "keyside.cli", "reencrypt", str(tree))
    wait_until(lambda: len(double.reencrypted) >= 2)
    walk.send_signal(number)
    shown, said = walk.communicate(timeout=30)
    assert walk.returncode == 128 + number
    assert b"stopped before the end: interrupted" in shown
    assert said.strip() == (
        b"what to do: run the same command again: it goes on, and does nothing twice"
    )
    assert leftovers(tree) == []
    double.pause_s = 0
    resume(double, tree, state, "reencrypt")


@pytest.mark.parametrize("command", ["rewrap", "reencrypt"])
def test_without_the_sidecar_it_stops_says_so_and_goes_on_later(
    double: EnvelopeDouble,
    tree: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish = replacing.Replacement.finish
    finished: list[int] = []

    def finish_and_stop(replacement: replacing.Replacement) -> None:
        finish(replacement)
        finished.append(1)
        if len(finished) == 2:
            double.stop()

    monkeypatch.setattr(replacing.Replacement, "finish", finish_and_stop)
    assert call(double, "--timeout", "0.3", command, str(tree)) == 69
    shown = capsys.readouterr()
    assert shown.out.startswith("2 files re")
    assert "stopped before the end: " in shown.out
    assert "run the same command again: it goes on, and does nothing twice" in shown.err
    assert call(double, "--timeout", "0.3", command, "--json", str(tree)) == 69
    assert json.loads(capsys.readouterr().out)["stopped"]
    double.start()
    resume(double, tree, tree.parent / "state" / "keyside", command)
    if command == "reencrypt":
        assert "going on with the run begun 20" in capsys.readouterr().err


def fail_one(double: EnvelopeDouble, tree: Path) -> Path:
    """Re-encrypt the tree, one file of which fails; return the journal that stays."""
    (tree / "0.sealed").rename(tree / "0.cut")
    cut = (tree / "0.cut").read_bytes()
    (tree / "0.cut").write_bytes(cut[:-1] + b"\x00\x00")
    assert call(double, "reencrypt", str(tree)) == 65
    (tree / "0.cut").write_bytes(cut)
    (tree / "0.cut").rename(tree / "0.sealed")
    (journal,) = Path(os.environ["XDG_STATE_HOME"], "keyside").iterdir()
    return journal


def test_the_journal_stays_until_nothing_fails_and_is_private(
    double: EnvelopeDouble, tree: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = fail_one(double, tree)
    assert journal.stat().st_mode & 0o777 == 0o600
    assert journal.parent.stat().st_mode & 0o777 == 0o700
    head, *lines = journal.read_text().splitlines()
    assert json.loads(head)["format"] == "keyside reencrypt journal 1"
    assert len(lines) == 5
    assert str(tree) not in journal.read_text()
    capsys.readouterr()
    assert call(double, "reencrypt", "--dry-run", str(tree)) == 0
    assert "1 file would be re-encrypted; 5 done by an earlier run" in capsys.readouterr().out
    resume(double, tree, state, "reencrypt")


def test_a_moved_file_is_known_again_and_a_line_cut_short_is_not_believed(
    double: EnvelopeDouble, tree: Path, state: Path
) -> None:
    journal = fail_one(double, tree)
    with journal.open("ab") as file:
        file.write(b"0" * 40)
    (tree / "2.sealed").rename(tree / "sub" / "2.sealed")
    resume(double, tree, state, "reencrypt")


def test_a_first_line_cut_short_means_that_nothing_was_done(
    double: EnvelopeDouble, tree: Path, state: Path
) -> None:
    journal = fail_one(double, tree)
    for length in (0, 1, 60):
        (tree / "0.sealed").write_bytes(seal(double.materials[0], b"plain 0", {}, DEFAULT_SUITE))
        journal.parent.mkdir(exist_ok=True)
        journal.touch(0o600)
        journal.write_bytes(b'{"format": "keyside reencrypt journal 1", "arguments"'[:length])
        before = sealed(tree)
        assert call(double, "reencrypt", str(tree)) == 0
        after = sealed(tree)
        assert not [name for name in before if before[name] == after[name]]
        assert list(state.iterdir()) == []


def test_an_old_journal_does_not_pass_over_what_a_later_run_is_for(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Months later the version leaks that the first run sealed under."""
    fail_one(double, tree)
    double.rotate()
    assert call(double, "reencrypt", str(tree)) == 0
    assert "6 files re-encrypted" in capsys.readouterr().out
    assert {parse_wrapping_header(one).version_number for one in sealed(tree).values()} == {3}


def test_restart_forgets(double: EnvelopeDouble, tree: Path, state: Path) -> None:
    fail_one(double, tree)
    before = sealed(tree)
    assert call(double, "reencrypt", "--restart", str(tree)) == 0
    after = sealed(tree)
    assert not [name for name in before if before[name] == after[name]]
    assert not list(state.iterdir())


def test_a_journal_is_one_commands(
    double: EnvelopeDouble,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another's, somebody else's, one in use and no journal at all are refused; nothing is done."""
    journal = fail_one(double, tree)
    before = sealed(tree)
    calls = list(double.calls)

    def refused(code: int, words: str, *options: str) -> None:
        assert call(double, "reencrypt", str(tree), "--journal", str(journal), *options) == code
        assert words in capsys.readouterr().err

    refused(65, "it belongs to other paths, another context or socket", "-c", "a=1")
    journal.chmod(0o660)
    refused(77, "it is not yours alone to write")
    journal.chmod(0o600)
    with journal.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(75, "a run of this command is at work")
    journal.write_text("a shopping list\n")
    refused(65, "it is no journal of this command")
    refused(65, "it is no journal of this command", "--restart")
    assert journal.read_text() == "a shopping list\n"
    journal.write_text("milk")
    refused(65, "it is no journal of this command", "--restart")
    assert journal.read_text() == "milk"
    journal = tmp_path / "link"
    journal.symlink_to(tree / "0.sealed")
    refused(73, "Too many levels of symbolic links")
    journal = tmp_path / "none" / "journal"
    refused(73, "there is no such directory")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/1/none")
    assert call(double, "reencrypt", str(tree)) == 73
    assert "name another with --journal FILE" in capsys.readouterr().err
    assert sealed(tree) == before
    assert double.calls == calls


def test_a_journal_that_cant_be_written_stops_the_run(
    double: EnvelopeDouble,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".journal":
            size = os.fstat(descriptor).st_size
            if size > 300:
                raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert call(double, "reencrypt", str(tree)) == 74
    assert "No space left on device" in capsys.readouterr().err
    opens(double, tree)
    assert leftovers(tree) == []


def test_only_leftovers_of_the_dead_are_removed(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is being written, one with another name and a directory stay; none is data."""
    folder = temporary.open_folder(str(tree))
    live = NewFile(folder, named=True)
    name = live.name
    os.write(live.descriptor, double.seal(b"half"))
    (tree / LEFT).write_bytes(double.seal(b"left"))
    (tree / "sub" / LEFT).write_bytes(double.seal(b"linked"))
    os.link(tree / "sub" / LEFT, tree / "kept.sealed-not")
    (tree / LEFT.replace("0", "1")).mkdir()
    (tree / ".keyside-1.tmp").write_bytes(b"somebody's")
    assert call(double, "rewrap", str(tree / "0.sealed")) == 0
    assert not (tree / LEFT).exists()
    (tree / LEFT).write_bytes(double.seal(b"left"))
    assert call(double, "rewrap", "--dry-run", str(tree)) == 0
    assert (tree / LEFT).exists()
    (tree / "kept.sealed-not").unlink()
    os.link(tree / "sub" / LEFT, tree.parent / "kept")
    assert call(double, "rewrap", str(tree)) == 0
    assert not (tree / LEFT).exists()
    for kept in (tree / name, tree / "sub" / LEFT, tree / LEFT.replace("0", "1")):
        assert kept.exists()
    assert (tree / ".keyside-1.tmp").read_bytes() == b"somebody's"
    assert call(double, "rewrap", str(tree / name)) == 65
    assert "it is a temporary file of another run" in capsys.readouterr().err
    live.discard()
    os.close(folder)


def wait_until(reached: object) -> None:
    deadline = time.monotonic() + 20
    assert callable(reached)
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)
