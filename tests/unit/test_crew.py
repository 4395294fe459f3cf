"""The supervisor's loop and its workers: stale events, silence, and workers that lie."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar import crew as crew_module
from keyside_sidecar.admission import Ledger
from keyside_sidecar.children import Children
from keyside_sidecar.crew import Arrival, Crew, Member
from keyside_sidecar.handover import discard
from keyside_sidecar.loop import Loop
from keyside_sidecar.pam.errand import Errand
from keyside_sidecar.peer.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.handover import Channel


class Watched:
    """A crew whose workers do what a test says."""

    def __init__(self, work: Callable[[Channel], int]) -> None:
        self.loop = Loop()
        self.children = Children()
        self.work = work
        self.errands: list[Errand] = []
        self.ledger = Ledger(100, 100)
        self.ready: list[Member] = []
        self.ended: list[tuple[Member, int]] = []
        self.crew = Crew(
            self.loop,
            self.children,
            self.ledger,
            on_ready=self.ready.append,
            on_room=lambda: None,
            on_ended=lambda member, code: self.ended.append((member, code)),
            on_pam=self._take_errand,
        )

    def fork(self) -> Member:
        """Start a worker."""

        def work(channel: Channel) -> int:
            self.loop.close()
            self.crew.close_in_child()
            return self.work(channel)

        return self.crew.fork(work)

    def _take_errand(self, errand: Errand, end: socket.socket) -> None:
        self.errands.append(errand)
        end.close()

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.02, lambda: None)
            self.loop.turn()
            self.children.reap()


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
    watched.fork()
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
        {"pam": 1, "uid": 1000, "what": "authenticate"},
    ],
)
def test_a_worker_that_says_something_unknown_is_killed(
    watch: Maker,  # type: ignore[valid-type]
    packet: dict[str, object],
) -> None:
    """It runs as another account than the supervisor, and isn't trusted by it."""
    watched = watch(say(packet))  # type: ignore[misc]
    watched.fork()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL


def test_a_worker_can_not_release_anothers_connections(watch: Maker) -> None:  # type: ignore[valid-type]
    """A number that isn't its own is ignored."""
    watched = watch(say({"ready": True}, {"closed": 1}, {"closed": 2}))  # type: ignore[misc]
    watched.fork()
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
    watched.fork()
    watched.turn_until(lambda: bool(watched.crew.ready()))
    watched.turn_until(lambda: len(watched.crew) == 1 and not watched.crew.ready())
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL


def test_what_a_worker_can_not_take_is_given_back(watch: Maker) -> None:  # type: ignore[valid-type]
    """A worker that does not read is passed over, and what was meant for it is released."""
    watched = watch(say({"ready": True}))  # type: ignore[misc]
    watched.fork()
    watched.turn_until(lambda: bool(watched.ready))
    (member,) = watched.crew
    credential = Caller(1, 1000, 1000)
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


def ask_pam(kind: str, **fields: object) -> Callable[[Channel], int]:
    """Return a worker that asks for a helper, with a descriptor of some kind along."""

    def work(channel: Channel) -> int:
        ends: list[int] = []
        if kind == "stream":
            ends += [end.detach() for end in socket.socketpair()]
        elif kind == "packets":
            ends += [
                end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ]
        elif kind == "internet":
            ends.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach())
        else:
            ends.append(os.open("/dev/null", os.O_RDWR))
        channel.send({"pam": 1, "uid": 1000, "what": "authenticate"} | fields, (ends[0],))
        time.sleep(30)
        return 0

    return work


def test_a_worker_may_ask_for_a_person(watch: Maker) -> None:  # type: ignore[valid-type]
    """What it wants goes to whoever has the helpers, with the socket."""
    watched = watch(ask_pam("stream"))  # type: ignore[misc]
    before = len(os.listdir("/proc/self/fd"))
    watched.ledger.add(1000, watched.fork().index)
    watched.turn_until(lambda: bool(watched.errands))
    assert watched.errands == [Errand(1000, "authenticate")]
    assert not watched.ended
    assert len(os.listdir("/proc/self/fd")) == before + 1, "the worker's channel"


def test_a_worker_may_not_try_the_passwords_of_others(watch: Maker) -> None:  # type: ignore[valid-type]
    """One that was taken over, of an account that is not connected to it: nobody is asked."""
    watched = watch(ask_pam("stream"))  # type: ignore[misc]
    member = watched.fork()
    watched.ledger.add(1000, member.index + 1)
    watched.ledger.add(1001, member.index)
    deadline = time.monotonic() + 1
    watched.turn_until(lambda: time.monotonic() > deadline)
    assert watched.errands == []
    assert not watched.ended


def test_what_lingers_does_not_hold_up_the_supervisor() -> None:
    """Closing a TCP socket that has something to send waits as long as its owner has said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sent = socket.create_connection(server.getsockname())
        sent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        sent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.send(bytes(1 << 16))
        began = time.monotonic()
        discard(sent.detach())
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("file", {}),
        ("packets", {}),
        ("internet", {}),
        ("stream", {"uid": -1}),
        ("stream", {"uid": True}),
        ("stream", {"uid": 2**32 - 1}),
        ("stream", {"uid": "0"}),
        ("stream", {"what": "session"}),
        ("stream", {"service": "login"}),
    ],
)
def test_a_worker_that_asks_for_a_person_in_another_way_is_killed(
    watch: Maker,  # type: ignore[valid-type]
    kind: str,
    fields: dict[str, object],
) -> None:
    """The service is the configuration's; what answers are written to is a Unix stream."""
    watched = watch(ask_pam(kind, **fields))  # type: ignore[misc]
    before = len(os.listdir("/proc/self/fd"))
    watched.fork()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL
    assert watched.errands == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_elevation_no_worker_may_ask_for_a_person(watch: Maker) -> None:  # type: ignore[valid-type]
    """There is nobody to ask, so only a worker that was taken over does."""
    watched = watch(ask_pam("stream"))  # type: ignore[misc]
    watched.crew._on_pam = None
    watched.fork()
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended[0][1] == -signal.SIGKILL


def test_a_worker_is_given_its_end_of_a_new_recorders_pair(watch: Maker) -> None:  # type: ignore[valid-type]
    """Also where it is told to drain before it has taken it: its last records go there."""

    def work(channel: Channel) -> int:
        channel.send({"ready": True})
        time.sleep(0.3)
        channel._end.setblocking(True)
        packets = [channel.receive()]
        while packets[-1] is not None and "drain" not in packets[-1].fields:
            packets.append(channel.receive())
        (given,) = (packet for packet in packets if packet and "audit" in packet.fields)
        socket.socket(fileno=given.descriptors[0]).send(b"a record")
        return 7

    watched = watch(work)  # type: ignore[misc]
    member = watched.fork()
    watched.turn_until(lambda: bool(watched.ready))
    while member.takes_connections:
        ours, theirs = socket.socketpair()
        ours.close()
        watched.crew.hand_over(
            Arrival(theirs, Caller(1, 1000, 1000), None), member, Caller(1, 1, 1)
        )
    recorders, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watched.crew.attach_recorder(member, workers)
    watched.crew.drain(1.0)
    with recorders:
        watched.turn_until(lambda: bool(watched.ended))
        assert watched.ended == [(member, 7)]
        assert recorders.recv(100) == b"a record"
        assert recorders.recv(100) == b"", "no copy is left here"


def test_a_retired_generation_ends_and_what_it_was_not_given_comes_back(watch: Maker) -> None:  # type: ignore[valid-type]
    """Connections go to the generation that serves, and none is lost in between."""

    def work(channel: Channel) -> int:
        channel.send({"ready": True})
        while True:
            try:
                packet = channel.receive()
            except BlockingIOError:
                time.sleep(0.01)
                continue
            assert packet is not None
            if "drain" in packet.fields:
                return 10 if packet.fields["succeeded"] else 11

    watched = watch(work)  # type: ignore[misc]
    old = watched.fork()
    watched.turn_until(lambda: bool(watched.ready))
    os.kill(old.pid, signal.SIGSTOP)
    credential = Caller(1, 1000, 1000)
    given = 0
    while not old.outbox:  # until its channel has no room
        ours, theirs = socket.socketpair()
        ours.close()
        watched.crew.hand_over(Arrival(theirs, credential, None), old, credential)
        given += 1
    assert watched.crew.ready() == [old]
    watched.crew.generation = 1
    assert watched.crew.ready() == []
    (left,) = watched.crew.retire(5.0)
    left.close()
    assert watched.ledger.count() == given - 1
    os.kill(old.pid, signal.SIGCONT)
    watched.turn_until(lambda: bool(watched.ended))
    assert watched.ended == [(old, 10)]
    assert watched.ledger.count() == 0
