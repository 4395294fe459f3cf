"""One worker: a whole sidecar, fed connections by the supervisor.

Its life::

    load (imports) ─► drop privileges ─► open root key and store ─► start inner servers
      ─► prove the caller mapping through the public socket ─► tell the supervisor it is ready
      ─► told that its generation serves: look after keys and grants as well
      ─► serve until told to drain, or until the supervisor is gone
      ─► where successors serve: leave keys and grants to them, and send the callers there
      ─► let calls under way end ─► exit

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

from keyside_sidecar import hardening, scheduling
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import (
    AuditUnavailable,
    CustodianUnavailable,
    SidecarError,
    StartupError,
    StoreUnavailable,
)
from keyside_sidecar.handover import HandoverError
from keyside_sidecar.log import event
from keyside_sidecar.pam.authenticator import Authenticator
from keyside_sidecar.peer.caller import Caller
from keyside_sidecar.peer.connection import Connection
from keyside_sidecar.peer.private_directory import PrivateDirectory
from keyside_sidecar.problems import (
    add_weakness,
    describe_weaknesses,
    list_audit_problems,
    list_keyring_problems,
    list_membership_problems,
    list_root_key_problems,
)
from keyside_sidecar.serving import Notice, Phase, ServingBoard
from keyside_sidecar.weaknesses import describe_unlocked_memory

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel, Packet

_log = logging.getLogger(__name__)

_EX_UNAVAILABLE: Final = 69
_EXIT_FAILED: Final = 70
_EX_CONFIG: Final = 78
_SELF_CALL_TIMEOUT_S: Final = 10.0
_PULSE_S: Final = 1.0
# What callers get to go elsewhere by themselves, before gRPC refuses their calls.
_SEE_OFF_S: Final = 2.0
_LOOK_S: Final = 0.02


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
        accept_rollback: Whether to take a store that is older than its audit log.
        started_at: When the sidecar was started, so that all its workers tell the same.
    """

    config: Config
    policy: Policy
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    public_path: str
    accept_rollback: bool = False
    started_at: datetime | None = None


def run_worker(settings: WorkerSettings, channel: Channel, audit: socket.socket) -> int:
    """Run a worker to its end, in a process of its own.

    Args:
        settings: What it is to do.
        channel: The supervisor has the other end.
        audit: The recorder has the other end.

    Returns:
        The process's exit code: 0 after draining.
    """
    try:
        # Every import happens here: gRPC must not be imported before the fork, and after privileges
        # are dropped an interpreter under a private directory might not be readable any more.
        import uvloop

        scheduling.arrange()
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
        worker = Worker(settings, channel, audit, assembly.Parts, directory.path)
        if not memory.locked:
            add_weakness(worker.board, describe_unlocked_memory(memory.why))
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
        is_away = isinstance(error, (AuditUnavailable, StoreUnavailable, CustodianUnavailable))
        return _EX_UNAVAILABLE if is_away else _EX_CONFIG
    except Exception:  # noqa: BLE001  (the supervisor decides what follows)
        _log.exception("worker failed")
        return _EXIT_FAILED


@dataclass(frozen=True, slots=True)
class _Dismissal:
    """What the supervisor says at the end.

    Args:
        grace_s: How long calls under way may take.
        succeeded: Other workers serve already; nobody needs to notice.
    """

    grace_s: float
    succeeded: bool = False


class Worker:
    """Takes connections from the supervisor and relays them to its inner servers."""

    def __init__(
        self,
        settings: WorkerSettings,
        channel: Channel,
        audit: socket.socket,
        parts: Any,
        directory: Path,
    ) -> None:
        self.board = ServingBoard(SystemClock(), settings.started_at)
        self._settings = settings
        self._channel = channel
        self._audit = audit
        elevation = settings.config.elevation
        self._authenticator = (
            Authenticator(self._send, timeout_s=elevation.pam_timeout_s)
            if elevation is not None
            else None
        )
        self._parts_type = parts
        self._directory = directory
        self._outbox: deque[tuple[dict[str, Any], socket.socket | None]] = deque()
        self._serves = asyncio.Event()
        self._dismissal: asyncio.Future[_Dismissal]

    async def run(self) -> int:
        """Serve until drained or orphaned; return the exit code."""
        loop = asyncio.get_running_loop()
        self._dismissal = loop.create_future()
        self._parts = parts = self._parts_type(
            self._settings, self.board, self._directory, self._authenticator
        )
        parts.audit.attach(self._audit)
        self._admissions: set[asyncio.Task[None]] = set()
        config = self._settings.config
        describe_weaknesses(self.board, config)
        self.board.add_source(lambda: list_keyring_problems(parts.keyring, config, self.board))
        self.board.add_source(lambda: list_root_key_problems(parts.root_key_watch))
        self.board.add_source(lambda: list_audit_problems(parts.audit))
        if parts.membership is not None:
            membership = parts.membership
            self.board.add_source(lambda: list_membership_problems(membership))
        await parts.check_store_age(accept=self._settings.accept_rollback)
        await parts.keyring.start(upkeep=False)
        upkeep = loop.create_task(self._look_after())
        chores = [
            loop.create_task(self._send_pulse()),
            loop.create_task(self._report_generation()),
            loop.create_task(parts.arrivals.run()),
            loop.create_task(parts.root_key_watch.run()),
            upkeep,
        ]
        try:
            await parts.servers.start()
            loop.add_reader(self._channel.fileno(), self._on_packet)
            proof = loop.create_task(self._prove_mapping())
            first: tuple[asyncio.Future[Any], ...] = (proof, self._dismissal)
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if proof.done():
                proof.result()
                scheduling.settle()
                self.board.phase = Phase.RUNNING
                self._send({"ready": True})
            else:
                proof.cancel()  # told to stop already: the public socket answers nobody any more
            dismissal = await self._dismissal
            left_s = dismissal.grace_s
            if dismissal.succeeded:
                upkeep.cancel()
                left_s -= await self._see_off(min(left_s, _SEE_OFF_S))
            self.board.phase = Phase.DRAINING
            await parts.servers.stop(left_s)
        finally:
            for chore in chores:
                chore.cancel()
            for task in self._admissions:
                task.cancel()
            for connection in parts.registry.connections():
                connection.close()
            parts.refusals.flush()
            await parts.under_way.settle()
            await parts.keyring.stop()
            await parts.audit.close()  # last: it has what all the others had to say
            loop.remove_reader(self._channel.fileno())  # until here another recorder may come
        return 0

    async def _look_after(self) -> None:
        """Look after keys and grants, by the configuration of those that serve and no other's."""
        await self._serves.wait()
        self._parts.keyring.begin_upkeep()
        try:
            await self._parts.sweep.run()
        finally:
            await self._parts.keyring.end_upkeep()

    async def _send_pulse(self) -> None:
        while True:
            self._send({"alive": True})
            await asyncio.sleep(_PULSE_S)

    async def _report_generation(self) -> None:
        """Have the audit log know how far the store has come."""
        while True:
            store_id, generation = self._parts.keyring.read_generation()
            self._parts.audit.report_generation(bytes.fromhex(store_id), generation)
            await asyncio.sleep(_PULSE_S)

    def _on_packet(self) -> None:
        try:
            packet = self._channel.receive()
        except BlockingIOError:
            return
        except HandoverError as error:
            event(_log, logging.ERROR, "the hand-over failed; this worker ends", error=str(error))
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._begin_drain(_Dismissal(0.0))
            return
        except OSError:
            packet = None
        if packet is None:
            # The supervisor is gone, and with it the limits: nothing is served without them.
            event(_log, logging.ERROR, "the supervisor is gone; this worker ends")
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._begin_drain(_Dismissal(0.0))
        elif "connection" in packet.fields:
            self._accept(packet)
        elif "audit" in packet.fields:
            self._parts.audit.attach(socket.socket(fileno=packet.descriptors[0]))
        elif "serve" in packet.fields:
            self._serves.set()
        elif "notices" in packet.fields:
            self.board.set_notices(Notice(*fields) for fields in packet.fields["notices"])
        elif "drain" in packet.fields:
            succeeded = packet.fields.get("succeeded") is True
            self._begin_drain(_Dismissal(float(packet.fields["drain"]), succeeded=succeeded))

    def _begin_drain(self, dismissal: _Dismissal) -> None:
        if not self._dismissal.done():
            self._dismissal.set_result(dismissal)

    async def _see_off(self, limit_s: float) -> float:
        """Ask every caller to go to those that serve now, and wait until they have.

        gRPC's own way to stop refuses whatever call has been sent and not begun; after this there
        is none, of callers that do as they are asked.

        Args:
            limit_s: For how long to wait.

        Returns:
            How long it took, in seconds; at most the limit.
        """
        loop = asyncio.get_running_loop()
        self.board.is_succeeded = True
        began_s = loop.time()
        registry = self._parts.registry
        while (registry.connections() or self._admissions) and loop.time() - began_s < limit_s:
            for connection in registry.connections():
                connection.send_away()
            await asyncio.sleep(_LOOK_S)
        return min(limit_s, loop.time() - began_s)

    def _accept(self, packet: Packet) -> None:
        outer = socket.socket(fileno=packet.descriptors[0])
        pidfd = packet.descriptors[1] if len(packet.descriptors) > 1 else None
        caller = Caller.from_json(packet.fields["caller"])
        connection = Connection(packet.fields["connection"], caller)
        relay = self._parts.make_relay(connection, outer, pidfd, self._on_closed)
        task = asyncio.get_running_loop().create_task(self._admit(connection, relay))
        self._admissions.add(task)
        task.add_done_callback(self._admissions.discard)

    async def _admit(self, connection: Connection, relay: Any) -> None:
        try:
            caller = await self._parts.identifier.identify(connection.caller)
            connection.public_only = not self._settings.policy.is_allowed_anything(caller)
            if not relay.closed:
                await relay.start(self._parts.servers.seat(connection))
        except Exception:  # noqa: BLE001  (it ends this connection alone)
            _log.exception("connection failed")
            relay.close()

    def _on_closed(self, connection: Connection) -> None:
        self._parts.servers.leave(connection)
        self._send({"closed": connection.number})

    def _send(self, fields: dict[str, Any], end: socket.socket | None = None) -> None:
        """Send a packet to the supervisor, and a descriptor along, which is closed afterwards."""
        self._outbox.append((fields, end))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._outbox:
            fields, end = self._outbox[0]
            try:
                self._channel.send(fields, () if end is None else (end.fileno(),))
            except BlockingIOError:
                loop.add_writer(self._channel.fileno(), self._flush)
                return
            except OSError:
                pass  # the supervisor is gone; _on_packet sees it too
            self._outbox.popleft()
            if end is not None:
                end.close()
        loop.remove_writer(self._channel.fileno())

    async def _prove_mapping(self) -> None:
        """Call ourselves through the public socket, and see ourselves at the other end (I2).

        The spelling of ``context.peer()`` has changed between gRPC releases; where the ticket
        can't be found any more, starting is refused. A call that goes round the relay must be
        refused.

        Raises:
            StartupError: The mapping does not hold.
        """
        from keyside_sidecar.api.v1.self_call import SelfCallFailed, check_direct_refused, who_am_i

        try:
            async with asyncio.timeout(_SELF_CALL_TIMEOUT_S):
                pid, uid = await who_am_i(self._settings.public_path)
                self._parts.refusals.muted = True
                for path in self._parts.servers.main_paths:
                    await check_direct_refused(path)
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
