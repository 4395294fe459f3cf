"""The workers, as the supervisor keeps them.

    FORKED ──"ready"──► READY ──silent for 5 s──► UNRESPONSIVE ──hears again──► READY
       │                  │                            └──silent for 20 s──► killed
       └──exit or 60 s──► lost                   "drain" ──► exit ──► reaped

A READY worker says that it is alive each second. Silence is counted in checks that the supervisor
made, not in seconds: a host that was paused must not cost all its workers. An UNRESPONSIVE one is
given no connections. A worker is not trusted: it runs as another account, and whatever it says that
isn't one of the few known packets ends it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.handover import Channel, HandoverError, make_channels
from keyside_sidecar.log import event

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from keyside_sidecar.admission import Ledger
    from keyside_sidecar.loop import Loop
    from keyside_sidecar.peer.credential import PeerCredential

_log = logging.getLogger(__name__)

_CHECK_S: Final = 1.0
_UNRESPONSIVE_AFTER: Final = 5
_KILL_AFTER: Final = 20
_START_CHECKS: Final = 60
_MAX_OUTBOX: Final = 64
_EX_SOFTWARE: Final = 70


@dataclass(slots=True, eq=False)
class Arrival:
    """An accepted connection on its way to a worker."""

    connection: socket.socket
    credential: PeerCredential
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


@dataclass(slots=True, eq=False)
class Member:
    """One worker's process.

    ``outbox`` holds what its channel has no room for yet, oldest first: a worker that is busy for
    a moment must not cost anybody a connection. Each entry is a packet, and the arrival and the
    ledger's number that go with it.
    """

    index: int
    pid: int
    channel: Channel
    ready: bool = False
    silent_checks: int = 0
    checks: int = 0
    outbox: deque[tuple[dict[str, Any], Arrival | None, int]] = field(default_factory=deque)

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
        ledger: The open connections.
        work: Runs in the forked child with its end of the channel; returns the exit code.
        on_ready: Called when a worker has become ready.
        on_room: Called when one that was heard from takes connections, be it again.
        on_ended: Called with a worker that has ended and its exit code (negative: a signal).
    """

    def __init__(
        self,
        loop: Loop,
        ledger: Ledger,
        *,
        work: Callable[[Channel], int],
        on_ready: Callable[[Member], None],
        on_room: Callable[[], None],
        on_ended: Callable[[Member, int], None],
    ) -> None:
        self._loop = loop
        self._ledger = ledger
        self._work = work
        self._on_ready = on_ready
        self._on_room = on_room
        self._on_ended = on_ended
        self._members: dict[int, Member] = {}
        self._indexes = itertools.count()
        self._loop.after(_CHECK_S, self._check)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def ready(self) -> list[Member]:
        """Return the workers that may be given connections."""
        return [member for member in self if member.takes_connections]

    def find_starting(self, pid: int) -> Member | None:
        """Return the worker of that pid if it isn't ready yet: its call is the one to itself."""
        member = self._members.get(pid)
        return member if member is not None and not member.ready else None

    def fork(self) -> None:
        """Start a worker.

        Raises:
            OSError: The host has no room for it; nothing is left behind.
        """
        ours, theirs = make_channels()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            code = _EX_SOFTWARE
            try:
                self._close_in_child(ours)
                code = self._work(theirs)
            finally:
                logging.shutdown()
                os._exit(code)
        theirs.close()
        member = Member(next(self._indexes), pid, ours)
        self._members[pid] = member
        self._loop.watch(ours.fileno(), lambda: self._on_channel(member))

    def _close_in_child(self, ours: Channel) -> None:
        self._loop.close()
        ours.close()
        for member in self:
            member.channel.close()
            for _fields, arrival, _number in member.outbox:
                if arrival is not None:
                    arrival.close()

    def hand_over(self, arrival: Arrival, member: Member, credential: PeerCredential) -> None:
        """Give a connection to a worker; its descriptors are closed here once it has them."""
        number = self._ledger.add(credential.uid, member.index)
        self._post(
            member, {"connection": number, "credential": credential.to_json()}, arrival, number
        )

    def drain(self, grace_s: float) -> None:
        """Tell every worker to finish its calls within ``grace_s`` seconds and end."""
        for member in self:
            self._empty_outbox(member)
            self._post(member, {"drain": grace_s})

    def kill(self, member: Member, why: str) -> None:
        """End a worker at once."""
        event(_log, logging.ERROR, "killing a worker", pid=member.pid, why=why)
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take note of the workers that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            member = self._members.pop(pid, None)
            if member is not None:
                self._loop.unwatch(member.channel.fileno())
                member.channel.close()
                self._empty_outbox(member)
                self._ledger.remove_worker(member.index)
                self._on_ended(member, os.waitstatus_to_exitcode(status))

    # -- packets ----------------------------------------------------------------------------

    def _post(
        self,
        member: Member,
        fields: dict[str, Any],
        arrival: Arrival | None = None,
        number: int = 0,
    ) -> None:
        member.outbox.append((fields, arrival, number))
        if len(member.outbox) == 1:
            self._flush(member)

    def _flush(self, member: Member) -> None:
        try:
            while member.outbox:
                fields, arrival, _number = member.outbox[0]
                member.channel.send(fields, arrival.descriptors() if arrival is not None else ())
                member.outbox.popleft()
                if arrival is not None:
                    arrival.close()
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
            _fields, arrival, number = member.outbox.popleft()
            if arrival is not None:
                arrival.close()
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
        if packet is None or not self._take(member, packet.fields):
            self._loop.unwatch(member.channel.fileno())  # SIGCHLD says the rest
            return False
        for descriptor in packet.descriptors:  # a worker has none to give
            os.close(descriptor)
        return True

    def _take(self, member: Member, fields: dict[str, Any]) -> bool:
        member.silent_checks = 0
        match fields:
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
