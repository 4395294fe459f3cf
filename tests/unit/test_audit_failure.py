"""A log that can't be written: what is refused, what is recorded, and how it comes back (I8)."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.audit_scene import Scene, action_record, call_record, eventually

from keyside.audit import Completeness
from keyside_sidecar.audit import recording
from keyside_sidecar.audit.reserve import RESERVE_BYTES
from keyside_sidecar.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keyside_sidecar.audit.sender import AuditSender

TIMEOUT_S = 0.25


@pytest.fixture
def make_scene() -> Iterator[Callable[..., Scene]]:
    """Makes logs, and leaves no recorder behind."""
    made: list[Scene] = []

    def make(directory: Path, **audit: Any) -> Scene:
        made.append(Scene.make(directory, **{"timeout_s": TIMEOUT_S, **audit}))
        return made[-1]

    yield make
    for scene in made:
        scene.end()


def break_disk(marker: Path, act: Callable[[], None], name: str = "fdatasync") -> None:
    """In the recorder: while ``marker`` exists, have a system call do something else."""
    genuine = getattr(os, name)

    def broken(*arguments: Any) -> Any:
        if marker.exists():
            act()
        return genuine(*arguments)

    setattr(os, name, broken)


def hang(marker: Path) -> None:
    while marker.exists():
        time.sleep(0.01)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


async def is_refused(sender: AuditSender, **fields: object) -> float:
    """Try to record an action; return how long it took to be refused."""
    begun = time.monotonic()
    with pytest.raises(AuditUnavailable):
        await sender.record(action_record("intent", **fields))
    return time.monotonic() - begun


def test_i8_disk_that_hangs_refuses_actions_in_time_and_nothing_hangs(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene, marker = make_scene(tmp_path), tmp_path / "broken"
    scene.before = lambda: break_disk(marker, lambda: hang(marker))
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent", request_id="before"))
        sender.require_service_calls()
        assert sender.problem is None
        marker.touch()
        assert TIMEOUT_S <= await is_refused(sender, request_id="hangs") < TIMEOUT_S + 0.5
        await eventually(lambda: sender.problem)
        problem = sender.problem
        assert problem is not None
        assert problem.reason == "AUDIT_NOT_RESPONDING"
        assert problem.refuses_service_calls
        assert await is_refused(sender, request_id="known") < 0.05
        await eventually(lambda: sender._refusing)
        with pytest.raises(AuditUnavailable):
            sender.require_service_calls()
        scene.packets.clear()
        scene.await_packet("alive")
        marker.unlink()
        await eventually(lambda: sender.problem is None)
        sender.require_service_calls()
        await sender.record(action_record("intent", request_id="after"))
        await sender.close()

    asyncio.run(work())
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED
    rotations = scene.find("key.rotate")
    outcomes = {record.get("request_id"): record.get("outcome") for record in rotations}
    assert outcomes["before"] is outcomes["after"] is None
    # The intent was on its way: that it was refused is said as well.
    (hung,) = [record for record in rotations if record.get("details")]
    assert (hung["outcome"], hung["reason"]) == ("refused", "AUDIT_UNAVAILABLE")
    intent = next(record for record in rotations if record["id"] == hung["details"]["intent"])
    assert intent["request_id"] == "hangs"
    (restored,) = [record for record in scene.find("audit.restored") if "worker" in record]
    assert restored["details"]["refused_actions"] == 2
    assert restored["details"]["refused_calls"] == 1


def test_i8_outcome_that_could_not_be_written_is_written_later(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    """What it tells of has happened."""
    scene, marker = make_scene(tmp_path), tmp_path / "broken"
    scene.before = lambda: break_disk(marker, lambda: hang(marker))
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        marker.touch()
        for name in ("at once", "while it is known"):
            with pytest.raises(AuditUnavailable):
                await sender.record(action_record("outcome", outcome="ok", request_id=name))
        marker.unlink()
        await eventually(lambda: sender.problem is None)
        assert await sender.flush(5)
        await sender.close()

    asyncio.run(work())
    assert scene.stop() == 0
    said = [record.get("request_id") for record in scene.find("key.rotate")]
    assert said == [None, "at once", "while it is known"]


@pytest.mark.parametrize("name", ["fdatasync", "pwrite"])
def test_error_of_the_disk_is_overcome_and_nothing_is_lost(
    make_scene: Callable[..., Scene], tmp_path: Path, name: str
) -> None:
    """The same bytes are written again: after a failed fdatasync the kernel may have lost them."""
    scene, marker = make_scene(tmp_path), tmp_path / "broken"
    scene.before = lambda: break_disk(marker, lambda: fail(errno.EIO), name)
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        for number in range(100):
            sender.note(call_record(number))
        marker.touch()
        await is_refused(sender)
        await eventually(lambda: sender.problem)
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_WRITE_FAILED"
        marker.unlink()
        await eventually(lambda: sender.problem is None)
        for number in range(100, 200):
            sender.note(call_record(number))
        assert await sender.flush(5)
        await sender.close()

    asyncio.run(work())
    assert scene.stop() == 0
    numbers = [record["digest"] for record in scene.find("encryption.decrypt")]
    assert numbers == [f"{number:064x}" for number in range(200)]
    assert scene.find("audit.restored")
    assert scene.verify().completeness is Completeness.CLOSED


def test_log_that_is_moved_away_is_noticed_and_not_written_to(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene = make_scene(tmp_path)
    away = tmp_path / "away"
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        scene.audit.path.rename(away)
        await is_refused(sender)
        await eventually(lambda: sender.problem)
        away.rename(scene.audit.path)
        await eventually(lambda: sender.problem is None)
        await sender.record(action_record("intent", request_id="after"))
        await sender.close()

    asyncio.run(work())
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED


def test_limit_on_a_files_size_is_an_error_like_any_other(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene = make_scene(tmp_path)
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        size = scene.audit.path.stat().st_size
        hard = resource.prlimit(scene.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(scene.pid, resource.RLIMIT_FSIZE, (size + 100, hard))
        await is_refused(sender)
        await eventually(lambda: sender.problem)
        resource.prlimit(scene.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await eventually(lambda: sender.problem is None)
        await sender.close()

    asyncio.run(work())
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED


# --- service calls


@pytest.mark.parametrize("on_failure", ["refuse", "buffer"])
def test_service_calls_while_the_log_fails(
    make_scene: Callable[..., Scene], tmp_path: Path, on_failure: str
) -> None:
    """Refused at once where nothing may go unrecorded; otherwise served up to a bound."""
    scene = make_scene(tmp_path, on_failure=on_failure, buffer_records=1000)
    marker = tmp_path / "broken"
    scene.before = lambda: break_disk(marker, lambda: hang(marker))
    scene.start()

    async def work() -> int:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        marker.touch()
        await is_refused(sender)
        await eventually(lambda: sender.problem)
        await asyncio.sleep(0.3)
        served = 0
        for number in range(1500):
            try:
                sender.require_service_calls()
            except AuditUnavailable:
                break
            sender.note(call_record(number))
            served += 1
        assert sender.problem is not None
        assert sender.problem.refuses_service_calls
        marker.unlink()
        await eventually(lambda: sender.problem is None)
        assert await sender.flush(5)
        await sender.close()
        return served

    served = asyncio.run(work())
    assert scene.stop() == 0
    assert 990 <= served <= 1000 if on_failure == "buffer" else served == 0
    assert len(scene.find("encryption.decrypt")) == served


def test_recorder_that_is_away_is_known_after_the_time_limit(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene = make_scene(tmp_path)
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        scene.kill()
        begun = time.monotonic()
        await eventually(lambda: sender.problem)
        assert time.monotonic() - begun < TIMEOUT_S + 0.5
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_NO_RECORDER"
        await eventually(lambda: sender._refusing)
        with pytest.raises(AuditUnavailable):
            sender.require_service_calls()
        scene.start()
        sender.attach(scene.introduce())
        await eventually(lambda: sender.problem is None)
        await sender.record(action_record("intent"))
        await sender.close()

    asyncio.run(work())


def test_stop_of_a_recorder_whose_disk_hangs_ends_in_time(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene, marker = make_scene(tmp_path), tmp_path / "broken"

    def prepare() -> None:
        break_disk(marker, lambda: hang(marker))
        recording._END_S = 0.5  # type: ignore[misc]

    scene.before = prepare
    scene.start()
    marker.touch()
    assert scene.stop() == 74
    marker.unlink()
    scene.start()
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Leave no room at all."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while file.write(bytes(size)):
                    pass
    return filler


@pytest.mark.root
def test_i8_full_disk_refuses_and_records_the_refusals_in_the_reserve(
    make_scene: Callable[..., Scene], small_disk: Path
) -> None:
    scene = make_scene(small_disk)
    scene.start()
    assert scene.places.reserve.stat().st_size == RESERVE_BYTES

    async def work() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        filler = fill(small_disk)
        for number in range(5000):
            sender.note(call_record(number))
        await eventually(lambda: sender.problem)
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_NO_SPACE"
        await is_refused(sender, request_id="refused")
        sender.note_refusal({"event": "caller.refused", "outcome": "refused", "reason": "X"})
        await eventually(lambda: scene.find("caller.refused"))
        (failed,) = scene.find("audit.failed")
        assert failed["reason"] == "AUDIT_NO_SPACE"
        (refused,) = [it for it in scene.find("key.rotate") if it.get("outcome")]
        assert (refused["outcome"], refused["reason"]) == ("refused", "AUDIT_UNAVAILABLE")
        assert not scene.places.reserve.exists()
        assert len(scene.find("encryption.decrypt")) < 5000
        assert scene.verify().fault is None
        filler.unlink()
        # There is room for the reserve again, but not for all that waits: it is full once more,
        # and that is overcome in the same way.
        await asyncio.sleep(0.6)
        for path in scene.places.list_finished():
            path.unlink()
        assert await sender.flush(10) or sender.problem
        await sender.close()

    asyncio.run(work())
    assert scene.find("audit.restored")
    assert scene.stop() in {0, 74}
    assert scene.verify().fault is None


@pytest.mark.root
def test_full_disk_at_the_start_is_recorded_in_the_reserve(
    make_scene: Callable[..., Scene], small_disk: Path
) -> None:
    scene = make_scene(small_disk)
    scene.start()
    scene.stop()
    filler = fill(small_disk)
    scene.start()
    assert [record["event"] for record in scene.read()][-3:] == [
        "run.start",
        "audit.failed",
        "checkpoint",
    ]
    filler.unlink()
    until = time.monotonic() + 5
    while not scene.find("audit.restored"):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert scene.places.reserve.exists()
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED
