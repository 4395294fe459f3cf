"""The recorder's process: what it writes, in which order, and what a kill at any instant leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.audit_scene import Scene, action_record, call_record, eventually, verify_files

from keyside.audit import Anchor, Completeness, parse_checkpoint
from keyside_sidecar.audit.sender import AuditSender
from keyside_sidecar.clock import SystemClock

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

SOAK = os.environ.get("KEYSIDE_SOAK") == "1"
KILLS = 400 if SOAK else 30


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene.make(tmp_path)
    yield made
    made.end()


def run_worker(scene: Scene, records: int, *, durable: int = 0) -> None:
    """Have one worker record something, all of it on the disk."""

    async def work() -> None:
        sender = scene.make_sender()
        for number in range(records):
            sender.note(call_record(number))
        for _ in range(durable):
            await sender.record(action_record("intent"))
        assert await sender.flush(10)
        await sender.close()

    asyncio.run(work())


def test_i13_run_begins_with_the_configurations_digest_and_ends_closed(scene: Scene) -> None:
    scene.start()
    run_worker(scene, 3, durable=1)
    assert scene.stop() == 0
    records = scene.read()
    assert [record["event"] for record in records] == [
        "checkpoint",
        "run.start",
        "checkpoint",
        *["key.rotate", *["encryption.decrypt"] * 3],
        "run.end",
        "checkpoint",
    ] or [record["event"] for record in records][3:7] == ["encryption.decrypt"] * 3 + ["key.rotate"]
    start = records[1]["details"]
    assert start["config_digest"] == scene.config.digest
    assert (start["previous_sequence"], start["previous_hash"]) == (1, records[0]["hash"])
    found = scene.verify()
    assert found.fault is None
    assert found.authenticated
    assert found.completeness is Completeness.CLOSED


def test_next_run_names_the_former_ones_head(scene: Scene) -> None:
    for _ in range(2):
        scene.start()
        assert scene.stop() == 0
    first, second = scene.find("run.start")
    assert second["details"]["previous_sequence"] == second["seq"] - 1
    assert second["details"]["previous_hash"] == scene.read()[second["seq"] - 2]["hash"]
    assert scene.find("run.recovered") == []
    assert first["seq"] == 2


def test_durable_record_is_in_the_file_when_it_returns(scene: Scene) -> None:
    """I8: whoever is told that it is recorded finds it there."""
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        for number in range(20):
            await sender.record(action_record("intent", request_id=f"r{number}"))
            assert scene.find("key.rotate")[-1]["request_id"] == f"r{number}"
        await sender.close()

    asyncio.run(work())


def test_calls_are_written_within_a_second(scene: Scene) -> None:
    scene.start()

    async def work() -> None:
        sender = scene.make_sender()
        await sender.wait_attached(5)
        sender.note(call_record(1))
        given = time.monotonic()
        await eventually(lambda: not sum(map(len, sender._lanes.values())))
        assert time.monotonic() - given < 1.0
        await sender.close()

    asyncio.run(work())
    assert len(scene.find("encryption.decrypt")) == 1


def test_idle_intervals_are_sealed_too(tmp_path: Path) -> None:
    scene = Scene.make(tmp_path, checkpoint_every_s=0.1)
    scene.start()
    time.sleep(0.5)
    assert scene.stop() == 0
    kinds = [record["details"]["kind"] for record in scene.find("checkpoint")]
    assert kinds.count("interval") >= 3
    assert (kinds[0], kinds[-1]) == ("start", "stop")
    assert scene.verify().fault is None


def test_each_checkpoint_names_the_next_key_and_the_old_one_is_gone(scene: Scene) -> None:
    former = scene.places.key.read_bytes()
    scene.start()
    assert scene.stop() == 0
    assert scene.places.key.read_bytes() != former
    assert not scene.places.next_key.exists()
    assert scene.places.key.stat().st_mode & 0o777 == 0o600
    keys = [record["details"]["next_key"] for record in scene.find("checkpoint")]
    assert len(set(keys)) == len(keys)


def test_file_is_finished_by_size_and_verified_as_one_chain(tmp_path: Path) -> None:
    scene = Scene.make(tmp_path, rotate_bytes=200_000)
    scene.start()
    for _ in range(4):
        run_worker(scene, 500)
    assert scene.stop() == 0
    files = scene.list_files()
    assert len(files) > 3
    for path in files:
        first = json.loads(path.read_bytes().split(b"\n", 1)[0])
        if path is not files[-1]:
            assert path.name == f"audit-{first['seq']:012d}.jsonl"
            assert path.read_bytes().splitlines()[-1].count(b'"kind":"rotation"') == 1
        assert first["event"] == ("log.continued" if path is not files[0] else "checkpoint")
    assert scene.verify().fault is None
    last = parse_checkpoint(files[1].read_bytes().splitlines()[-1])
    newer = verify_files(files[2:], Anchor(checkpoints=(last,)))
    assert newer.fault is None
    assert newer.authenticated


def test_file_is_finished_by_age(tmp_path: Path) -> None:
    scene = Scene.make(tmp_path, rotate_every_s=0.15, checkpoint_every_s=0.05)
    scene.start()
    time.sleep(0.6)
    assert scene.stop() == 0
    assert len(scene.list_files()) >= 3
    assert scene.verify().completeness is Completeness.CLOSED


def test_second_recorder_waits_for_the_first_ones_end(scene: Scene) -> None:
    """Two writers would ruin the chain."""
    scene.start()
    first, control = scene.pid, scene.control
    scene.start(wait=False)
    time.sleep(0.3)
    assert control is not None
    control.send({"stop": True})
    os.waitpid(first, 0)
    control.close()
    scene.await_packet("ready")
    assert scene.stop() == 0
    assert scene.verify().fault is None


def test_supervisor_that_is_gone_leaves_a_sealed_open_end(scene: Scene) -> None:
    scene.start()
    run_worker(scene, 10)
    assert scene.control is not None
    scene.control.close()
    scene.control = None
    assert scene.wait() == 0
    found = scene.verify()
    assert found.completeness is Completeness.OPEN_ENDED
    assert found.unsealed == 0
    assert scene.find("run.end") == []


def test_supervisors_own_records(scene: Scene) -> None:
    scene.start()
    assert scene.control is not None
    scene.control.send({"record": {"event": "connection.refused", "count": 3}})
    scene.control.send({"record": {"event": "run.reload", "details": {"why": "x"}}, "ack": 7})
    assert scene.await_packet("recorded") == {"recorded": 7}
    assert scene.find("connection.refused")[0]["count"] == 3
    assert scene.find("run.reload")


def test_it_says_that_it_is_alive(scene: Scene) -> None:
    scene.start()
    assert scene.await_packet("alive") == {"alive": True}


def test_signals_do_not_end_it(scene: Scene) -> None:
    scene.start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(scene.pid, number)
    run_worker(scene, 1)
    assert scene.stop() == 0


# --- workers that are replaced, and that misbehave


def test_what_a_dead_recorder_left_is_sent_again_and_nothing_twice(scene: Scene) -> None:
    async def work() -> int:
        sender = AuditSender(scene.audit, SystemClock())
        given = 0
        for turn in range(4):
            scene.start()
            sender.attach(scene.introduce())
            for _ in range(300):
                sender.note(call_record(given))
                given += 1
            if turn < 3:
                await asyncio.sleep(0.05 * turn)
                scene.kill()
        assert await sender.flush(10)
        await sender.close()
        return given

    given = asyncio.run(work())
    assert scene.stop() == 0
    numbers = [record["digest"] for record in scene.find("encryption.decrypt")]
    assert sorted(numbers) == [f"{number:064x}" for number in range(given)]
    assert len(scene.find("run.recovered")) == 3
    assert scene.verify().fault is None


BAD = [
    b"no json",
    b"",
    b'"id":"a"',
    b'"id":"a","time":"t","event":"x","worker":%d',
    b'"id":"","time":"%t","event":"x","worker":%d',
    b'"id":"a","time":"%t","event":"X","worker":%d',
    b'"id":"a","time":"%t","event":"checkpoint","worker":%d',
    b'"id":"a","time":"%t","event":"run.end","worker":%d',
    b'"id":"a","time":"%t","event":"x","worker":1',
    b'"id":"a","time":"%t","event":"x","seq":9,"worker":%d',
    b'"id":"a","time":"%t","event":"x","worker":%d,"hash":"00"},"x":{"y":1',
    b'"id":"a","time":"%t","event":"x","worker":%d,"worker":%d',
    b'"id":"a","time":"%t","event":"x","password":"x","worker":%d',
    b'"id":"a","time":"%t","event":"x",  "worker":%d',
    b'"id":"a","time":"%t","event":"x","worker":%d,"details":{"password":"x"}',
    b'"id":"a","time":"%t","event":"x","worker":%d,"caller":{"password":"x"}',
    b'"id":"a","time":"%t","event":"x","worker":%d,"caller":{"uid":"x"}',
    b'"id":"a","time":"%t","event":"x","worker":%d,"details":[]',
    b'"id":"a","time":"%t","event":"x","worker":%d,"version":"x"',
    b'"id":"a","time":"%t","event":"x","worker":%d,"version":1%0',
    b'"id":"a","time":"%t","event":"x","worker":%d,"key":1',
]


@pytest.mark.parametrize("bad", BAD)
def test_worker_can_not_break_the_log(scene: Scene, bad: bytes) -> None:
    """At what is no record one says so, and no more is taken; numbers and hashes are not its."""
    bad = bad.replace(b"%d", str(os.getpid()).encode())
    bad = bad.replace(b"%0", b"0" * 4000)
    bad = bad.replace(b"%t", b"2026-11-25T22:45:11.123456Z")
    scene.start()
    end = scene.introduce()
    end.send(b"n\n" + bad)
    await_let_go(end)
    assert scene.stop() == 0
    assert scene.verify().completeness is Completeness.CLOSED
    (failed,) = scene.find("audit.failed")
    assert (failed["reason"], failed["worker"]) == ("AUDIT_BAD_RECORD", os.getpid())


def await_let_go(end: socket.socket) -> None:
    """Wait until the recorder has closed its end."""
    end.settimeout(5)
    with contextlib.closing(end), contextlib.suppress(ConnectionResetError):
        while end.recv(4096):
            pass


def test_worker_that_talks_nonsense_is_not_listened_to(scene: Scene) -> None:
    scene.start()
    end = scene.introduce()
    end.send(b"\xff\xfe")
    await_let_go(end)
    run_worker(scene, 1)
    assert scene.stop() == 0


# --- the store's generation (I10)


def test_i10_generation_is_in_checkpoints_and_told_to_workers_over_restarts(scene: Scene) -> None:
    async def report(generation: int) -> tuple[str, int] | None:
        sender = scene.make_sender()
        await sender.wait_attached(5)
        anchor = sender.anchor
        sender.report_generation(b"\x01" * 16, generation)
        await sender.record(action_record("intent"))  # comes behind it, and is answered
        await sender.close()
        return anchor

    store = "01" * 16
    scene.start()
    assert asyncio.run(report(7)) is None
    assert asyncio.run(report(5)) == (store, 7)
    scene.stop()
    details = scene.find("checkpoint")[-1]["details"]
    assert (details["store_id"], details["store_generation"]) == (store, 7)
    scene.start()
    assert asyncio.run(report(8)) == (store, 7)
    scene.stop()


def test_i10_outcome_tells_the_generation_even_where_a_kill_follows(scene: Scene) -> None:
    store = "02" * 16

    async def act(**details: object) -> None:
        sender = scene.make_sender()
        await sender.record(action_record("outcome", outcome="ok", details=details))
        await sender.close()

    async def ask() -> tuple[str, int] | None:
        sender = scene.make_sender()
        await sender.wait_attached(5)
        await sender.close()
        return sender.anchor

    scene.start()
    asyncio.run(act(store_id=store, store_generation=41))
    scene.kill()
    scene.start()
    assert asyncio.run(ask()) == (store, 41)


def test_i10_accepted_rollback_takes_the_generation_back(scene: Scene) -> None:
    store = "03" * 16

    async def act() -> tuple[str, int] | None:
        sender = scene.make_sender()
        details: dict[str, object] = {"store_id": store, "store_generation": 41}
        await sender.record(action_record("outcome", outcome="ok", details=details))
        details["store_generation"] = 12
        accepted = {"event": "store.rollback_accepted", "details": details}
        await sender.record({**accepted, "phase": "intent"})
        sender.attach(scene.introduce())
        await sender.wait_attached(5)
        assert sender.anchor == (store, 41)
        await sender.record({**accepted, "phase": "outcome", "outcome": "ok"})
        sender.attach(scene.introduce())
        await sender.wait_attached(5)
        await sender.close()
        return sender.anchor

    scene.start()
    assert asyncio.run(act()) == (store, 12)
    scene.kill()
    scene.start()
    scene.stop()
    assert scene.find("checkpoint")[-1]["details"]["store_generation"] == 12


# --- starting on what is there


def test_no_log_is_refused(scene: Scene) -> None:
    scene.audit.path.unlink()
    scene.start(wait=False)
    assert scene.wait() == 78


def test_cut_log_does_not_fit_its_key(scene: Scene) -> None:
    """Whoever cut off sealed records is found at the next start already."""
    scene.start()
    scene.stop()
    lines = scene.audit.path.read_bytes().splitlines(keepends=True)
    scene.audit.path.write_bytes(b"".join(lines[:3]))
    scene.start(wait=False)
    assert scene.wait() == 78


@pytest.mark.parametrize("name", ["log", "key"])
def test_files_that_others_can_write_are_refused(scene: Scene, name: str) -> None:
    path = scene.audit.path if name == "log" else scene.places.key
    path.chmod(0o666)
    scene.start(wait=False)
    assert scene.wait() == 78


def test_fifo_in_the_logs_place_is_refused_and_does_not_hang(scene: Scene) -> None:
    scene.audit.path.unlink()
    os.mkfifo(scene.audit.path)
    scene.start(wait=False)
    assert scene.wait() == 78


def test_torn_end_is_cut_off_and_recorded(scene: Scene) -> None:
    scene.start()
    run_worker(scene, 5)
    scene.kill()
    with scene.audit.path.open("ab") as file:
        file.write(b'{"v":1,"seq":99,"id":"half')
    assert scene.verify().torn_bytes == 26
    scene.start()
    assert scene.stop() == 0
    (recovered,) = scene.find("run.recovered")
    assert recovered["details"] == {"torn_bytes": 26, "unsealed": 5, "lost_up_to_s": 1}
    assert scene.find("run.start")[-1]["seq"] == recovered["seq"] - 1
    assert scene.verify().completeness is Completeness.CLOSED


def test_damage_after_the_last_checkpoint_is_kept_aside(scene: Scene) -> None:
    """A power failure can leave more than half a line; it is evidence, and not thrown away."""
    scene.start()
    run_worker(scene, 50)
    scene.kill()
    data = scene.audit.path.read_bytes()
    at = data.rindex(b'"digest"')
    scene.audit.path.write_bytes(data[:at] + bytes(200) + data[at + 200 :] + b"\0" * 500)
    scene.start()
    assert scene.stop() == 0
    details = scene.find("run.recovered")[0]["details"]
    kept = scene.audit.path.parent / details["kept_as"]
    assert kept.read_bytes().count(b"\0") == 700
    assert details["torn_bytes"] == kept.stat().st_size
    assert scene.verify().fault is None


def test_kill_between_two_files_is_recovered(scene: Scene) -> None:
    """The finished file has its name, and the new one is not there, or is empty."""
    for leave_empty in (False, True):
        scene.start()
        scene.stop()
        first = json.loads(scene.audit.path.read_bytes().split(b"\n", 1)[0])["seq"]
        scene.audit.path.rename(scene.places.name_finished(first))
        if leave_empty:
            scene.audit.path.touch(0o600)
    scene.start()
    scene.stop()
    assert [path.name for path in scene.list_files()][-1] == "audit.jsonl"
    assert len(scene.list_files()) == 3
    assert scene.verify().completeness is Completeness.CLOSED


@pytest.mark.soak
@pytest.mark.timeout(1800 if SOAK else 120)
def test_killed_at_any_instant_no_change_is_reported_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("KEYSIDE_STORM_SEED", "0")) or random.randrange(1, 2**32)
    print(f"KEYSIDE_STORM_SEED={seed}")
    choices = random.Random(seed)
    scene = Scene.make(tmp_path, checkpoint_every_s=0.02, rotate_bytes=30_000)
    acknowledged = 0

    async def rage() -> int:
        nonlocal acknowledged
        sender = AuditSender(scene.audit, SystemClock())
        number = 0
        for _ in range(KILLS):
            scene.start()
            sender.attach(scene.introduce())
            # What waited while a long log was verified is late, and refuses what is new until then.
            async with asyncio.timeout(20):
                while sender.problem is not None:
                    await asyncio.sleep(0.001)
            until = time.monotonic() + choices.uniform(0, 0.1)
            while time.monotonic() < until:
                for _ in range(5):
                    sender.note(call_record(number))
                    number += 1
                if choices.random() < 0.3:
                    await sender.record(action_record("intent", request_id=f"a{acknowledged}"))
                    acknowledged += 1
                await asyncio.sleep(0.001)
            scene.kill()
            found = scene.verify()
            assert found.fault is None, found
            assert found.completeness is Completeness.OPEN_ENDED
            said = [record["request_id"] for record in scene.find("key.rotate")]
            assert said == [f"a{index}" for index in range(acknowledged)]
        scene.start()
        sender.attach(scene.introduce())
        assert await sender.flush(20)
        await sender.close()
        return number

    given = asyncio.run(rage())
    assert scene.stop() == 0
    found = scene.verify()
    assert found.fault is None
    assert found.completeness is Completeness.CLOSED
    numbers = [record["digest"] for record in scene.find("encryption.decrypt")]
    assert sorted(numbers) == [f"{number:064x}" for number in range(given)]
    assert acknowledged > KILLS / 4
    assert len(scene.list_files()) > 3
