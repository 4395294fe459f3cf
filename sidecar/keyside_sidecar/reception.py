"""The public socket's connections, until a worker has them.

    accept ─► is there room? ─► ask the kernel who it is ─► hand it to the least loaded worker
                  └─► closed, counted                         └─► none takes any: 5 s ─► closed

A connection of a starting worker's own call to itself (``worker.py``) goes to that worker.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from keyside_sidecar.crew import Arrival, Crew
from keyside_sidecar.log import event
from keyside_sidecar.peer.credential import read_credential
from keyside_sidecar.peer.kernel import Kernel, Ucred
from keyside_sidecar.peer.pidfd import boot_time_s

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.admission import Ledger
    from keyside_sidecar.loop import Loop
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.listener import Listener

_log = logging.getLogger(__name__)

_ACCEPTS_PER_TURN: Final = 64
_ACCEPT_PAUSE_S: Final = 0.1
_WAIT_FOR_WORKER_S: Final = 5.0
# Between reports of refused connections: doubled each time, until there was a quiet one.
_REPORT_AFTER_S: Final = 30.0
_MAX_REPORT_AFTER_S: Final = 600.0
# What is refused of further uids is counted together.
_REPORTED_UIDS: Final = 16
# In the ledger, of a connection that waits for a worker.
_NO_WORKER: Final = -1


class Reception:
    """Accepts connections and finds workers for them.

    Args:
        loop: The supervisor's.
        listener: The public socket; closed with this.
        crew: The workers.
        ledger: The open connections.
        policy: Who may be allowed something: room is kept for them.
        process_mode: Callers' groups are those of their processes.
        record: Takes a record for the audit log.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        crew: Crew,
        ledger: Ledger,
        policy: Policy,
        *,
        process_mode: bool,
        record: Callable[[dict[str, object]], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._crew = crew
        self._ledger = ledger
        self._policy_gids = policy.gids
        self._policy_uids = policy.uids
        self._process_mode = process_mode
        self._record = record
        self._kernel = Kernel()
        self._waiting: deque[tuple[float, int, Arrival]] = deque()
        self._refused: Counter[int] = Counter()
        self._report_after_s = _REPORT_AFTER_S
        self._is_report_due = False
        self._closed = False

    def adopt(self, policy: Policy, *, process_mode: bool) -> None:
        """Go on under another policy; the arguments are those of the class."""
        self._policy_gids = policy.gids
        self._policy_uids = policy.uids
        self._process_mode = process_mode

    def open(self) -> None:
        """Begin to accept."""
        if not self._closed:
            self._loop.watch(self._listener.fileno(), self._accept)

    def move(self, former: socket.socket) -> None:
        """Go on with the listener's new socket; take what has arrived at the former, and close it.

        Args:
            former: The listener's socket until now.
        """
        self._loop.unwatch(former.fileno())
        self.open()
        try:
            while True:
                self._admit(former.accept()[0])
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                event(_log, logging.ERROR, "can't accept", error=str(error))
        former.close()

    def close(self) -> None:
        """Accept nothing more, and close what still waits; the socket's file stays."""
        if self._closed:
            return
        self._closed = True
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        while self._waiting:
            self._waiting.popleft()[2].close()
        if self._refused:
            self._report_refused()

    def close_in_child(self) -> None:
        """Close what only the supervisor may have, in a process that was forked from it."""
        self._listener.close_in_child()
        for _until_s, _number, arrival in self._waiting:
            arrival.close()

    def dispatch_waiting(self) -> None:
        """Find workers for those that wait, now that one may take them."""
        while self._waiting and self._crew.ready():
            _until_s, number, arrival = self._waiting.popleft()
            self._ledger.remove(number)
            self._dispatch(arrival)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, _address = self._listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                event(_log, logging.ERROR, "can't accept", error=str(error))
                self._loop.unwatch(self._listener.fileno())
                self._loop.after(_ACCEPT_PAUSE_S, self.open)
                return
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        accepted_s = boot_time_s()
        try:
            peer = self._kernel.read_ucred(connection)
            starting = self._crew.find_starting(peer.pid)
            # Asked first, with one cheap call: who floods must not make us read /proc each time.
            if starting is None and not self._has_room(connection, peer):
                connection.close()
                self._note_refused(peer.uid)
                return
        except OSError as error:
            connection.close()
            event(_log, logging.WARNING, "connection dropped", error=str(error))
            return
        caller, pidfd = read_credential(
            connection, process_mode=self._process_mode, accepted_s=accepted_s
        )
        arrival = Arrival(connection, self._without_idle_groups(caller), pidfd)
        if starting is not None:
            self._crew.hand_over(arrival, starting, arrival.caller)
        else:
            self.place(arrival)

    def place(self, arrival: Arrival) -> None:
        """Find a worker for a connection, now or within a few seconds."""
        if not self._dispatch(arrival):
            number = self._ledger.add(arrival.caller.uid, _NO_WORKER)
            self._waiting.append((time.monotonic() + _WAIT_FOR_WORKER_S, number, arrival))
            self._loop.after(_WAIT_FOR_WORKER_S, self._give_up_waiting)

    def _has_room(self, connection: socket.socket, peer: Ucred) -> bool:
        """Return whether a connection may be taken.

        A part of the room is kept for callers who, by what the kernel captured, may be allowed
        something. That decides about room, and about nothing else.
        """
        if self._ledger.has_room(peer.uid, insider=True) and (
            peer.uid in self._policy_uids
            or peer.gid in self._policy_gids
            or not self._policy_gids.isdisjoint(self._kernel.read_groups(connection))
        ):
            return True
        return self._ledger.has_room(peer.uid, insider=False)

    def _dispatch(self, arrival: Arrival) -> bool:
        ready = self._crew.ready()
        if not ready:
            return False
        index = self._ledger.least_loaded([member.index for member in ready])
        member = next(member for member in ready if member.index == index)
        self._crew.hand_over(arrival, member, arrival.caller)
        return True

    def _give_up_waiting(self) -> None:
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            _until_s, number, arrival = self._waiting.popleft()
            self._ledger.remove(number)
            arrival.close()

    def _without_idle_groups(self, caller: Caller) -> Caller:
        """Leave out groups that no policy names: thousands of them would not fit a packet."""
        if caller.process_gids is None:
            return caller
        gids = tuple(gid for gid in caller.process_gids if gid in self._policy_gids)
        return dataclasses.replace(caller, process_gids=gids)

    def _note_refused(self, uid: int) -> None:
        if not self._is_report_due:
            self._is_report_due = True
            self._loop.after(self._report_after_s, self._report_refused)
            event(
                _log,
                logging.WARNING,
                "connection refused: too many are open",
                uid=uid,
                open=self._ledger.count(),
                max_connections=self._ledger.max_connections,
                max_connections_per_uid=self._ledger.max_connections_per_uid,
            )
        self._refused[uid] += 1

    def _report_refused(self) -> None:
        counts, self._refused = self._refused, Counter()
        if self._closed or not counts:  # a last report was made; or it was quiet
            self._is_report_due = False
            self._report_after_s = _REPORT_AFTER_S
        else:
            self._report_after_s = min(self._report_after_s * 2, _MAX_REPORT_AFTER_S)
            self._loop.after(self._report_after_s, self._report_refused)
        if not counts:
            return
        event(_log, logging.WARNING, "connections refused", count=counts.total())
        facts = {"event": "connection.refused", "outcome": "refused", "reason": "TOO_MANY_OPEN"}
        for uid, count in counts.most_common(_REPORTED_UIDS):
            self._record({**facts, "caller": {"uid": uid}, "count": count})
            del counts[uid]
        if counts:
            self._record({**facts, "count": counts.total()})
