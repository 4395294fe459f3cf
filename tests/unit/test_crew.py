"""The supervisor's loop and its workers: stale events, silence, and workers that lie."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar import crew as crew_module
from keyside_sidecar.admission import Ledger
from keyside_sidecar.crew import Arrival, Crew, Member
from keyside_sidecar.loop import Loop
from keyside_sidecar.peer.credential import PeerCredential

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.handover import Channel


class Watched:
    """A crew whose workers do what a test says."""

    def __init__(self, work: Callable[[Channel], int]) -> None:
        self.loop = Loop()
        self.ledger = Ledger(100, 100)
        self.ready: list[Member] = []
        self.ended: list[tuple[Member, int]] = []
        self.crew = Crew(
            self.loop,
            self.ledger,
            work=work,
            on_ready=self.ready.append,
            on_room=lambda: None,
            on_ended=lambda member, code: self.ended.append((member, code)),
        )

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.02, lambda: None)
            self.loop.turn()
            self.crew.reap()


@pytest.fixture
def watch() -> Iterator[Callable[[Callable[[Channel], int]], Watched]]:
    """Make a crew; its workers are gone afterwards."""
    made: list[Watched] = []

    def make(work: Callable[[Channel], int]) -> Watched:
        made.append(Watched(work))
        return made[-1]

    yield make
    for watched in made:
        for member in watched.crew:
            watched.crew.kill(member, "the test is over")
        watched.turn_until(lambda watched=watched: not len(watched.crew))  # type: ignore[misc]
        watched.loop.close()


def say(*packets: dict[str, object], then_s: float = 30.0) -> Callable[[Channel], int]:
    def work(channel: Channel) -> int:
        for packet in packets:
            channel.send(packet)
        time.sleep(then_s)
        return 0

    return work


Maker = "Callable[[Callable[[Channel], int]], Watched]"


def test_an_event_about_something_closed_in_the_same_turn_is_dropped() -> None:
    """A handler may close what a later event of the turn is about."""
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    heard = []

    def hear(number: int) -> None:
        heard.append(number)
        for ours, _theirs in pairs:
            loop.unwatch(ours.fileno())
            ours.close()

    for number, (ours, theirs) in enumerate(pairs):
        loop.watch(ours.fileno(), lambda number=number: hear(number))  # type: ignore[misc]
        theirs.send(b"x")
    loop.turn()
    assert len(heard) == 1
    loop.close()
    for _ours, theirs in pairs:
        theirs.close()


def test_a_worker_that_ends_is_reported_once_and_leaves_nothing(watch: Maker) -> None:  # type: ignore[valid-type]
    """Its exit code arrives, and its connections are forgotten."""
    watched = watch(lambda _channel: 3)  # type: ignore[misc]
    watched.crew.fork()
    (member,) = watched.crew
    watched.ledger.add(1000, member.index)
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended == [(member, 3)]
    assert watched.ledger.count() == 0
    assert not len(watched.crew)


@pytest.mark.parametrize(
    "packet",
    [
        {"closed": []},
        {"closed": "1"},
        {"ready": 1},
        {"surprise": True},
        {},
        {"alive": False},
    ],
)
def test_a_worker_that_says_something_unknown_is_killed(
    watch: Maker,  # type: ignore[valid-type]
    packet: dict[str, object],
) -> None:
    """It runs as another account than the supervisor, and isn't trusted by it."""
    watched = watch(say(packet))  # type: ignore[misc]
    watched.crew.fork()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL


def test_a_worker_can_not_release_anothers_connections(watch: Maker) -> None:  # type: ignore[valid-type]
    """A number that isn't its own is ignored."""
    watched = watch(say({"ready": True}, {"closed": 1}, {"closed": 2}))  # type: ignore[misc]
    watched.crew.fork()
    (member,) = watched.crew
    assert watched.ledger.add(1000, worker=member.index + 1) == 1
    assert watched.ledger.add(1000, worker=member.index) == 2
    watched.turn_until(lambda: watched.ledger.count() == 1)
    assert watched.ready == [member]


def test_a_silent_worker_gets_no_connections_and_is_killed(
    watch: Maker,  # type: ignore[valid-type]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that hangs must not become a hole into which callers fall."""
    monkeypatch.setattr(crew_module, "_CHECK_S", 0.02)
    watched = watch(say({"ready": True}))  # type: ignore[misc]
    watched.crew.fork()
    watched.turn_until(lambda: bool(watched.crew.ready()))
    watched.turn_until(lambda: len(watched.crew) == 1 and not watched.crew.ready())
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL


def test_what_a_worker_can_not_take_is_given_back(watch: Maker) -> None:  # type: ignore[valid-type]
    """A worker that does not read is passed over, and what was meant for it is released."""
    watched = watch(say({"ready": True}))  # type: ignore[misc]
    watched.crew.fork()
    watched.turn_until(lambda: bool(watched.ready))
    (member,) = watched.crew
    credential = PeerCredential(1, 1000, 1000)
    before = len(os.listdir("/proc/self/fd"))
    given = 0
    while member.takes_connections:
        ours, theirs = socket.socketpair()
        ours.close()
        watched.crew.hand_over(Arrival(theirs, credential, None), member, credential)
        given += 1
    assert watched.ledger.count() == given
    os.kill(member.pid, signal.SIGKILL)
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ledger.count() == 0
    assert len(os.listdir("/proc/self/fd")) <= before
