"""The supervisor: accepts, asks the kernel who is calling, enforces limits, keeps workers alive.

It holds no key and never imports gRPC, so that it can fork at any time. It is one plain loop over
``selectors``::

    STARTING ──all workers ready──► RUNNING ──SIGTERM/SIGINT──► DRAINING ──► exit

    a worker:  FORKED ──"ready"──► READY ──"drain"──► DRAINING ──exit──► reaped
               FORKED ──exit──► the start has failed: the supervisor exits with the same code
               READY ──exit──► a successor is forked, after a pause that grows while they keep dying

A connection that arrives before a worker is ready waits; the worker's own call to itself
(``worker.py``) goes to the worker that makes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import resource
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside_sidecar import notify
from keyside_sidecar.admission import Ledger
from keyside_sidecar.errors import StartupError
from keyside_sidecar.handover import Channel, make_channels
from keyside_sidecar.log import event
from keyside_sidecar.peer.credential import PeerCredential, read_credential
from keyside_sidecar.peer.pidfd import boot_time_s
from keyside_sidecar.worker import WorkerSettings, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.peer.listener import Listener

_log = logging.getLogger(__name__)

_ACCEPTS_PER_TURN: Final = 64
_ACCEPT_PAUSE_S: Final = 0.1
_RESTART_PAUSE_S: Final = 0.25
_MAX_RESTART_PAUSE_S: Final = 10.0
_STEADY_AFTER_S: Final = 30.0
_KILL_AFTER_S: Final = 3.0
_SUN_PATH_BYTES: Final = 107
# The caller's socket, both ends of the inner connection, and the pidfd.
_DESCRIPTORS_PER_CONNECTION: Final = 4
_DESCRIPTORS_BESIDE: Final = 128


@dataclass(frozen=True, slots=True)
class Account:
    """The account that workers run as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(slots=True)
class _Child:
    """A worker's process, as the supervisor knows it."""

    index: int
    pid: int
    channel: Channel
    directory: Path
    started_s: float
    ready: bool = False


@dataclass(slots=True)
class _Arrival:
    """An accepted connection on its way to a worker."""

    connection: socket.socket
    credential: PeerCredential
    pidfd: int | None

    def close(self) -> None:
        self.connection.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


@dataclass(slots=True)
class Supervisor:
    """Runs one sidecar on one listening socket.

    Args:
        config: The configuration.
        policy: The policy, with names resolved to ids.
        listener: The public socket.
        account: Whom workers run as; None to stay as the supervisor is.
    """

    config: Config
    policy: Policy
    listener: Listener
    account: Account | None
    _ledger: Ledger = field(init=False)
    _relevant_gids: frozenset[int] = field(init=False)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _children: dict[int, _Child] = field(default_factory=dict)
    _waiting: deque[_Arrival] = field(default_factory=deque)
    _timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _announced: bool = False
    _draining: bool = False
    _exit_code: int = 0
    _restart_pause_s: float = _RESTART_PAUSE_S
    _indexes: itertools.count[int] = field(default_factory=itertools.count)
    _refused_connections: int = 0
    _wakeups: tuple[socket.socket, socket.socket] | None = None

    def __post_init__(self) -> None:
        limits = self.config.sidecar
        self._relevant_gids = self.policy.gids
        self._ledger = Ledger(limits.max_connections, limits.max_connections_per_uid)

    def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises:
            StartupError: A private directory can't be made.
        """
        self._catch_signals()
        self._watch(self.listener.socket, self._accept)
        for _ in range(self.config.sidecar.workers):
            self._fork_worker()
        try:
            while self._children or not self._draining:
                self._turn()
        finally:
            self._release()
        return self._exit_code

    # -- the loop ---------------------------------------------------------------------------

    def _turn(self) -> None:
        now_s = time.monotonic()
        timeout_s = max(0.0, min((due for due, _ in self._timers), default=now_s + 60.0) - now_s)
        for key, _events in self._selector.select(timeout_s):
            # An earlier handler of this turn may have closed what this event is about.
            if self._selector.get_map().get(key.fd) is key:
                handler: Callable[[], None] = key.data
                handler()
        now_s = time.monotonic()
        due = [act for at, act in self._timers if at <= now_s]
        self._timers = [(at, act) for at, act in self._timers if at > now_s]
        for act in due:
            act()

    def _watch(self, source: socket.socket | Channel, handler: Callable[[], None]) -> None:
        self._selector.register(source.fileno(), selectors.EVENT_READ, handler)

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + delay_s, act))

    def _catch_signals(self) -> None:
        receiver, sender = socket.socketpair()
        receiver.setblocking(False)
        sender.setblocking(False)
        self._wakeups = receiver, sender
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, _ignore)  # the wake-up descriptor carries the number
        self._watch(receiver, self._on_signal)

    def _on_signal(self) -> None:
        assert self._wakeups is not None  # noqa: S101
        with contextlib.suppress(BlockingIOError):
            numbers = set(self._wakeups[0].recv(4096))
            if signal.SIGCHLD in numbers:
                self._reap()
            if numbers & {signal.SIGTERM, signal.SIGINT}:
                self._drain("told to stop")
            if signal.SIGHUP in numbers:
                event(_log, logging.WARNING, "SIGHUP ignored: restart to read the configuration")

    # -- connections ------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, _address = self.listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                event(_log, logging.ERROR, "can't accept", error=str(error))
                self._selector.unregister(self.listener.socket.fileno())
                self._after(_ACCEPT_PAUSE_S, self._resume_accepting)
                return
            self._admit(connection)

    def _resume_accepting(self) -> None:
        if not self._draining:
            self._watch(self.listener.socket, self._accept)

    def _admit(self, connection: socket.socket) -> None:
        process_mode = self.config.identity.membership == "process"
        accepted_s = boot_time_s()
        credential, pidfd = read_credential(
            connection, process_mode=process_mode, accepted_s=accepted_s
        )
        arrival = _Arrival(connection, credential, pidfd)
        own = next((c for c in self._children.values() if c.pid == credential.pid), None)
        if own is not None and not own.ready:
            self._hand_over(arrival, own)
        elif not self._ledger.has_room(credential.uid):
            arrival.close()
            self._note_refused_connection(credential.uid)
        elif self._ready_children():
            self._dispatch(arrival)
        elif len(self._waiting) < self.config.sidecar.max_connections:
            self._waiting.append(arrival)
        else:
            arrival.close()
            self._note_refused_connection(credential.uid)

    def _dispatch(self, arrival: _Arrival) -> None:
        ready = self._ready_children()
        index = self._ledger.least_loaded([child.index for child in ready])
        self._hand_over(arrival, next(child for child in ready if child.index == index))

    def _hand_over(self, arrival: _Arrival, child: _Child) -> None:
        credential = arrival.credential
        number = self._ledger.add(credential.uid, child.index)
        descriptors = [arrival.connection.fileno()]
        if arrival.pidfd is not None:
            descriptors.append(arrival.pidfd)
        fields = {
            "connection": number,
            "credential": self._without_idle_groups(credential).to_json(),
        }
        try:
            child.channel.send(fields, tuple(descriptors))
        except OSError as error:  # a worker that does not keep up, or has just died
            self._ledger.remove(number)
            event(_log, logging.WARNING, "worker took no connection", error=str(error))
        finally:
            arrival.close()

    def _without_idle_groups(self, credential: PeerCredential) -> PeerCredential:
        """Leave out groups that no policy names: thousands of them would not fit a packet."""
        if credential.groups is None:
            return credential
        groups = tuple(gid for gid in credential.groups if gid in self._relevant_gids)
        return dataclasses.replace(credential, groups=groups)

    def _note_refused_connection(self, uid: int) -> None:
        if not self._refused_connections:
            self._after(_STEADY_AFTER_S, self._write_refused_connections)
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

    def _ready_children(self) -> list[_Child]:
        return [child for child in self._children.values() if child.ready]

    def _fork_worker(self) -> None:
        if self._draining:
            return
        directory = self._make_private_directory()
        ours, theirs = make_channels()
        account = self.account
        settings = WorkerSettings(
            config=self.config,
            policy=self.policy,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            groups=account.groups if account else (),
            public_path=self.listener.path,
            directory=directory,
        )
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self._become_child(ours)
                code = run_worker(settings, theirs)
            finally:
                logging.shutdown()
                os._exit(code)
        theirs.close()
        child = _Child(next(self._indexes), pid, ours, directory, time.monotonic())
        self._children[pid] = child
        self._watch(ours, lambda: self._on_packet(child))

    def _become_child(self, ours: Channel) -> None:
        signal.set_wakeup_fd(-1)
        if self._wakeups is not None:
            for end in self._wakeups:
                end.close()
        self._selector.close()
        ours.close()
        self.listener.close_in_child()
        for child in self._children.values():
            child.channel.close()
        for arrival in self._waiting:
            arrival.close()

    def _make_private_directory(self) -> Path:
        prefix = _private_prefix(self.listener.path)
        for parent in _private_parents(self.listener.path):
            try:
                directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            except OSError:
                continue
            if len(os.fsencode(directory / "m")) > _SUN_PATH_BYTES:
                directory.rmdir()
                continue
            if self.account is not None:
                os.chown(directory, self.account.uid, self.account.gid)
            return directory
        raise StartupError(
            "no directory for the workers' private sockets can be made",
            remedy="let the sidecar's account write to the socket's directory, or set "
            "RuntimeDirectory= in its unit",
        )

    def _on_packet(self, child: _Child) -> None:
        try:
            packet = child.channel.receive()
        except BlockingIOError:
            return
        except OSError:
            packet = None
        if packet is None:
            self._selector.unregister(child.channel.fileno())
            return  # SIGCHLD says the rest
        if "closed" in packet.fields:
            self._ledger.remove(packet.fields["closed"])
        elif "ready" in packet.fields:
            self._on_ready(child)

    def _on_ready(self, child: _Child) -> None:
        child.ready = True
        event(_log, logging.INFO, "worker ready", pid=child.pid)
        while self._waiting:
            arrival = self._waiting.popleft()
            if self._ledger.has_room(arrival.credential.uid):
                self._dispatch(arrival)
            else:
                arrival.close()
        if len(self._ready_children()) == self.config.sidecar.workers and not self._announced:
            self._announced = True
            event(_log, logging.INFO, "serving", socket=self.listener.path)
            notify.sd_notify("READY=1")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._on_worker_ended(child, os.waitstatus_to_exitcode(status))

    def _on_worker_ended(self, child: _Child, code: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.channel.fileno())
        child.channel.close()
        shutil.rmtree(child.directory, ignore_errors=True)
        self._ledger.remove_worker(child.index)
        if self._draining:
            return
        if not self._announced and not child.ready:
            self._exit_code = code if code > 0 else 70
            self._drain("a worker could not start")
            return
        event(_log, logging.ERROR, "worker ended; starting another", pid=child.pid, code=code)
        if time.monotonic() - child.started_s > _STEADY_AFTER_S:
            self._restart_pause_s = _RESTART_PAUSE_S
        self._after(self._restart_pause_s, self._fork_worker)
        self._restart_pause_s = min(self._restart_pause_s * 2, _MAX_RESTART_PAUSE_S)

    # -- the end ----------------------------------------------------------------------------

    def _drain(self, why: str) -> None:
        if self._draining:
            return
        self._draining = True
        event(_log, logging.INFO, "stopping", why=why)
        notify.sd_notify("STOPPING=1")
        with contextlib.suppress(KeyError):
            self._selector.unregister(self.listener.socket.fileno())
        self.listener.close()
        for arrival in self._waiting:
            arrival.close()
        self._waiting.clear()
        grace_s = self.config.sidecar.drain_timeout_s
        for child in self._children.values():
            with contextlib.suppress(OSError):
                child.channel.send({"drain": grace_s})
        self._after(grace_s + _KILL_AFTER_S, self._kill_stragglers)

    def _kill_stragglers(self) -> None:
        for pid in self._children:
            event(_log, logging.ERROR, "worker does not end; killing it", pid=pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _release(self) -> None:
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            shutil.rmtree(child.directory, ignore_errors=True)
        signal.set_wakeup_fd(-1)
        self._selector.close()


def _private_parents(public_path: str) -> list[str]:
    parents = [str(Path(public_path).parent)]
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":", maxsplit=1)[0]
    if runtime:
        parents.append(runtime)
    return [*parents, tempfile.gettempdir()]


def _private_prefix(public_path: str) -> str:
    return f".{Path(public_path).name}~"


def remove_stale_directories(public_path: str) -> None:
    """Remove private directories that a killed sidecar left beside its socket.

    Call only while holding the socket's lock: those of a live sidecar look the same.
    """
    prefix = _private_prefix(public_path)
    for entry in Path(public_path).parent.iterdir():
        if entry.name.startswith(prefix):
            shutil.rmtree(entry, ignore_errors=True)


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
