"""The workers, as the supervisor keeps them.

    FORKED ──"ready"──► READY ──silent for 5 s──► UNRESPONSIVE ──hears again──► READY
       │                  │                            └──silent for 20 s──► killed
       └──exit or 60 s──► lost                   "drain" ──► exit ──► reaped

A READY worker says that it is alive each second. Silence is counted in checks that the supervisor
made, not in seconds: a host that was paused must not cost all its workers. An UNRESPONSIVE one is
given no connections. A worker is not trusted: it runs as another account, and whatever it says that
isn't one of the few known packets ends it.

Workers belong to generations: a reload starts a new one beside the one that serves. Connections go
to the generation that serves; ``retire`` has the others drained.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from keyside_sidecar.handover import Channel, HandoverError, discard, make_channels
from keyside_sidecar.log import event
from keyside_sidecar.pam.errand import Errand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.admission import Ledger
    from keyside_sidecar.children import Children
    from keyside_sidecar.handover import Packet
    from keyside_sidecar.loop import Loop
    from keyside_sidecar.peer.caller import Caller

_log = logging.getLogger(__name__)

_CHECK_S: Final = 1.0
_UNRESPONSIVE_AFTER: Final = 5
_KILL_AFTER: Final = 20
_START_CHECKS: Final = 60
_MAX_OUTBOX: Final = 64
_MAX_UID: Final = 2**32 - 2


class Luggage(Protocol):
    """Descriptors that travel with a packet; ours are closed once it is sent."""

    def descriptors(self) -> tuple[int, ...]:
        """Return them, in the order in which they are sent."""

    def close(self) -> None:
        """Close our copies."""


@dataclass(slots=True, eq=False)
class Arrival:
    """An accepted connection on its way to a worker."""

    connection: socket.socket
    caller: Caller
    pidfd: int | None

    def descriptors(self) -> tuple[int, ...]:
        """Return what is handed over: the socket, and the pidfd where there is one."""
        own = self.connection.fileno()
        return (own,) if self.pidfd is None else (own, self.pidfd)

    def close(self) -> None:
        """Close our copies of the descriptors."""
        self.connection.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


@dataclass(frozen=True, slots=True, eq=False)
class RecorderEnd:
    """A worker's end of a pair whose other end the recorder has."""

    end: socket.socket

    def descriptors(self) -> tuple[int, ...]:
        """Return the end."""
        return (self.end.fileno(),)

    def close(self) -> None:
        """Close our copy."""
        self.end.close()


@dataclass(slots=True, eq=False)
class Member:
    """One worker's process.

    ``outbox`` holds what its channel has no room for yet, oldest first: a worker that is busy for
    a moment must not cost anybody a connection. Each entry is a packet, and the descriptors and the
    ledger's number that go with it (0: it is no connection).
    """

    index: int
    pid: int
    channel: Channel
    ready: bool = False
    silent_checks: int = 0
    checks: int = 0
    generation: int = 0
    outbox: deque[tuple[dict[str, Any], Luggage | None, int]] = field(default_factory=deque)

    @property
    def takes_connections(self) -> bool:
        """Whether it is ready and has not fallen silent or behind."""
        return (
            self.ready
            and self.silent_checks < _UNRESPONSIVE_AFTER
            and len(self.outbox) < _MAX_OUTBOX
        )


class Crew:
    """Forks workers, talks to them, and notices when they end.

    Args:
        loop: The supervisor's.
        children: What forks.
        ledger: The open connections.
        on_ready: Called when a worker has become ready.
        on_room: Called when one that was heard from takes connections, be it again.
        on_ended: Called with a worker that has ended and its exit code (negative: a signal).
        on_pam: Called with what a worker wants asked of PAM, and the socket over which the helper
            gets the password and answers, which it owns. None: no worker may want that.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        ledger: Ledger,
        *,
        on_ready: Callable[[Member], None],
        on_room: Callable[[], None],
        on_ended: Callable[[Member, int], None],
        on_pam: Callable[[Errand, socket.socket], None] | None = None,
    ) -> None:
        self._loop = loop
        self._children = children
        self._ledger = ledger
        self._on_ready = on_ready
        self._on_room = on_room
        self._on_ended = on_ended
        self._on_pam = on_pam
        self._members: dict[int, Member] = {}
        self._indexes = itertools.count()
        # The one whose workers are given connections.
        self.generation = 0
        self._loop.after(_CHECK_S, self._check)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def ready(self) -> list[Member]:
        """Return the workers that may be given connections."""
        return [member for member in self.of(self.generation) if member.takes_connections]

    def of(self, generation: int) -> list[Member]:
        """Return the workers of one generation."""
        return [member for member in self if member.generation == generation]

    def find_starting(self, pid: int) -> Member | None:
        """Return the worker of that pid if it isn't ready yet: its call is the one to itself."""
        member = self._members.get(pid)
        return member if member is not None and not member.ready else None

    def fork(self, work: Callable[[Channel], int], generation: int = 0) -> Member:
        """Start a worker.

        Args:
            work: Runs in the forked child with its end of the channel; returns the exit code.
            generation: Which one it belongs to.

        Raises:
            OSError: The host has no room for it; nothing is left behind.
        """
        ours, theirs = make_channels()

        def run() -> int:
            ours.close()
            return work(theirs)

        member = Member(next(self._indexes), 0, ours, generation=generation)
        try:
            member.pid = self._children.fork(
                "keysided-worker", run, lambda code: self._note_ended(member, code)
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._members[member.pid] = member
        self._loop.watch(ours.fileno(), lambda: self._on_channel(member))
        return member

    def close_in_child(self) -> None:
        """Close what only the supervisor may have, in a process that was forked from it."""
        for member in self:
            member.channel.close()
            for _fields, luggage, _number in member.outbox:
                if luggage is not None:
                    luggage.close()

    def hand_over(self, arrival: Arrival, member: Member, caller: Caller) -> None:
        """Give a connection to a worker; its descriptors are closed here once it has them."""
        number = self._ledger.add(caller.uid, member.index)
        self._post(member, {"connection": number, "caller": caller.to_json()}, arrival, number)

    def attach_recorder(self, member: Member, end: socket.socket) -> None:
        """Give a worker its end of a pair whose other end a new recorder has; ours is closed."""
        self._post(member, {"audit": True}, RecorderEnd(end))

    def tell(self, fields: dict[str, Any], only: Member | None = None) -> None:
        """Send a packet to every worker, or to one."""
        for member in self if only is None else (only,):
            self._post(member, fields)

    def drain(self, grace_s: float) -> None:
        """Tell every worker to finish its calls within ``grace_s`` seconds and end."""
        for member in self:
            for arrival in self._dismiss(member, grace_s, succeeded=False):
                arrival.close()

    def retire(self, grace_s: float) -> list[Arrival]:
        """Tell the workers of other generations than the one that serves to finish and end.

        Returns:
            The connections that they had not been given yet; whose they are is up to the caller.
        """
        left: list[Arrival] = []
        for member in self:
            if member.generation != self.generation:
                left += self._dismiss(member, grace_s, succeeded=True)
        return left

    def _dismiss(self, member: Member, grace_s: float, *, succeeded: bool) -> list[Arrival]:
        """Have a worker drained; return the connections that it hasn't been given."""
        left = []
        kept: deque[tuple[dict[str, Any], Luggage | None, int]] = deque()
        for entry in member.outbox:
            if isinstance(entry[1], Arrival):
                left.append(entry[1])
                self._ledger.remove(entry[2])
            else:
                kept.append(entry)
        member.outbox = kept
        self._post(member, {"drain": grace_s, "succeeded": succeeded})
        self._flush(member)
        return left

    def kill(self, member: Member, why: str) -> None:
        """End a worker at once."""
        event(_log, logging.ERROR, "killing a worker", pid=member.pid, why=why)
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)

    def _note_ended(self, member: Member, code: int) -> None:
        del self._members[member.pid]
        self._loop.unwatch(member.channel.fileno())
        member.channel.close()
        self._empty_outbox(member)
        self._ledger.remove_worker(member.index)
        self._on_ended(member, code)

    # -- packets ----------------------------------------------------------------------------

    def _post(
        self,
        member: Member,
        fields: dict[str, Any],
        luggage: Luggage | None = None,
        number: int = 0,
    ) -> None:
        member.outbox.append((fields, luggage, number))
        if len(member.outbox) == 1:
            self._flush(member)

    def _flush(self, member: Member) -> None:
        try:
            while member.outbox:
                fields, luggage, _number = member.outbox[0]
                member.channel.send(fields, luggage.descriptors() if luggage is not None else ())
                member.outbox.popleft()
                if luggage is not None:
                    luggage.close()
        except BlockingIOError:
            pass
        except OSError as error:
            # It has just died, and SIGCHLD says the rest; or the packet can't be sent at all.
            event(_log, logging.WARNING, "worker took no packet", pid=member.pid, error=str(error))
            self._empty_outbox(member)
        self._loop.watch(
            member.channel.fileno(),
            lambda: self._on_channel(member),
            writable=bool(member.outbox),
        )

    def _empty_outbox(self, member: Member) -> None:
        while member.outbox:
            _fields, luggage, number = member.outbox.popleft()
            if luggage is not None:
                luggage.close()
            if number:
                self._ledger.remove(number)

    def _on_channel(self, member: Member) -> None:
        if member.outbox:
            self._flush(member)
        if self._receive(member) and member.takes_connections:
            self._on_room()

    def _receive(self, member: Member) -> bool:
        """Take one packet, if there is one; return whether the worker can still be talked to."""
        try:
            packet = member.channel.receive()
        except BlockingIOError:
            return True
        except HandoverError as error:
            self.kill(member, str(error))
            packet = None
        except OSError:
            packet = None
        if packet is None or not self._take(member, packet):
            self._loop.unwatch(member.channel.fileno())  # SIGCHLD says the rest
            return False
        return True

    def _take(self, member: Member, packet: Packet) -> bool:
        member.silent_checks = 0
        if self._on_pam is not None and self._take_pam(member, packet, self._on_pam):
            return True
        for descriptor in packet.descriptors:  # with nothing else has a worker any to give
            discard(descriptor)
        match {} if packet.descriptors else packet.fields:
            case {"closed": int(number)}:
                self._ledger.remove(number, worker=member.index)
            case {"alive": True}:
                pass
            case {"ready": True} if not member.ready:
                member.ready = True
                event(_log, logging.INFO, "worker ready", pid=member.pid)
                self._on_ready(member)
            case _:
                self.kill(member, "it said something unknown")
                return False
        return True

    def _take_pam(
        self, member: Member, packet: Packet, on_pam: Callable[[Errand, socket.socket], None]
    ) -> bool:
        """Pass on what a worker wants asked of PAM; return whether it is that.

        Passwords only of those who are connected to that worker: one that has been taken over can't
        try those of others. Who has gone away meanwhile gets no answer.
        """
        match packet.fields:
            case {
                "pam": int(),
                "uid": int(uid),
                "what": "authenticate" | "account" as purpose,
                **others,
            } if not others and type(uid) is int and 0 <= uid <= _MAX_UID:
                end = _as_stream(packet.descriptors)
                if end is not None:
                    if purpose == "account" or self._ledger.serves(uid, member.index):
                        on_pam(Errand(uid, purpose), end)
                    else:
                        end.close()
                    return True
        return False

    def _check(self) -> None:
        self._loop.after(_CHECK_S, self._check)
        for member in self:
            member.checks += 1
            if not member.ready:
                if member.checks == _START_CHECKS:
                    self.kill(member, "it has not become ready in time")
                continue
            member.silent_checks += 1
            if member.silent_checks == _UNRESPONSIVE_AFTER:
                event(_log, logging.ERROR, "worker does not respond", pid=member.pid)
            elif member.silent_checks == _KILL_AFTER:
                self.kill(member, "it does not respond")


def _as_stream(descriptors: tuple[int, ...]) -> socket.socket | None:
    """Return a socket that owns the one descriptor; None where it is no Unix stream."""
    if len(descriptors) != 1:
        return None
    try:
        end = socket.socket(fileno=descriptors[0])
    except OSError:
        return None
    if (end.family, end.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        end.detach()
        return None
    return end
