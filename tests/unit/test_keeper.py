"""The supervisor's side of the recorder: silence, lies, replacement, and the orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from keyside_sidecar import keeper as keeper_module
from keyside_sidecar.children import Children
from keyside_sidecar.keeper import Keeper
from keyside_sidecar.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.handover import Channel


class Watched:
    """A keeper whose recorders do what a test says."""

    def __init__(self, work: Callable[[Channel], int]) -> None:
        self.loop = Loop()
        self.children = Children()
        self.ready = 0
        self.ended: list[int] = []
        self.keeper = Keeper(
            self.loop,
            self.children,
            work=work,
            on_ready=self._note_ready,
            on_ended=self.ended.append,
        )

    def _note_ready(self) -> None:
        self.ready += 1

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.01, lambda: None)
            self.loop.turn()
            self.children.reap()


Maker = "Callable[[Callable[[Channel], int]], Watched]"


@pytest.fixture
def watch(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[Channel], int]], Watched]]:
    """Make a keeper whose second lasts 0.02 s; its recorder is gone afterwards."""
    monkeypatch.setattr(keeper_module, "_CHECK_S", 0.02)
    monkeypatch.setattr(keeper_module, "_RESTART_PAUSE_S", 0.02)
    made: list[Watched] = []
    before = len(os.listdir("/proc/self/fd"))

    def make(work: Callable[[Channel], int]) -> Watched:
        made.append(Watched(work))
        return made[-1]

    yield make
    for watched in made:
        watched.keeper._kill("the test is over")
        watched.turn_until(lambda watched=watched: not watched.keeper.running)  # type: ignore[misc]
        watched.loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


def keep_record(channel: Channel) -> int:
    """Be a recorder: say ready, answer each worker with its name, end when told."""
    channel._end.setblocking(True)
    channel.send({"alive": True})
    channel.send({"ready": True})
    kept = []
    while (packet := channel.receive()) is not None:
        match packet.fields:
            case {"worker": int(pid)}:
                kept.append(socket.socket(fileno=packet.descriptors[0]))
                kept[-1].send(f"worker {pid}".encode())
            case {"record": {"event": name}}:
                for end in kept:
                    end.send(f"record {name}".encode())
            case {"stop": True}:
                return 5
    return 6


def introduce(watched: Watched, pid: int) -> socket.socket:
    """Introduce a worker; return its end."""
    recorders, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watched.keeper.introduce(pid, recorders)
    return workers


def hear(watched: Watched, end: socket.socket) -> bytes:
    """Return the next thing that a worker hears; nothing where its recorder is gone."""
    heard: list[bytes] = []

    def listen() -> bool:
        with contextlib.suppress(BlockingIOError):
            heard.append(end.recv(100, socket.MSG_DONTWAIT))
        return bool(heard)

    watched.turn_until(listen)
    return heard[0]


def test_workers_are_introduced_and_the_end_is_waited_for(watch: Maker) -> None:  # type: ignore[valid-type]
    """What comes before "stop" is there before the recorder ends."""
    watched = watch(keep_record)  # type: ignore[misc]
    watched.keeper.start()
    watched.turn_until(lambda: watched.keeper.ready)
    with introduce(watched, 4711) as worker:
        assert hear(watched, worker) == b"worker 4711"
        watched.keeper.note({"event": "worker.ended"})
        watched.keeper.stop()
        watched.keeper.stop()
        assert hear(watched, worker) == b"record worker.ended"
        watched.turn_until(lambda: not watched.keeper.running)
        assert watched.ended == [5]
        assert hear(watched, worker) == b""


def test_a_recorder_that_was_killed_is_replaced_and_told_what_it_missed(watch: Maker) -> None:  # type: ignore[valid-type]
    """A worker's old end closes; it is introduced anew once the next one is ready."""
    watched = watch(keep_record)  # type: ignore[misc]
    watched.keeper.start()
    watched.turn_until(lambda: watched.keeper.ready)
    with introduce(watched, 1) as first:
        assert hear(watched, first) == b"worker 1"
        os.kill(watched.keeper._pid, signal.SIGKILL)
        watched.turn_until(lambda: bool(watched.ended))
        assert watched.ended == [-signal.SIGKILL]
        assert hear(watched, first) == b""
    with introduce(watched, 1) as early:
        assert hear(watched, early) == b"", "nobody is there to be introduced to"
    watched.keeper.note({"event": "worker.ended"})
    watched.keeper.start_later()
    watched.turn_until(lambda: watched.ready == 2)
    with introduce(watched, 1) as second:
        assert hear(watched, second) == b"worker 1"


@pytest.mark.parametrize(
    "packet", [{"ready": 1}, {"surprise": 1}, {}, {"alive": False}, {"recorded": "1"}]
)
def test_a_recorder_that_says_something_unknown_is_killed(
    watch: Maker,  # type: ignore[valid-type]
    packet: dict[str, Any],
) -> None:
    """It runs as another account than the supervisor, and isn't trusted by it."""

    def lie(channel: Channel) -> int:
        channel.send(packet)
        time.sleep(30)
        return 0

    watched = watch(lie)  # type: ignore[misc]
    watched.keeper.start()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended == [-signal.SIGKILL]


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_silent_recorder_is_killed(watch: Maker, *, is_ready: bool) -> None:  # type: ignore[valid-type]
    """After twenty checks; one that opens a long log has sixty, and each word counts."""

    def fall_silent(channel: Channel) -> int:
        channel.send({"ready": True} if is_ready else {"alive": True})
        time.sleep(30)
        return 0

    watched = watch(fall_silent)  # type: ignore[misc]
    began_s = time.monotonic()
    watched.keeper.start()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended == [-signal.SIGKILL]
    assert (time.monotonic() - began_s > 1.0) is not is_ready


def test_a_recorder_that_reads_nothing_holds_nobody_up(
    watch: Maker,  # type: ignore[valid-type]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records are kept up to a bound, descriptors are not; stopping it is bounded too."""
    monkeypatch.setattr(keeper_module, "_STOP_S", 0.2)
    monkeypatch.setattr(keeper_module, "_KILL_AFTER", 10_000)

    def ignore(channel: Channel) -> int:
        channel.send({"ready": True})
        time.sleep(30)
        return 0

    watched = watch(ignore)  # type: ignore[misc]
    watched.keeper.start()
    watched.turn_until(lambda: watched.keeper.ready)
    for number in range(5000):
        watched.keeper.note({"event": "connection.refused", "count": number})
    assert len(watched.keeper._records) == len(watched.keeper._outbox) == 256
    with introduce(watched, 1) as worker:
        watched.keeper.stop()
        watched.turn_until(lambda: bool(watched.ended))
        assert watched.ended == [-signal.SIGKILL]
        assert hear(watched, worker) == b""


def serve_orders(channel: Channel) -> int:
    """Do as the recorder does: records are on the disk at once, and "stop" ends it."""
    channel.send({"ready": True})
    while True:
        try:
            packet = channel.receive()
        except BlockingIOError:
            time.sleep(0.005)
            continue
        if packet is None or "stop" in packet.fields:
            return 0
        if "ack" in packet.fields:
            channel.send({"recorded": packet.fields["ack"]})


def test_whoever_waits_for_a_record_is_told_when_it_is_on_the_disk(watch: Maker) -> None:  # type: ignore[valid-type]
    watched = watch(serve_orders)  # type: ignore[misc]
    told: list[int] = []
    assert not watched.keeper.record({"event": "run.reload"}, lambda: told.append(0)), "no recorder"
    watched.keeper.start()
    watched.turn_until(lambda: watched.keeper.ready)
    for number in (1, 2):
        assert watched.keeper.record({"event": "run.reload"}, lambda n=number: told.append(n))
    watched.turn_until(lambda: len(told) == 2)
    assert told == [1, 2]


def test_a_recorder_that_is_replaced_ends_in_order_and_another_one_starts(watch: Maker) -> None:  # type: ignore[valid-type]
    """Nobody is told that it has ended: it is no failure."""
    watched = watch(serve_orders)  # type: ignore[misc]
    watched.keeper.start()
    watched.turn_until(lambda: watched.ready == 1)
    watched.keeper.replace()
    assert not watched.keeper.ready
    watched.turn_until(lambda: watched.ready == 2)
    assert watched.keeper.ready
    assert watched.ended == []
