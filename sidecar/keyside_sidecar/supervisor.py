"""The supervisor: accepts connections, enforces limits, keeps workers and the recorder alive.

It holds no key and never imports gRPC, so that it can fork at any time (``crew.py``). It is one
plain loop (``loop.py``)::

    STARTING ──recorder ready, then all workers──► RUNNING ──SIGTERM/SIGINT──► DRAINING ──► exit
        └──one of them ends──► exit with its code      SIGHUP ──► a reload (``reload.py``)

In RUNNING a worker that ends is replaced, after a pause that grows while they keep dying, and so is
the recorder (``keeper.py``); a worker is started only while there is a recorder. In DRAINING the
workers end first, so that their last records are written. A reload starts a generation of workers
beside the one that serves; when all of them are ready, connections go to them only, and the former
ones are drained. People's passwords are checked in
processes of their own (``pam/desk.py``). A connection that arrives while no worker takes any waits
for a few seconds (``reception.py``) and is then closed: gRPC tells that caller UNAVAILABLE, which
is the truth. That the socket's file stays in its place is watched over in ``socket_watch.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import signal
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar import notify
from keyside_sidecar.admission import Ledger
from keyside_sidecar.audit.recorder import RecorderSettings, run_recorder
from keyside_sidecar.children import Children
from keyside_sidecar.crew import Crew, Member
from keyside_sidecar.errors import StartupError
from keyside_sidecar.keeper import Keeper
from keyside_sidecar.log import event, set_up_logging
from keyside_sidecar.loop import Loop
from keyside_sidecar.pam.desk import Desk
from keyside_sidecar.pam.transaction import load_pam
from keyside_sidecar.reception import Reception
from keyside_sidecar.reload import Reload, Stage
from keyside_sidecar.socket_watch import SocketWatch
from keyside_sidecar.worker import WorkerSettings, run_worker

if TYPE_CHECKING:
    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.candidate import Candidate
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel
    from keyside_sidecar.pam.errand import Errand
    from keyside_sidecar.peer.listener import Listener
    from keyside_sidecar.serving import Notice

_log = logging.getLogger(__name__)

_RESTART_PAUSE_S: Final = 0.25
_MAX_RESTART_PAUSE_S: Final = 10.0
_STEADY_AFTER_CHECKS: Final = 30
# Beyond drain_timeout: what a person has begun settles, and the last records are written.
_KILL_AFTER_S: Final = 8.0
_EX_SOFTWARE: Final = 70


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
        account: Whom workers and the recorder run as; None to stay as the supervisor is.
        accept_rollback: Whether workers take a store that is older than its audit log.

    Raises:
        StartupError: People are to be authenticated, and the host has no PAM.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        listener: Listener,
        account: Account | None,
        *,
        accept_rollback: bool = False,
    ) -> None:
        self._config = config
        self._listener = listener
        limits = config.sidecar
        self._ledger = Ledger(limits.max_connections, limits.max_connections_per_uid)
        self._loop = Loop()
        self._children = Children()
        self._desk: Desk | None = None
        self._set_up_desk(config)
        self._crew = Crew(
            self._loop,
            self._children,
            self._ledger,
            on_ready=self._on_ready,
            on_room=self._on_room,
            on_ended=self._on_worker_ended,
            on_pam=self._on_pam,
        )
        self._keeper = Keeper(
            self._loop,
            self._children,
            work=self._record,
            on_ready=self._on_recorder_ready,
            on_ended=self._on_recorder_ended,
        )
        self._reception = Reception(
            self._loop,
            listener,
            self._crew,
            self._ledger,
            policy,
            process_mode=config.identity.membership == "process",
            record=self._keeper.note,
        )
        self._socket_watch = SocketWatch(
            self._loop,
            listener,
            on_bound=self._reception.move,
            on_notice=partial(self._show, "socket"),
            record=self._keeper.note,
        )
        self._settings = WorkerSettings(
            config=config,
            policy=policy,
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            groups=account.groups if account else (),
            public_path=listener.path,
            accept_rollback=accept_rollback,
            started_at=datetime.now(UTC),
        )
        self._reload = Reload(
            self._loop,
            self._children,
            self._keeper,
            running=lambda: self._config,
            close_in_child=self._close_in_child,
            on_accepted=self._start_generation,
            on_ended=self._on_reload_ended,
        )
        self._reload_wanted = self._recorder_outdated = False
        # The settings of the generation that a reload starts, until it serves.
        self._next: WorkerSettings | None = None
        self._next_generation = 0
        self._generations = itertools.count(1)
        # What workers are to say of it, by who noticed.
        self._notices: dict[str, Notice] = {}
        self._workers_wanted = config.sidecar.workers
        self._wakeups: tuple[socket.socket, socket.socket] | None = None
        self._announced = False
        self._draining = False
        self._exit_code = 0
        self._restart_pause_s = _RESTART_PAUSE_S

    def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises:
            OSError: The host has no room for the first processes.
        """
        self._catch_signals()
        self._reception.open()
        self._socket_watch.begin()
        try:
            self._keeper.start()
            while self._crew or self._keeper.running or not self._draining:
                self._loop.turn()
                if self._draining and not self._crew:
                    self._keeper.stop()
        finally:
            for member in self._crew:
                self._crew.kill(member, "the supervisor ends")
            self._keeper.close()
            if self._desk is not None:
                self._desk.close()
            signal.set_wakeup_fd(-1)
            self._reception.close()
            self._loop.close()
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def _on_signal(self) -> None:
        assert self._wakeups is not None  # noqa: S101
        with contextlib.suppress(BlockingIOError):
            numbers = set(self._wakeups[0].recv(4096))
            if signal.SIGCHLD in numbers:
                self._children.reap()
            if numbers & {signal.SIGTERM, signal.SIGINT}:
                self._drain("told to stop")
            if signal.SIGHUP in numbers:
                self._reload_wanted = True
                self._reload_if_wanted()

    # -- workers ----------------------------------------------------------------------------

    def _close_in_child(self) -> None:
        """Let go of everything that is the supervisor's, in a process that is to live on."""
        signal.set_wakeup_fd(-1)
        if self._wakeups is not None:
            for end in self._wakeups:
                end.close()
        self._loop.close()
        self._crew.close_in_child()
        self._keeper.close_in_child()
        self._reception.close_in_child()
        self._reload.close_in_child()

    def _fork_worker(self) -> None:
        """Start a worker, and introduce it to the recorder.

        Raises:
            OSError: The host has no room for it; nothing is left behind.
        """
        recorders, workers = _make_recorder_pair()
        settings = self._next or self._settings

        def work(channel: Channel) -> int:
            self._close_in_child()
            recorders.close()
            set_up_logging(settings.config.sidecar.log_level)
            return run_worker(settings, channel, workers)

        try:
            serving = self._crew.generation
            member = self._crew.fork(work, serving if self._next is None else self._next_generation)
        except OSError:
            recorders.close()
            raise
        finally:
            workers.close()
        self._keeper.introduce(member.pid, recorders)
        if self._notices:
            self._crew.tell({"notices": list(self._notices.values())}, member)

    def _fork_wanted(self) -> None:
        while self._workers_wanted and self._keeper.ready and not self._draining:
            self._fork_worker()
            self._workers_wanted -= 1

    def _on_room(self) -> None:
        self._reception.dispatch_waiting()

    def _on_ready(self, member: Member) -> None:
        self._reception.dispatch_waiting()
        if self._next is not None and member.generation == self._next_generation:
            ready = [each for each in self._crew.of(member.generation) if each.ready]
            if len(ready) == self._next.config.sidecar.workers:
                self._switch(self._next)
            return
        if member.generation == self._crew.generation:
            self._crew.tell({"serve": True}, member)
        if not self._announced and len(self._crew.ready()) == self._config.sidecar.workers:
            self._announced = True
            # Accepted once: a worker that is started later takes no store that is put back later.
            self._settings = dataclasses.replace(self._settings, accept_rollback=False)
            event(_log, logging.INFO, "serving", socket=self._listener.path)
            notify.sd_notify("READY=1")
            self._reload_if_wanted()

    def _on_worker_ended(self, member: Member, code: int) -> None:
        starting = self._next is not None and member.generation == self._next_generation
        retired = member.generation != self._crew.generation and not starting
        if code != 0 or not (self._draining or retired):
            facts = {"event": "worker.ended", "outcome": "failed", "worker": member.pid}
            self._keeper.note({**facts, "details": {"code": code}})
        if self._draining:
            return
        if not self._announced and not member.ready:
            self._exit_code = code if code > 0 else _EX_SOFTWARE
            self._drain("a worker could not start")
            return
        if retired:
            self._settle_reload()
            return
        if starting:
            why = f"a worker could not start (exit code {code})"
            self._reload.fail("WORKERS_NOT_STARTED", why, "see keysided's log, and reload again")
            return
        event(_log, logging.ERROR, "worker ended; starting another", pid=member.pid, code=code)
        if member.checks > _STEADY_AFTER_CHECKS:
            self._restart_pause_s = _RESTART_PAUSE_S
        self._replace_later()

    def _replace_later(self) -> None:
        self._loop.after(self._restart_pause_s, self._replace)
        self._restart_pause_s = min(self._restart_pause_s * 2, _MAX_RESTART_PAUSE_S)

    def _replace(self) -> None:
        if self._next is None:  # otherwise a generation is about to serve in its place
            self._want_workers()
        self._fork_replacements()

    def _want_workers(self) -> None:
        """Have as many started as the generation that serves lacks."""
        there = len(self._crew.of(self._crew.generation))
        self._workers_wanted = max(0, self._settings.config.sidecar.workers - there)

    def _fork_replacements(self) -> None:
        try:
            self._fork_wanted()
        except OSError as error:  # the healthy workers must not suffer for it
            event(_log, logging.ERROR, "can't start a worker", error=str(error))
            self._loop.after(self._restart_pause_s, self._fork_replacements)

    # -- reload -----------------------------------------------------------------------------

    def _reload_if_wanted(self) -> None:
        """Begin a reload, unless one is under way, or workers of the one before still drain."""
        idle = self._reload.stage is Stage.IDLE and self._is_settled() and self._announced
        if self._reload_wanted and idle and not self._draining:
            self._reload_wanted = False
            self._reload.begin()

    def _start_generation(self, candidate: Candidate) -> None:
        """Start workers under another configuration, beside those that serve."""
        config = candidate.config
        try:
            if config.elevation is not None:
                load_pam()
        except StartupError as error:
            self._reload.fail("CONFIG_INVALID", str(error), error.remedy)
            return
        self._next = dataclasses.replace(self._settings, config=config, policy=candidate.policy)
        self._next_generation = next(self._generations)
        self._workers_wanted = config.sidecar.workers
        self._fork_replacements()

    def _switch(self, settings: WorkerSettings) -> None:
        """Have the new generation serve, and the former one drained."""
        before, config = self._config, settings.config
        self._settings, self._config, self._next = settings, config, None
        self._crew.generation = self._next_generation
        self._set_up_desk(config)
        for member in self._crew.of(self._crew.generation):
            self._crew.tell({"serve": True}, member)
        limits = config.sidecar
        self._ledger.max_connections = limits.max_connections
        self._ledger.max_connections_per_uid = limits.max_connections_per_uid
        self._reception.adopt(settings.policy, process_mode=config.identity.membership == "process")
        set_up_logging(limits.log_level)
        for warning in config.warnings:
            event(_log, logging.WARNING, "configuration", warning=warning)
        for arrival in self._crew.retire(limits.drain_timeout_s):
            self._reception.place(arrival)
        self._reception.dispatch_waiting()
        self._loop.after(limits.drain_timeout_s + _KILL_AFTER_S, self._kill_retired)
        self._reload.finish()
        if (before.audit, _find_notify(before)) != (config.audit, _find_notify(config)):
            self._recorder_outdated = True
        self._settle_reload()

    def _settle_reload(self) -> None:
        """Do what waits until all former workers have ended."""
        if self._recorder_outdated and self._is_settled() and not self._draining:
            self._recorder_outdated = False
            self._keeper.replace()  # not before: what the former have to say last comes first
        self._reload_if_wanted()

    def _is_settled(self) -> bool:
        return all(member.generation == self._crew.generation for member in self._crew)

    def _on_reload_ended(self, notice: Notice | None) -> None:
        if self._next is not None:  # it failed: away with those that were started for it
            self._next = None
            for member in self._crew.of(self._next_generation):
                self._crew.kill(member, "the reload failed")
            self._want_workers()
            self._fork_replacements()
        self._show("reload", notice)
        self._reload_if_wanted()

    def _show(self, source: str, notice: Notice | None) -> None:
        """Have workers say something, in place of what they said of this before."""
        if notice is None:
            self._notices.pop(source, None)
        else:
            before = self._notices.get(source)
            is_same = before is not None and before[:2] == notice[:2]
            since_s = before.since_s if is_same and before else datetime.now(UTC).timestamp()
            self._notices[source] = notice._replace(since_s=since_s)
        self._crew.tell({"notices": list(self._notices.values())})

    def _kill_retired(self) -> None:
        for member in self._crew:
            if member.generation < self._crew.generation:
                self._crew.kill(member, "it does not end")

    def _set_up_desk(self, config: Config) -> None:
        """Have people's passwords checked as a configuration says.

        Raises:
            StartupError: The host has no PAM.
        """
        elevation = config.elevation
        if elevation is None:
            return
        if self._desk is None:
            self._desk = Desk(
                self._loop,
                self._children,
                service=elevation.pam_service,
                timeout_s=elevation.pam_timeout_s,
            )
        else:
            self._desk.adopt(service=elevation.pam_service, timeout_s=elevation.pam_timeout_s)

    def _on_pam(self, errand: Errand, end: socket.socket) -> None:
        if self._desk is None:
            end.close()
        else:
            self._desk.take(errand, end)

    # -- the recorder -----------------------------------------------------------------------

    def _record(self, control: Channel) -> int:
        """Run the recorder; in its process."""
        self._close_in_child()
        settings = self._settings
        return run_recorder(
            RecorderSettings(self._config, settings.uid, settings.gid, settings.groups), control
        )

    def _on_recorder_ready(self) -> None:
        try:
            for member in self._crew:  # those of a recorder before this one
                recorders, workers = _make_recorder_pair()
                self._crew.attach_recorder(member, workers)
                self._keeper.introduce(member.pid, recorders)
        except OSError as error:
            event(_log, logging.ERROR, "can't introduce the recorder", error=str(error))
            self._loop.after(_RESTART_PAUSE_S, self._on_recorder_ready)
        self._fork_replacements()

    def _on_recorder_ended(self, code: int) -> None:
        stopped = self._draining and not self._crew
        if stopped and code == 0:
            return
        event(_log, logging.ERROR, "the recorder ended", code=code, last_words=stopped)
        if stopped or not self._announced:
            self._exit_code = self._exit_code or (code if code > 0 else _EX_SOFTWARE)
            self._drain("the recorder could not go on")
        else:
            self._keeper.start_later()

    # -- the end ----------------------------------------------------------------------------

    def _drain(self, why: str) -> None:
        if self._draining:
            return
        self._draining = True
        self._reload.cancel()
        self._socket_watch.end()
        self._next = None
        event(_log, logging.INFO, "stopping", why=why)
        notify.sd_notify("STOPPING=1")
        self._reception.close()
        grace_s = self._config.sidecar.drain_timeout_s
        self._crew.drain(grace_s)
        self._loop.after(grace_s + _KILL_AFTER_S, self._kill_stragglers)

    def _kill_stragglers(self) -> None:
        for member in self._crew:
            self._crew.kill(member, "it does not end")


def _make_recorder_pair() -> tuple[socket.socket, socket.socket]:
    """Return the recorder's end and a worker's."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _find_notify(config: Config) -> tuple[str, ...]:
    return () if config.elevation is None else config.elevation.notify


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing; the wake-up descriptor has the number."""
