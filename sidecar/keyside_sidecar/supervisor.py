"""The supervisor: accepts, asks the kernel who is calling, enforces limits, keeps workers alive.

It holds no key and never imports gRPC, so that it can fork at any time (``crew.py``). It is one
plain loop (``loop.py``)::

    STARTING ──all workers ready──► RUNNING ──SIGTERM/SIGINT──► DRAINING ──► exit
        └──a worker ends──► exit with its code

In RUNNING a worker that ends is replaced, after a pause that grows while they keep dying. A
connection that arrives while no worker takes any waits for a few seconds and is then closed: gRPC
tells that caller UNAVAILABLE, which is the truth. A starting worker's own call to itself
(``worker.py``) goes to the worker that makes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import resource
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside_sidecar import notify
from keyside_sidecar.admission import Ledger
from keyside_sidecar.crew import Arrival, Crew, Member
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event
from keyside_sidecar.loop import Loop
from keyside_sidecar.peer.credential import read_credential
from keyside_sidecar.peer.kernel import Kernel, Ucred
from keyside_sidecar.peer.pidfd import boot_time_s
from keyside_sidecar.worker import WorkerSettings, run_worker

if TYPE_CHECKING:
    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel
    from keyside_sidecar.peer.credential import PeerCredential
    from keyside_sidecar.peer.listener import Listener

_log = logging.getLogger(__name__)

_ACCEPTS_PER_TURN: Final = 64
_ACCEPT_PAUSE_S: Final = 0.1
_RESTART_PAUSE_S: Final = 0.25
_MAX_RESTART_PAUSE_S: Final = 10.0
_STEADY_AFTER_CHECKS: Final = 30
_KILL_AFTER_S: Final = 3.0
_WAIT_FOR_WORKER_S: Final = 5.0
_REPORT_EVERY_S: Final = 30.0
_EX_SOFTWARE: Final = 70
# In the ledger, of a connection that waits for a worker.
_NO_WORKER: Final = -1
# The caller's socket, both ends of the inner connection, and the pidfd.
_DESCRIPTORS_PER_CONNECTION: Final = 4
_DESCRIPTORS_BESIDE: Final = 128


@dataclass(frozen=True, slots=True)
class Account:
    """The account that workers run as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class Supervisor:
    """Runs one sidecar on one listening socket.

    Args:
        config: The configuration.
        policy: The policy, with names resolved to ids.
        listener: The public socket.
        account: Whom workers run as; None to stay as the supervisor is.
    """

    def __init__(
        self, config: Config, policy: Policy, listener: Listener, account: Account | None
    ) -> None:
        self._config = config
        self._policy_gids = policy.gids
        self._policy_uids = policy.uids
        self._listener = listener
        self._kernel = Kernel()
        limits = config.sidecar
        self._ledger = Ledger(limits.max_connections, limits.max_connections_per_uid)
        self._loop = Loop()
        self._crew = Crew(
            self._loop,
            self._ledger,
            work=self._work,
            on_ready=self._on_ready,
            on_room=self._dispatch_waiting,
            on_ended=self._on_worker_ended,
        )
        self._settings = WorkerSettings(
            config=config,
            policy=policy,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            groups=account.groups if account else (),
            public_path=listener.path,
        )
        self._waiting: deque[tuple[float, int, Arrival]] = deque()
        self._wakeups: tuple[socket.socket, socket.socket] | None = None
        self._announced = False
        self._draining = False
        self._exit_code = 0
        self._restart_pause_s = _RESTART_PAUSE_S
        self._refused_connections = 0

    def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises:
            OSError: The host has no room for the first workers.
        """
        self._catch_signals()
        self._loop.watch(self._listener.fileno(), self._accept)
        try:
            for _ in range(self._config.sidecar.workers):
                self._crew.fork()
            while self._crew or not self._draining:
                self._loop.turn()
        finally:
            for member in self._crew:
                self._crew.kill(member, "the supervisor ends")
            signal.set_wakeup_fd(-1)
            self._loop.close()
            self._listener.close()
            self._listener.release()
        return self._exit_code

    def _catch_signals(self) -> None:
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        self._wakeups = receiver, sender
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, _ignore)  # the wake-up descriptor carries the number
        self._loop.watch(receiver.fileno(), self._on_signal)

    def _on_signal(self) -> None:
        assert self._wakeups is not None  # noqa: S101
        with contextlib.suppress(BlockingIOError):
            numbers = set(self._wakeups[0].recv(4096))
            if signal.SIGCHLD in numbers:
                self._crew.reap()
            if numbers & {signal.SIGTERM, signal.SIGINT}:
                self._drain("told to stop")
            if signal.SIGHUP in numbers:
                event(_log, logging.WARNING, "SIGHUP ignored: restart to read the configuration")

    # -- connections ------------------------------------------------------------------------

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
                self._loop.after(_ACCEPT_PAUSE_S, self._resume_accepting)
                return
            self._admit(connection)

    def _resume_accepting(self) -> None:
        if not self._draining:
            self._loop.watch(self._listener.fileno(), self._accept)

    def _admit(self, connection: socket.socket) -> None:
        accepted_s = boot_time_s()
        try:
            peer = self._kernel.read_ucred(connection)
            starting = self._crew.find_starting(peer.pid)
            # Asked first, with one cheap call: who floods must not make us read /proc each time.
            if starting is None and not self._has_room(connection, peer):
                connection.close()
                self._note_refused_connection(peer.uid)
                return
        except OSError as error:
            connection.close()
            event(_log, logging.WARNING, "connection dropped", error=str(error))
            return
        process_mode = self._config.identity.membership == "process"
        credential, pidfd = read_credential(
            connection, process_mode=process_mode, accepted_s=accepted_s
        )
        arrival = Arrival(connection, self._without_idle_groups(credential), pidfd)
        if starting is not None:
            self._crew.hand_over(arrival, starting, arrival.credential)
        elif not self._dispatch(arrival):
            number = self._ledger.add(peer.uid, _NO_WORKER)
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
        self._crew.hand_over(arrival, member, arrival.credential)
        return True

    def _give_up_waiting(self) -> None:
        now_s = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now_s:
            _until_s, number, arrival = self._waiting.popleft()
            self._ledger.remove(number)
            arrival.close()

    def _without_idle_groups(self, credential: PeerCredential) -> PeerCredential:
        """Leave out groups that no policy names: thousands of them would not fit a packet."""
        if credential.groups is None:
            return credential
        groups = tuple(gid for gid in credential.groups if gid in self._policy_gids)
        return dataclasses.replace(credential, groups=groups)

    def _note_refused_connection(self, uid: int) -> None:
        if not self._refused_connections:
            self._loop.after(_REPORT_EVERY_S, self._write_refused_connections)
            event(
                _log,
                logging.WARNING,
                "connection refused: too many are open",
                uid=uid,
                open=self._ledger.count(),
                max_connections=self._ledger.max_connections,
                max_connections_per_uid=self._ledger.max_connections_per_uid,
            )
        self._refused_connections += 1

    def _write_refused_connections(self) -> None:
        event(_log, logging.WARNING, "connections refused", count=self._refused_connections)
        self._refused_connections = 0

    # -- workers ----------------------------------------------------------------------------

    def _work(self, channel: Channel) -> int:
        """Run a worker; in its process."""
        signal.set_wakeup_fd(-1)
        if self._wakeups is not None:
            for end in self._wakeups:
                end.close()
        self._listener.close_in_child()
        for _until_s, _number, arrival in self._waiting:
            arrival.close()
        return run_worker(self._settings, channel)

    def _dispatch_waiting(self) -> None:
        while self._waiting and self._crew.ready():
            _until_s, number, arrival = self._waiting.popleft()
            self._ledger.remove(number)
            self._dispatch(arrival)

    def _on_ready(self, _member: Member) -> None:
        self._dispatch_waiting()
        if not self._announced and len(self._crew.ready()) == self._config.sidecar.workers:
            self._announced = True
            event(_log, logging.INFO, "serving", socket=self._listener.path)
            notify.sd_notify("READY=1")

    def _on_worker_ended(self, member: Member, code: int) -> None:
        if self._draining:
            return
        if not self._announced and not member.ready:
            self._exit_code = code if code > 0 else _EX_SOFTWARE
            self._drain("a worker could not start")
            return
        event(_log, logging.ERROR, "worker ended; starting another", pid=member.pid, code=code)
        if member.checks > _STEADY_AFTER_CHECKS:
            self._restart_pause_s = _RESTART_PAUSE_S
        self._replace_later()

    def _replace_later(self) -> None:
        self._loop.after(self._restart_pause_s, self._replace)
        self._restart_pause_s = min(self._restart_pause_s * 2, _MAX_RESTART_PAUSE_S)

    def _replace(self) -> None:
        if self._draining:
            return
        try:
            self._crew.fork()
        except OSError as error:  # the healthy workers must not suffer for it
            event(_log, logging.ERROR, "can't start a worker", error=str(error))
            self._replace_later()

    # -- the end ----------------------------------------------------------------------------

    def _drain(self, why: str) -> None:
        if self._draining:
            return
        self._draining = True
        event(_log, logging.INFO, "stopping", why=why)
        notify.sd_notify("STOPPING=1")
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        while self._waiting:
            self._waiting.popleft()[2].close()
        grace_s = self._config.sidecar.drain_timeout_s
        self._crew.drain(grace_s)
        self._loop.after(grace_s + _KILL_AFTER_S, self._kill_stragglers)

    def _kill_stragglers(self) -> None:
        for member in self._crew:
            self._crew.kill(member, "it does not end")


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing; the wake-up descriptor has the number."""


def check_descriptor_limit(max_connections: int) -> None:
    """Raise the limit on open files to what the connections need.

    Raises:
        StartupError: The hard limit does not allow it.
    """
    needed = max_connections * _DESCRIPTORS_PER_CONNECTION + _DESCRIPTORS_BESIDE
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartupError(
            f"max_connections = {max_connections} needs {needed} open files",
            remedy="raise LimitNOFILE, or lower max_connections",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
