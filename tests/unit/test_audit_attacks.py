"""What whoever can write beside the log, or one bad worker, must not get out of the recorder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.audit_scene import Scene, action_record, call_record

from keyside.audit import (
    Change,
    Completeness,
    cover,
    encode_json,
    encode_line,
    hash_record,
    parse_line,
)
from keyside_sidecar.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyside.audit import Line

STORE, OTHER_STORE = "aa" * 16, "bb" * 16
T = "2026-11-25T22:45:11.000000Z"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene.make(tmp_path)
    yield made
    made.end()


def last_line(scene: Scene) -> Line:
    return parse_line(scene.audit.path.read_bytes().splitlines()[-1])


def append(scene: Scene, *records: dict[str, Any]) -> None:
    """Append records that fit the chain, as whoever can write to the file can."""
    last = last_line(scene)
    sequence, head = last.sequence, last.hash
    with scene.audit.path.open("ab") as file:
        for record in records:
            sequence += 1
            facts = {"id": f"f-{sequence}", "time": T, **record}
            covered = cover(sequence, encode_json(facts)[1:-1].encode())
            head = hash_record(head, covered)
            file.write(encode_line(covered, head))


def outcome(event: str, store: str, generation: int) -> dict[str, Any]:
    details = {"store_id": store, "store_generation": generation}
    return {"event": event, "phase": "outcome", "outcome": "ok", "details": details}


def work(scene: Scene, *records: dict[str, Any], generation: int = 0) -> tuple[str, int] | None:
    """Have a worker record something; return how far the store has come, as it was told."""

    async def act() -> tuple[str, int] | None:
        sender = scene.make_sender()
        await sender.wait_attached(5)
        if generation:
            sender.report_generation(bytes.fromhex(STORE), generation)
        for record in records:
            await sender.record(record)
        await sender.flush()
        await sender.close()
        return sender.anchor

    return asyncio.run(act())


def is_refused(scene: Scene) -> bool:
    scene.start(wait=False)
    return scene.wait() == 78


# --- the store's generation (I10), and what is appended to a log


FORGED = {
    "an accepted rollback": [outcome("store.rollback_accepted", STORE, 3)],
    "another store": [outcome("key.rotate", OTHER_STORE, 1), outcome("key.rotate", STORE, 3)],
    "a lower one": [outcome("key.rotate", STORE, 3)],
    "nonsense": [outcome("key.rotate", STORE, -1), outcome("key.rotate", "?", 10**18)],
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("closed", [False, True])
def test_i10_what_is_not_sealed_never_lowers_the_generation(
    scene: Scene, forged: list[dict[str, Any]], *, closed: bool
) -> None:
    """It fits the chain; but that is no proof of who wrote it."""
    scene.start()
    work(scene, action_record("outcome", outcome="ok"), generation=500)
    if closed:
        assert scene.stop() == 0
    else:
        asyncio.run(seal(scene))
        scene.kill()
    append(scene, *forged)
    scene.start()
    assert work(scene) == (STORE, 500)
    assert scene.stop() == 0
    assert scene.find("checkpoint")[-1]["details"]["store_generation"] == 500
    (recovered,) = scene.find("run.recovered")
    # After a closed run nothing of it is taken; otherwise it is told how much was.
    assert recovered["details"]["unsealed"] >= (0 if closed else len(forged))
    assert scene.verify().fault is None


@pytest.mark.parametrize("number", [2**63, 10**4000, 1.5, -(2**63)])
def test_i10_line_with_another_number_than_a_record_has_is_cut_off(
    scene: Scene, number: float
) -> None:
    """It fits the chain, and no verifier would read it."""
    scene.start()
    work(scene, generation=500)
    asyncio.run(seal(scene))
    scene.kill()
    append(scene, outcome("key.rotate", STORE, number))  # type: ignore[arg-type]
    scene.start()
    assert work(scene) == (STORE, 500)
    assert scene.stop() == 0
    (recovered,) = scene.find("run.recovered")
    assert recovered["details"]["kept_as"]
    assert scene.verify().completeness is Completeness.CLOSED


async def seal(scene: Scene) -> None:
    """Have a checkpoint made now: of an accepted rollback there is one at once."""
    sender = scene.make_sender()
    await sender.record(outcome("store.rollback_accepted", STORE, 500))
    await sender.close()


def test_i10_unsealed_outcome_raises_the_generation(scene: Scene) -> None:
    scene.start()
    asyncio.run(seal(scene))
    work(scene, outcome("key.rotate", STORE, 501))
    scene.kill()
    scene.start()
    assert work(scene) == (STORE, 501)


def test_i10_accepted_rollback_is_sealed_before_it_is_acknowledged(scene: Scene) -> None:
    scene.start()
    work(scene, generation=500)
    work(scene, outcome("store.rollback_accepted", STORE, 12))
    scene.kill()
    last = scene.read()[-1]
    assert last["event"] == "checkpoint"
    assert last["details"]["store_generation"] == 12
    scene.start()
    assert work(scene) == (STORE, 12)


def test_records_after_a_closed_run_are_found_and_kept_aside(scene: Scene) -> None:
    scene.start()
    assert scene.stop() == 0
    sealed = last_line(scene).sequence
    approved = {"event": "access.approve", "phase": "outcome", "outcome": "ok", "access": "ar-1"}
    append(scene, {"event": "run.start"}, approved)
    found = scene.verify()
    assert found.fault is not None
    assert (found.fault.change, found.fault.sequence) == (Change.INSERTED, sealed + 2)
    scene.start()
    assert scene.stop() == 0
    assert scene.find("access.approve") == []
    (recovered,) = scene.find("run.recovered")
    kept = scene.audit.path.parent / recovered["details"]["kept_as"]
    assert b"ar-1" in kept.read_bytes()
    assert recovered["details"]["unsealed"] == 1
    assert scene.verify().completeness is Completeness.CLOSED


@pytest.mark.parametrize("hash_too", [True, False])
def test_last_checkpoint_that_was_edited_is_refused(scene: Scene, *, hash_too: bool) -> None:
    """The next key is still named in it; but not every byte is as it was signed."""
    scene.start()
    work(scene, generation=500)
    assert scene.stop() == 0
    lines = scene.audit.path.read_bytes().splitlines(keepends=True)
    changed = lines[-1].replace(b'"store_generation":500', b'"store_generation":1')
    assert changed != lines[-1]
    if hash_too:
        covered = changed[: changed.rindex(b',"hash":"')]
        changed = encode_line(covered, hash_record(parse_line(lines[-2][:-1]).hash, covered))
    scene.audit.path.write_bytes(b"".join([*lines[:-1], changed]))
    assert is_refused(scene)


# --- one bad worker


def await_let_go(end: Any) -> None:
    end.settimeout(5)
    with contextlib.closing(end), contextlib.suppress(ConnectionResetError):
        while end.recv(4096):
            pass


BAD_GENERATIONS: list[object] = [
    ["x", 1],
    [STORE, -5],
    [STORE, True],
    [STORE, 1.0],
    [STORE, None],
    [STORE.upper(), 1],
    ["A" * 60_000, 1],
    [STORE, 2**63],
    [STORE, 10**4000],
]


def test_generation_that_is_nonsense_reaches_no_checkpoint(scene: Scene) -> None:
    scene.start()
    for bad in BAD_GENERATIONS:
        end = scene.introduce()
        end.send(encode_json({"generation": bad}).encode())
        await_let_go(end)
        details = {"store_id": bad[0], "store_generation": bad[1]}  # type: ignore[index]
        work(scene, action_record("outcome", outcome="ok", details=details))
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED
    assert scene.find("checkpoint")[-1]["details"]["store_generation"] is None
    scene.start()
    assert work(scene) is None


def test_worker_can_not_have_anothers_records_taken_for_known(scene: Scene) -> None:
    """Nor can it over a restart: the ids that the log holds are each worker's own as well."""
    scene.start()

    async def suffer() -> None:
        victim = scene.make_sender()
        await victim.record(action_record("intent", request_id="first"))
        first = next(it for it in scene.find("key.rotate") if it.get("request_id") == "first")
        prefix = first["id"].rpartition("-")[0]
        for start in (2, 150):
            rogue = scene.introduce(4242)
            bodies = [
                f'"id":"{prefix}-{number:x}","time":"{T}","event":"x","worker":4242'
                for number in range(start, start + 148)
            ]
            rogue.send("\n".join(["d", *bodies]).encode())
            rogue.settimeout(5)
            while b'"d":148' not in rogue.recv(4096):
                pass
            rogue.close()
            await victim.record(action_record("outcome", outcome="ok", request_id=f"r{start}"))
            scene.kill()
            scene.start()
            victim.attach(scene.introduce())
            await victim.record(action_record("outcome", outcome="ok", request_id=f"s{start}"))
        await victim.close()

    asyncio.run(suffer())
    said = [record.get("request_id") for record in scene.find("key.rotate")]
    assert said == ["first", "r2", "s2", "r150", "s150"]


@pytest.mark.parametrize("packet", [b"n" + b"\n" * 1000, b"d" + b"\n" * 95_000])
def test_packet_of_many_bad_records_is_one_record(scene: Scene, packet: bytes) -> None:
    scene.start()
    end = scene.introduce(4242)
    end.send(packet)
    await_let_go(end)
    work(scene, action_record("intent"))
    assert scene.stop() == 0
    assert len(scene.find("audit.failed")) == (1 if len(packet) < 1024 else 0)
    assert scene.verify().completeness is Completeness.CLOSED


def test_good_records_before_a_bad_one_are_kept(scene: Scene) -> None:
    scene.start()
    end = scene.introduce(4242)
    good = f'"id":"g-1","time":"{T}","event":"x","worker":4242'
    end.send(f"n\n{good}\nbad\n{good.replace('g-1', 'g-2')}".encode())
    await_let_go(end)
    assert scene.stop() == 0
    assert [record["id"] for record in scene.find("x")] == ["g-1"]


# --- what lies beside the log


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the same account's that must not be touched."""
    path = tmp_path / "precious"
    path.write_bytes(b"precious\n")
    return path


def put(kind: str, path: Path, victim: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(victim, path)
    elif kind == "symlink":
        path.symlink_to(victim)
    else:
        path.write_bytes(b"older evidence")


@pytest.mark.parametrize("kind", ["fifo", "hard link", "symlink"])
def test_reserve_takes_nothing_elses_place(scene: Scene, victim: Path, kind: str) -> None:
    put(kind, scene.places.reserve, victim)
    scene.start()
    assert scene.stop() == 0
    assert victim.read_bytes() == b"precious\n"


@pytest.mark.parametrize("kind", ["fifo", "hard link", "symlink", "file"])
def test_damaged_end_is_kept_under_a_name_of_its_own(scene: Scene, victim: Path, kind: str) -> None:
    scene.start()
    scene.kill()
    place = scene.places.name_damaged(last_line(scene).sequence + 1)
    with scene.audit.path.open("ab") as file:
        file.write(b"garbage\nmore\n")
    put(kind, place, victim)
    scene.start()
    assert scene.stop() == 0
    assert victim.read_bytes() == b"precious\n"
    (recovered,) = scene.find("run.recovered")
    kept = place.with_name(f"{place.name}-2")
    assert recovered["details"]["kept_as"] == kept.name
    assert kept.read_bytes() == b"garbage\nmore\n"
    assert kind != "file" or place.read_bytes() == b"older evidence"


def test_long_end_without_a_line_is_kept_aside(scene: Scene) -> None:
    """No kill of ours leaves more than a line's beginning."""
    scene.start()
    scene.kill()
    with scene.audit.path.open("ab") as file:
        file.write(b"x" * 200_000)
    scene.start()
    assert scene.stop() == 0
    (recovered,) = scene.find("run.recovered")
    kept = scene.audit.path.parent / recovered["details"]["kept_as"]
    assert kept.read_bytes() == b"x" * 200_000


def test_recorder_whose_lock_was_removed_ends_and_records_nothing_more(tmp_path: Path) -> None:
    """Another one could have the log by now."""
    scene = Scene.make(tmp_path, timeout_s=0.3)
    scene.start()
    scene.places.lock.unlink()

    async def act() -> None:
        sender = scene.make_sender()
        with pytest.raises(AuditUnavailable):
            await sender.record(action_record("intent"))
        await sender.close()

    asyncio.run(act())
    assert scene.wait() == 75
    scene.start()
    work(scene, action_record("intent"))
    assert scene.stop() == 0
    assert scene.verify().fault is None


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_directory_that_others_can_write_is_refused(scene: Scene, mode: int) -> None:
    scene.audit.path.parent.chmod(mode)
    scene.start(wait=False)
    assert scene.wait() != 0


def test_log_that_is_truncated_in_its_place_is_noticed(tmp_path: Path) -> None:
    """As logrotate's copytruncate does; nothing is acknowledged from then on."""
    scene = Scene.make(tmp_path, timeout_s=0.3)
    scene.start()

    async def act() -> None:
        sender = scene.make_sender()
        await sender.record(action_record("intent"))
        os.truncate(scene.audit.path, 0)
        for _ in range(2):
            with pytest.raises(AuditUnavailable):
                await sender.record(action_record("intent"))
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_WRITE_FAILED"
        await sender.close()

    try:
        asyncio.run(act())
        assert scene.audit.path.stat().st_size == 0
    finally:
        scene.end()


# --- the end, and what is said of it


def test_close_that_has_to_be_repeated_writes_nothing_after_its_checkpoint(
    tmp_path: Path,
) -> None:
    scene = Scene.make(tmp_path)
    marker = tmp_path / "broken"

    def fail_while_broken() -> None:
        name = "fdatasync"
        genuine = getattr(os, name)

        def broken(descriptor: int) -> None:
            if marker.exists():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            genuine(descriptor)

        setattr(os, name, broken)

    scene.before = fail_while_broken
    scene.start()
    assert scene.control is not None
    marker.touch()
    scene.control.send({"stop": True})
    time.sleep(0.4)
    marker.unlink()
    assert scene.wait() == 0
    found = scene.verify()
    assert found.fault is None
    assert found.completeness is Completeness.CLOSED
    assert len(scene.find("run.end")) == 1


def test_recovered_run_says_how_much_a_summary_loses(tmp_path: Path) -> None:
    scene = Scene.make(tmp_path, service_calls="summary")
    scene.start()
    scene.kill()
    scene.start()
    assert scene.stop() == 0
    (recovered,) = scene.find("run.recovered")
    assert recovered["details"]["lost_up_to_s"] == 10


def test_what_a_dead_recorder_left_is_known_in_earlier_files_too(tmp_path: Path) -> None:
    """A worker sends again what was not acknowledged; that may be in any of the last files."""
    scene = Scene.make(tmp_path, rotate_every_s=0.05, checkpoint_every_s=0.05)
    scene.start()
    end = scene.introduce()
    body = encode_json({"id": "a-1", "time": T, **call_record(1), "worker": os.getpid()})
    packet = b"d\n" + body[1:-1].encode()
    end.send(packet)
    time.sleep(0.4)
    scene.kill()
    assert len(scene.list_files()) > 3
    end.close()
    scene.start()
    again = scene.introduce()
    again.send(packet)
    again.settimeout(5)
    while b'"d":1' not in again.recv(4096):
        pass
    again.close()
    assert scene.stop() == 0
    assert len([it for it in scene.read() if it["id"] == "a-1"]) == 1
    assert re.fullmatch(r"audit-\d{12}\.jsonl", scene.list_files()[0].name)
