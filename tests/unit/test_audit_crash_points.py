"""The writer killed at each single change that it makes to the disk: the log is taken up again."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.audit_scene import Scene, make_config

from keyside.audit import (
    Completeness,
    cover,
    encode_line,
    hash_record,
    parse_checkpoint,
    sign_checkpoint,
)
from keyside_sidecar.audit import signing
from keyside_sidecar.audit.journal import Journal
from keyside_sidecar.audit.places import Places
from keyside_sidecar.audit.recovery import recover_log
from keyside_sidecar.audit.signing import Signer
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyside.audit import Checkpoint

CHANGING = (
    "pwrite", "write", "fdatasync", "fsync", "rename", "link", "unlink", "open", "ftruncate",
)  # fmt: skip
KILLED = 86


def open_journal(places: Places) -> Journal:
    tail = recover_log(places)
    signer = Signer.recover(places, tail.checkpoint)
    journal = Journal(places, tail, signer, Stamps(SystemClock()), 60)
    if not journal.takes_records:
        journal.write()
    return journal


def work(places: Places) -> None:
    """Two checkpoints, a new file, records in between, and a proper end."""
    journal = open_journal(places)
    journal.append_own("run.start")
    journal.append_checkpoint("start")
    journal.sync()
    for _ in range(3):
        journal.append_own("key.rotate", key="mail")
        journal.write()
    journal.sync()
    journal.append_checkpoint("rotation")
    journal.sync()
    journal.finish_file()
    journal.append_own("key.rotate", key="mail")
    journal.sync()
    journal.append_own("run.end")
    journal.append_checkpoint("stop")
    journal.sync()
    journal.close()


def kill_at(number: int, *, half: bool) -> Callable[[], None]:
    """Have this process end at its ``number``-th change to the disk, before it or amid it."""
    count = 0

    def wrap(name: str) -> None:
        genuine = getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if half and name == "pwrite":
                    descriptor, data, place = arguments
                    genuine(descriptor, bytes(data)[: len(data) // 2], place)
                elif half:
                    with contextlib.suppress(OSError):
                        genuine(*arguments, **named)
                os._exit(KILLED)
            return genuine(*arguments, **named)

        setattr(os, name, counted)

    def install() -> None:
        for name in CHANGING:
            wrap(name)

    return install


def run_killed(directory: Path, number: int, *, half: bool) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            kill_at(number, half=half)()
            work(Places(directory / "audit.jsonl"))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("half", [False, True], ids=["before it", "amid or after it"])
def test_killed_at_any_change_to_the_disk_the_log_goes_on(tmp_path: Path, *, half: bool) -> None:
    """No kill leaves a log that is accused, has no key, or loses what was on the disk."""
    origin = tmp_path / "origin"
    origin.mkdir()
    scene = Scene.make(origin)
    number = 0
    while True:
        number += 1
        place = tmp_path / f"run-{number}"
        shutil.copytree(origin, place)
        code = run_killed(place, number, half=half)
        log = Places(place / "audit.jsonl")
        scene.config = make_config(place)
        if code == 0:
            break
        assert code == KILLED
        if log.log.exists():
            assert scene.verify().fault is None, number
        work(log)
        found = scene.verify()
        assert found.fault is None, number
        assert found.completeness is Completeness.CLOSED, number
        assert not log.next_key.exists(), number
        shutil.rmtree(place)
    assert number > 40


# --- the two keys by themselves


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene.make(tmp_path)


def last_checkpoint(scene: Scene) -> Checkpoint:
    return recover_log(scene.places).checkpoint


def draw_next(scene: Scene, signer: Signer) -> Checkpoint:
    """Have the following key written; return the checkpoint that names it, which is nowhere."""
    last = last_checkpoint(scene)
    seal = replace(last.seal, number=last.seal.number + 1, next_key=signer.draw())
    start = cover(last.line.sequence + 1, Stamps(SystemClock()).stamp({"event": "checkpoint"}))
    covered = sign_checkpoint(seal, start, last.line.hash, signer.sign)
    line = encode_line(covered, hash_record(last.line.hash, covered))[:-1]
    signer.prepare(line)
    return parse_checkpoint(line)


def test_next_key_that_no_checkpoint_names_is_removed(scene: Scene) -> None:
    last = last_checkpoint(scene)
    draw_next(scene, Signer.recover(scene.places, last))
    assert scene.places.next_key.exists()
    Signer.recover(scene.places, last)
    assert not scene.places.next_key.exists()


def test_next_key_that_a_checkpoint_names_takes_its_place(scene: Scene) -> None:
    following = draw_next(scene, Signer.recover(scene.places, last_checkpoint(scene)))
    Signer.recover(scene.places, following)
    assert not scene.places.next_key.exists()
    Signer.recover(scene.places, following)


def test_former_key_is_gone_after_a_commit(scene: Scene) -> None:
    former = scene.places.key.read_bytes()
    signer = Signer.recover(scene.places, last_checkpoint(scene))
    draw_next(scene, signer)
    signer.commit()
    everything = b"".join(path.read_bytes() for path in scene.places.log.parent.iterdir())
    assert former.split(b":")[1] not in everything


@pytest.mark.parametrize("name", ["removed", "another", "fifo"])
def test_former_key_is_gone_whatever_became_of_the_next_ones_file(scene: Scene, name: str) -> None:
    """Whoever can change the directory must not have an old key kept by that."""
    former = scene.places.key.read_bytes()
    signer = Signer.recover(scene.places, last_checkpoint(scene))
    following = draw_next(scene, signer)
    scene.places.next_key.unlink()
    if name == "another":
        scene.places.next_key.write_bytes(former)
        scene.places.next_key.chmod(0o600)
    elif name == "fifo":
        os.mkfifo(scene.places.next_key, 0o600)
    signer.commit()
    everything = b"".join(path.read_bytes() for path in scene.places.log.parent.iterdir())
    assert former.split(b":")[1] not in everything
    Signer.recover(scene.places, following)


def test_failed_move_of_the_key_is_repeated(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer.recover(scene.places, last_checkpoint(scene))
    following = draw_next(scene, signer)
    with monkeypatch.context() as patch:
        patch.setattr(signing, "fsync_directory", fail)
        with pytest.raises(OSError, match="Input"):
            signer.commit()
    signer.commit()
    Signer.recover(scene.places, following)


def fail(_path: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_key_of_another_log_is_refused(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = last_checkpoint(Scene.make(tmp_path / "other"))
    with pytest.raises(StartupError, match="not the one that the last checkpoint"):
        Signer.recover(scene.places, other)


def test_key_of_a_form_before_the_first_release_is_refused_with_a_reason(scene: Scene) -> None:
    last = last_checkpoint(scene)
    scene.places.key.write_bytes(b"KEYSIDE-AUDIT-KEY-1:" + b"A" * 43 + b":" + b"0" * 16 + b"\n")
    with pytest.raises(StartupError, match="no release has written"):
        Signer.recover(scene.places, last)


def test_half_written_or_damaged_keys_are_no_keys(scene: Scene) -> None:
    named = last_checkpoint(scene)
    whole = scene.places.key.read_bytes()
    scene.places.next_key.write_bytes(whole[:20])
    scene.places.next_key.chmod(0o600)
    Signer.recover(scene.places, named)
    for damaged in (whole[:-2], whole.replace(b"A", b"B") + b"x", b""):
        scene.places.key.write_bytes(damaged)
        with pytest.raises(StartupError):
            Signer.recover(scene.places, named)


def test_i7_signer_shows_no_key(scene: Scene) -> None:
    signer = Signer.recover(scene.places, last_checkpoint(scene))
    assert "key" in repr(signer)
    assert scene.places.key.read_text().split(":")[1] not in repr(signer)
    import pickle

    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(signer)


@pytest.mark.parametrize("reads_before", [0, 1])
def test_a_log_that_is_cut_while_its_end_is_kept_aside_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, reads_before: int
) -> None:
    """It ends, and says what happened; the next attempt finds the log as it is then."""
    scene.start()
    scene.stop()
    sound = scene.audit.path.stat().st_size
    with scene.audit.path.open("ab") as log:
        log.write(b"no record\n" * 10_000)
    pread, reads = os.pread, 0

    def cut_and_read(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal reads
        if offset == sound:
            reads += 1
            if reads > reads_before:
                os.truncate(scene.audit.path, sound)
        return pread(descriptor, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", cut_and_read)
        with pytest.raises(OSError, match="truncated") as failed:
            recover_log(scene.places)
        assert failed.value.errno == errno.ESTALE
    assert recover_log(scene.places).size == sound
