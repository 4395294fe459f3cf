"""One worker: a whole sidecar, fed connections by the supervisor.

Its life::

    load (imports) ─► drop privileges ─► open root key and store ─► start inner servers
      ─► prove the caller mapping through the public socket ─► tell the supervisor it is ready
      ─► serve until told to drain, or until the supervisor is gone ─► exit

All shared state is in the store; a worker that dies takes its connections with it and is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside.names import KeyName
from keyside_sidecar import hardening
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import (
    CustodianUnavailable,
    SidecarError,
    StartupError,
    StoreUnavailable,
)
from keyside_sidecar.handover import HandoverError
from keyside_sidecar.log import event
from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.peer.credential import PeerCredential
from keyside_sidecar.peer.private_directory import PrivateDirectory
from keyside_sidecar.serving import Phase, Problem, ServingBoard

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel, Packet
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.membership import Membership

_log = logging.getLogger(__name__)

_EX_UNAVAILABLE: Final = 69
_EXIT_FAILED: Final = 70
_EX_CONFIG: Final = 78
_SELF_CALL_TIMEOUT_S: Final = 10.0
_PULSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is given when it is forked.

    Args:
        config: The configuration.
        policy: The policy, with names resolved to ids.
        uid: The account to run as; None to stay as it is.
        gid: That account's group.
        groups: That account's supplementary groups.
        public_path: The public socket's path, for the start-up self-call.
    """

    config: Config
    policy: Policy
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    public_path: str


def run_worker(settings: WorkerSettings, channel: Channel) -> int:
    """Run a worker to its end, in a process of its own.

    Returns:
        The process's exit code: 0 after draining.
    """
    try:
        # Every import happens here: gRPC must not be imported before the fork, and after privileges
        # are dropped an interpreter under a private directory might not be readable any more.
        import uvloop

        from keyside_sidecar import assembly

        supervisor_pid = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # The supervisor decides; a ^C reaches the whole group, and so us as well.
            signal.signal(number, signal.SIG_IGN)
        if settings.uid is not None and settings.gid is not None:
            hardening.drop_privileges(settings.uid, settings.gid, settings.groups)
        hardening.harden_process(no_new_privs=True)
        # Also where the event loop hangs: without its supervisor a worker holds keys for nobody.
        hardening.set_death_signal(supervisor_pid, signal.SIGKILL)
        memory = hardening.lock_memory()
        directory = PrivateDirectory.make(settings.public_path)
        worker = Worker(settings, channel, assembly.Parts, directory.path)
        if not memory.locked:
            worker.board.add_standing(
                "MEMORY_NOT_LOCKED",
                f"key material may be written to swap: {memory.why}",
                "set LimitMEMLOCK=infinity in the service's unit, or use encrypted swap",
            )
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(worker.run())
        finally:
            directory.remove()
    except StartupError as error:
        event(_log, logging.ERROR, "worker can't start", error=str(error), what_to_do=error.remedy)
        return error.exit_code
    except SidecarError as error:
        remedy = getattr(error, "remedy", "")
        event(_log, logging.ERROR, "worker can't start", error=str(error), what_to_do=remedy)
        is_away = isinstance(error, (StoreUnavailable, CustodianUnavailable))
        return _EX_UNAVAILABLE if is_away else _EX_CONFIG
    except Exception:  # noqa: BLE001  (the supervisor decides what follows)
        _log.exception("worker failed")
        return _EXIT_FAILED


class Worker:
    """Takes connections from the supervisor and relays them to its inner servers."""

    def __init__(
        self, settings: WorkerSettings, channel: Channel, parts: Any, directory: Path
    ) -> None:
        self.board = ServingBoard(SystemClock())
        self._settings = settings
        self._channel = channel
        self._parts_type = parts
        self._directory = directory
        self._outbox: deque[dict[str, Any]] = deque()
        self._drain_after_s: asyncio.Future[float]

    async def run(self) -> int:
        """Serve until drained or orphaned; return the exit code."""
        loop = asyncio.get_running_loop()
        self._drain_after_s = loop.create_future()
        self._parts = parts = self._parts_type(self._settings, self.board, self._directory)
        self._admissions: set[asyncio.Task[None]] = set()
        config = self._settings.config
        _describe_weaknesses(self.board, config)
        self.board.add_source(lambda: _keyring_problems(parts.keyring, config, self.board))
        if parts.membership is not None:
            membership = parts.membership
            self.board.add_source(lambda: _membership_problems(membership))
        await parts.keyring.start()
        chores = [
            loop.create_task(self._send_pulse()),
            loop.create_task(parts.arrivals.run()),
        ]
        try:
            await parts.servers.start()
            loop.add_reader(self._channel.fileno(), self._on_packet)
            proof = loop.create_task(self._prove_mapping())
            first: tuple[asyncio.Future[Any], ...] = (proof, self._drain_after_s)
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if proof.done():
                proof.result()
                self.board.phase = Phase.RUNNING
                self._send({"ready": True})
            else:
                proof.cancel()  # told to stop already: the public socket answers nobody any more
            grace_s = await self._drain_after_s
            self.board.phase = Phase.DRAINING
            await parts.servers.stop(grace_s)
        finally:
            for chore in chores:
                chore.cancel()
            loop.remove_reader(self._channel.fileno())
            for task in self._admissions:
                task.cancel()
            for connection in parts.registry.connections():
                connection.close()
            parts.refusals.flush()
            await parts.keyring.stop()
        return 0

    async def _send_pulse(self) -> None:
        while True:
            self._send({"alive": True})
            await asyncio.sleep(_PULSE_S)

    def _on_packet(self) -> None:
        try:
            packet = self._channel.receive()
        except BlockingIOError:
            return
        except HandoverError as error:
            event(_log, logging.ERROR, "the hand-over failed; this worker ends", error=str(error))
            self._begin_drain(0.0)
            return
        except OSError:
            packet = None
        if packet is None:
            # The supervisor is gone, and with it the limits: nothing is served without them.
            event(_log, logging.ERROR, "the supervisor is gone; this worker ends")
            self._begin_drain(0.0)
        elif "connection" in packet.fields:
            self._accept(packet)
        elif "drain" in packet.fields:
            self._begin_drain(float(packet.fields["drain"]))

    def _begin_drain(self, grace_s: float) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if not self._drain_after_s.done():
            self._drain_after_s.set_result(grace_s)

    def _accept(self, packet: Packet) -> None:
        outer = socket.socket(fileno=packet.descriptors[0])
        pidfd = packet.descriptors[1] if len(packet.descriptors) > 1 else None
        credential = PeerCredential.from_json(packet.fields["credential"])
        connection = Connection(packet.fields["connection"], credential)
        relay = self._parts.make_relay(connection, outer, pidfd, self._on_closed)
        task = asyncio.get_running_loop().create_task(self._admit(connection, relay))
        self._admissions.add(task)
        task.add_done_callback(self._admissions.discard)

    async def _admit(self, connection: Connection, relay: Any) -> None:
        try:
            subject = await self._parts.identifier.identify(connection)
            allowed = self._settings.policy.is_allowed_anything(subject)
            connection.public_only = not allowed
            servers = self._parts.servers
            await relay.start(servers.main_path if allowed else servers.public_path)
        except Exception:  # noqa: BLE001  (it ends this connection alone)
            _log.exception("connection failed")
            relay.close()

    def _on_closed(self, connection: Connection) -> None:
        self._send({"closed": connection.number})

    def _send(self, fields: dict[str, Any]) -> None:
        self._outbox.append(fields)
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._outbox:
            try:
                self._channel.send(self._outbox[0])
            except BlockingIOError:
                loop.add_writer(self._channel.fileno(), self._flush)
                return
            except OSError:
                self._outbox.clear()  # the supervisor is gone; _on_packet sees it too
                break
            self._outbox.popleft()
        loop.remove_writer(self._channel.fileno())

    async def _prove_mapping(self) -> None:
        """Call ourselves through the public socket, and see ourselves at the other end (I2).

        The spelling of ``context.peer()`` has changed between gRPC releases; where the ticket
        can't be found any more, starting is refused. A call that goes round the relay must be
        refused.

        Raises:
            StartupError: The mapping does not hold.
        """
        from keyside_sidecar.rpc.self_call import SelfCallFailed, check_direct_refused, who_am_i

        try:
            async with asyncio.timeout(_SELF_CALL_TIMEOUT_S):
                pid, uid = await who_am_i(self._settings.public_path)
                self._parts.refusals.muted = True
                await check_direct_refused(self._parts.servers.main_path)
                self._parts.refusals.muted = False
        except (SelfCallFailed, TimeoutError) as error:
            raise StartupError(
                f"the sidecar's call to itself failed: {error or 'no answer in time'}",
                remedy="report this with the versions of grpcio and the kernel",
                exit_code=70,
            ) from error
        if (pid, uid) != (os.getpid(), os.geteuid()):
            raise StartupError(
                f"a call made as pid {os.getpid()} uid {os.geteuid()} was seen as "
                f"pid {pid} uid {uid}",
                remedy="report this with the versions of grpcio and the kernel",
                exit_code=70,
            )


def _describe_weaknesses(board: ServingBoard, config: Config) -> None:
    if config.identity.person_logins == "off":
        board.add_standing(
            "PERSON_LOGINS_OFF",
            "people's own processes are served like services",
            'set identity.person_logins = "refuse" outside a developer\'s machine',
        )
    from keyside_sidecar.peer.pidfd import kernel_gives_peer_pidfd

    if not kernel_gives_peer_pidfd():
        board.add_standing(
            "PEER_PIDFD_FALLBACK",
            "this kernel has no SO_PEERPIDFD; callers' processes are found by number",
            "use Linux 6.5 or newer",
        )


def _keyring_problems(keyring: Keyring, config: Config, board: ServingBoard) -> Iterable[Problem]:
    missing = [name for name in config.keys if keyring.current_number(KeyName(name)) is None]
    problem = keyring.store_problem
    if problem is not None:
        yield Problem(
            problem.reason,
            problem.summary,
            "see the sidecar's log; encryption goes on from memory meanwhile",
            problem.since,
            blocks_keys=True,
            is_alarm=problem.reason == "STORE_TAMPERED",
            summary_for_strangers="the key store can't be used or trusted",
        )
    for notice in keyring.problems():
        yield Problem(
            notice.reason,
            notice.summary,
            notice.remedy,
            notice.since,
            summary_for_strangers=notice.strangers,
        )
    if missing:
        yield Problem(
            "KEYS_NOT_READY",
            f"{len(missing)} of {len(config.keys)} keys have no current version in memory",
            "see the sidecar's log for the store or the root key",
            problem.since if problem is not None else board.started_at,
            blocks_encryption=True,
            summary_for_strangers="not every key is in memory",
        )


def _membership_problems(membership: Membership) -> Iterable[Problem]:
    since = membership.outage_since
    if since is not None:
        yield Problem(
            "NAME_SERVICE_UNAVAILABLE",
            "the name service that knows accounts' groups is away",
            "restore it; accounts looked up lately are served until membership_stale_max",
            since,
        )
