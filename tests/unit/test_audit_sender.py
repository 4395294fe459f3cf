"""A worker's sender, by itself: the recorder's end of the pair is in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.audit_scene import action_record, call_record, eventually, make_config

from keyside_sidecar.audit.sender import AuditSender
from keyside_sidecar.audit.wire import MAX_PACKET_BYTES, WireError, encode_message, parse_packet
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import AuditUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


class Recorder:
    """Reads what is sent, and answers as told."""

    def __init__(self) -> None:
        self.worker, self._end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end.setblocking(False)
        self.records: dict[str, list[dict[str, Any]]] = {"d": [], "n": [], "r": []}
        self.messages: list[dict[str, Any]] = []
        self.packets = 0

    def read(self) -> None:
        """Take everything that has come."""
        while True:
            try:
                data = self._end.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self.packets += 1
            packet = parse_packet(data)
            if isinstance(packet, dict):
                self.messages.append(packet)
            else:
                lane, bodies = packet
                self.records[lane] += [json.loads(b"{" + body + b"}") for body in bodies]

    def count(self, lane: str) -> int:
        """Return how many records of a lane have come."""
        self.read()
        return len(self.records[lane])

    def say(self, **fields: object) -> None:
        """Send a packet."""
        self._end.send(encode_message(fields))

    def acknowledge(self) -> None:
        """Acknowledge all that has come."""
        self.read()
        self.say(ack={lane: len(records) for lane, records in self.records.items()})

    def close(self) -> None:
        """End."""
        self._end.close()


def run(
    tmp_path: Path,
    work: Callable[[AuditSender, Recorder], Awaitable[None]],
    **settings: Any,
) -> None:
    """Have ``work`` done with a sender that is attached."""

    async def main() -> None:
        config = make_config(tmp_path, **{"timeout_s": 0.3, **settings})
        sender, recorder = AuditSender(config.audit, SystemClock()), Recorder()
        sender.attach(recorder.worker)
        recorder.say(hello=True, anchor=None)
        await sender.wait_attached(1)
        try:
            await work(sender, recorder)
        finally:
            await sender.close()
            recorder.close()

    asyncio.run(main())


def test_calls_are_sent_in_batches(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for number in range(1000):
            sender.note(call_record(number))
        await eventually(lambda: recorder.count("n") == 1000)
        assert recorder.packets < 20
        ids = [record["id"] for record in recorder.records["n"]]
        assert len(set(ids)) == 1000
        assert [record["digest"] for record in recorder.records["n"]] == [
            f"{number:064x}" for number in range(1000)
        ]
        recorder.acknowledge()

    run(tmp_path, work)


def test_noting_costs_microseconds(tmp_path: Path) -> None:
    """A bound that a loaded machine keeps; usually it is a tenth of it."""

    async def work(sender: AuditSender, recorder: Recorder) -> None:
        record = call_record(1)
        begun = time.perf_counter()
        for _ in range(5000):
            sender.note(record)
        assert (time.perf_counter() - begun) / 5000 < 100e-6
        await eventually(lambda: recorder.count("n") == 5000)
        recorder.acknowledge()

    run(tmp_path, work)


def test_action_is_sent_at_once_and_waits_for_its_acknowledgement(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        sender.note(call_record(1))
        task = asyncio.create_task(sender.record(action_record("intent")))
        await eventually(lambda: recorder.count("d") == 1, 0.2)
        await asyncio.sleep(0.02)
        assert not task.done()
        recorder.say(ack={"d": 1})
        await task
        recorder.acknowledge()

    run(tmp_path, work)


def test_unsent_intent_is_taken_back_and_an_outcome_is_kept(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        recorder.say(failing="AUDIT_NO_SPACE", low=True)
        await eventually(lambda: sender.problem)
        with pytest.raises(AuditUnavailable):
            await sender.record(action_record("intent"))
        with pytest.raises(AuditUnavailable):
            await sender.record(action_record("outcome", outcome="ok"))
        await eventually(lambda: recorder.count("r") == 1)
        assert recorder.count("d") == 0
        refused = recorder.records["r"][0]
        assert (refused["event"], refused["reason"]) == ("key.rotate", "AUDIT_UNAVAILABLE")
        recorder.say(failing=None, low=False)
        await eventually(lambda: recorder.count("d") == 1)
        assert recorder.records["d"][0]["phase"] == "outcome"
        await eventually(lambda: recorder.count("n") == 1)
        assert recorder.records["n"][0]["details"]["refused_actions"] == 1
        recorder.acknowledge()

    run(tmp_path, work)


def test_refused_actions_are_coalesced(tmp_path: Path) -> None:
    """Somebody who tries again and again must not fill the reserve."""

    async def work(sender: AuditSender, recorder: Recorder) -> None:
        recorder.say(failing="AUDIT_NO_SPACE", low=True)
        await eventually(lambda: sender.problem)
        for _ in range(500):
            with pytest.raises(AuditUnavailable):
                await sender.record(action_record("intent"))
        await eventually(lambda: recorder.count("r"))
        assert recorder.count("r") == 1

    run(tmp_path, work)


def test_refused_callers_are_coalesced_and_told_at_the_end(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for uid in (7, 8, None):
            for _ in range(100):
                caller = None if uid is None else {"uid": uid}
                record = {"event": "caller.refused", "outcome": "refused", "caller": caller}
                sender.note_refusal({**record, "reason": "NOT_ALLOWED"})
        await eventually(lambda: recorder.count("r") == 3)
        flush = asyncio.create_task(sender.flush(1))
        await eventually(lambda: recorder.count("r") == 6)
        recorder.acknowledge()
        assert await flush
        assert [record.get("count") for record in recorder.records["r"]] == [None] * 3 + [99] * 3

    run(tmp_path, work)


def test_summary_mode_counts_calls_and_keeps_actions(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for number in range(70):
            sender.note(call_record(number))
        sender.note({"event": "key.rolled_over", "key": "mail"})
        flush = asyncio.create_task(sender.flush(1))
        await eventually(lambda: recorder.count("n") == 8)
        recorder.acknowledge()
        assert await flush
        counts = [record.get("count") for record in recorder.records["n"]]
        assert sorted(count for count in counts if count) == [10] * 7

    run(tmp_path, work, service_calls="summary")


def test_another_recorder_gets_what_is_not_acknowledged(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for number in range(10):
            sender.note(call_record(number))
        await eventually(lambda: recorder.count("n") == 10)
        recorder.say(ack={"n": 4})
        await eventually(lambda: len(sender._lanes["n"]) == 6)
        recorder.close()
        sender.note(call_record(10))
        second = Recorder()
        sender.attach(second.worker)
        await eventually(lambda: second.count("n") == 7)
        assert [record["digest"] for record in second.records["n"]] == [
            f"{number:064x}" for number in range(4, 11)
        ]
        second.acknowledge()
        assert await sender.flush(1)
        second.close()

    run(tmp_path, work)


def test_recorder_that_does_not_read_blocks_nobody(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        begun = time.monotonic()
        for number in range(20_000):
            sender.note(call_record(number))
            if number % 500 == 0:
                await asyncio.sleep(0)
        assert time.monotonic() - begun < 5
        await eventually(lambda: sender.problem)
        await eventually(lambda: recorder.count("n") == 20_000)
        recorder.acknowledge()
        await eventually(lambda: sender.problem is None)
        recorder.acknowledge()

    run(tmp_path, work)


def test_what_is_noted_is_bounded_and_the_loss_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyside_sidecar.audit.sender._MAX_IN_FLIGHT", 100)

    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for number in range(1200):
            sender.note(call_record(number))
        assert len(sender._lanes["n"]) == 1100
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_BUFFER_FULL"
        await eventually(lambda: recorder.count("n") == 1100)
        recorder.acknowledge()
        await eventually(lambda: recorder.count("n") == 1101)
        assert recorder.records["n"][-1]["details"]["lost"] == 100
        recorder.acknowledge()

    run(tmp_path, work, buffer_records=1000)


def test_long_records_take_the_room_of_several(tmp_path: Path) -> None:
    """The bound is on memory: 1 KiB for each record that may wait."""
    long = {"error": "\U0001f600" * 2000}  # 24,000 bytes of ASCII JSON

    async def work(sender: AuditSender, recorder: Recorder) -> None:
        served = 0
        with contextlib.suppress(AuditUnavailable):
            while served < 1000:
                sender.require_service_calls()
                sender.note(call_record(served, details=long))
                served += 1
        assert 40 <= served <= 43
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_BUFFER_FULL"
        await eventually(lambda: recorder.count("n") == served)
        recorder.acknowledge()
        await eventually(lambda: sender.problem is None)
        sender.require_service_calls()
        assert await eventually_flushed(sender, recorder)

    run(tmp_path, work, buffer_records=1000, on_failure="buffer")


async def eventually_flushed(sender: AuditSender, recorder: Recorder) -> bool:
    flush = asyncio.create_task(sender.flush(2))
    while not flush.done():
        recorder.acknowledge()
        await asyncio.sleep(0.02)
    return flush.result()


def test_what_is_lost_and_what_waits_for_refusals_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyside_sidecar.audit.sender._MAX_IN_FLIGHT", 0)
    long = {"error": "\U0001f600" * 2000}

    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for number in range(300):
            sender.note(call_record(number, details=long))
            refused = call_record(number, details=long, caller={"uid": number % 250})
            sender.note_refusal({**refused, "event": "caller.refused"})
        assert len(sender._lanes["n"]) < 50
        assert len(sender._lanes["r"]) < 200
        assert sum(lane.size_bytes for lane in sender._lanes.values()) < 7 << 20
        assert await eventually_flushed(sender, recorder)

    run(tmp_path, work, buffer_records=1000)


def test_generation_is_reported_once_and_again_to_another_recorder(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        for generation in (1, 1, 2, 2):
            sender.report_generation(b"\x01", generation)
        await asyncio.sleep(0)
        recorder.read()
        assert recorder.messages == [{"generation": ["01", 1]}, {"generation": ["01", 2]}]
        second = Recorder()
        sender.attach(second.worker)
        second.read()
        assert second.messages == [{"generation": ["01", 2]}]
        second.close()

    run(tmp_path, work)


def test_anchor_is_known_when_attached(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        assert sender.anchor is None
        recorder.say(hello=True, anchor=["ab", 9])
        await eventually(lambda: sender.anchor == ("ab", 9))

    run(tmp_path, work)


def test_waiting_for_a_recorder_ends_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        sender = AuditSender(make_config(tmp_path).audit, SystemClock())
        with pytest.raises(AuditUnavailable):
            await sender.wait_attached(0.05)
        await sender.close()

    asyncio.run(main())


def test_recorder_that_talks_nonsense_is_let_go(tmp_path: Path) -> None:
    async def work(sender: AuditSender, recorder: Recorder) -> None:
        recorder.say(nonsense=True)
        await eventually(lambda: sender.problem)
        assert sender.problem is not None
        assert sender.problem.reason == "AUDIT_NO_RECORDER"

    run(tmp_path, work)


@pytest.mark.parametrize("data", [b"", b"x", b"x\nabc", b"[]", b"1", b"[" * 50_000, b"\xff"])
def test_packet_of_another_form_is_our_error(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_packet(data)
