"""Puts a worker's parts together. Imported after the fork: it pulls in gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.names import KeyName
from keyside_sidecar.audit.sender import AuditSender
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.elevation.host import describe_host
from keyside_sidecar.elevation.office import AccessOffice
from keyside_sidecar.elevation.rollback import check_store_age
from keyside_sidecar.elevation.standing import Standing
from keyside_sidecar.elevation.sweep import Sweep
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy
from keyside_sidecar.keys.root_key_watch import RootKeyWatch
from keyside_sidecar.peer.accounts import NameService
from keyside_sidecar.peer.identity import Identifier
from keyside_sidecar.peer.membership import Membership
from keyside_sidecar.peer.relay import Relay, make_buffer
from keyside_sidecar.peer.tickets import TicketRegistry
from keyside_sidecar.rpc.access import AccessServicer
from keyside_sidecar.rpc.arrivals import Arrivals
from keyside_sidecar.rpc.audit import AuditServicer
from keyside_sidecar.rpc.batches import BatchServicer
from keyside_sidecar.rpc.calls import Limits
from keyside_sidecar.rpc.data_keys import DataKeyServicer
from keyside_sidecar.rpc.encryption import EncryptionServicer
from keyside_sidecar.rpc.granted import GrantedCalls
from keyside_sidecar.rpc.guard import Guard
from keyside_sidecar.rpc.health import HealthServicer
from keyside_sidecar.rpc.journal import Journal
from keyside_sidecar.rpc.keys import KeyServicer
from keyside_sidecar.rpc.refusals import RefusalLog
from keyside_sidecar.rpc.server import InnerServers, max_call_bytes
from keyside_sidecar.rpc.status_service import StatusServicer
from keyside_sidecar.rpc.turns import Turns
from keyside_sidecar.rpc.versions import Versions
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from keyside_sidecar.config import KeySettings
    from keyside_sidecar.pam.authenticator import Authenticator
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.serving import ServingBoard
    from keyside_sidecar.worker import WorkerSettings


class Parts:
    """Everything that a worker holds, made from its settings.

    Args:
        settings: What the worker was given.
        board: Where problems are gathered.
        directory: For the inner sockets.
        authenticator: Asks PAM; None without ``[elevation]``.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        board: ServingBoard,
        directory: Path,
        authenticator: Authenticator | None,
    ) -> None:
        config, policy = settings.config, settings.policy
        clock = SystemClock()
        custodian = open_custodian(config.root_key)
        self.audit = AuditSender(config.audit, clock)
        self.keyring = Keyring(
            Store.open(config.store.url, custodian),
            [KeyName(name) for name in config.keys],
            clock=clock,
            rules={KeyName(name): _read_rules(key) for name, key in config.keys.items()},
            tell=self._tell,
        )
        self.root_key_watch = RootKeyWatch(self.keyring.store.session.trust, clock, self._tell)
        self.membership = (
            Membership(
                NameService(),
                relevant_gids=policy.gids,
                relevant_uids=policy.uids,
                ttl_s=config.identity.membership_ttl_s,
                stale_max_s=config.identity.membership_stale_max_s,
                clock=clock,
            )
            if config.identity.membership == "account"
            else None
        )
        self.identifier = Identifier(config.identity, self.membership)
        self.registry = TicketRegistry()
        self.refusals = RefusalLog(clock, self.audit, self.identifier)
        self.journal = Journal(self.audit, self.identifier, self.keyring.read_generation, clock)
        self.arrivals = Arrivals()
        host = describe_host()
        standing = Standing(self.identifier, authenticator, clock, config.identity.membership_ttl_s)
        self.office = AccessOffice(
            policy=policy,
            keyring=self.keyring,
            standing=standing,
            audit=self.audit,
            host=host,
        )
        self.sweep = Sweep(
            office=self.office,
            policy=policy,
            keyring=self.keyring,
            standing=standing,
            host=host,
        )
        share = config.sidecar.workers
        # A worker's share of the host's limits, rounded up.
        limits = Limits(
            -(-config.sidecar.max_calls // share), -(-config.sidecar.max_calls_per_uid // share)
        )
        self._turns = turns = Turns()
        guard = Guard(
            registry=self.registry,
            identifier=self.identifier,
            policy=policy,
            limits=limits,
            refusals=self.refusals,
            arrivals=self.arrivals,
            journal=self.journal,
            granted=GrantedCalls(self.office, self.journal, self.identifier),
            turns=turns,
            max_call_bytes=max_call_bytes(config),
            max_batch_bytes=config.sidecar.max_batch_bytes,
        )
        versions = Versions(self.keyring, clock)
        self.servers = InnerServers(
            config,
            directory,
            guard=guard,
            encryption=EncryptionServicer(config, self.keyring, versions),
            batches=BatchServicer(config, self.keyring, versions, turns),
            data_keys=DataKeyServicer(config, self.keyring, versions),
            keys=KeyServicer(config, policy, self.keyring, clock),
            access=AccessServicer(self.office, policy, self.identifier),
            audit=AuditServicer(config.audit.path, policy),
            status=StatusServicer(board, self.identifier, policy, self.keyring),
            health=HealthServicer(board),
        )
        self._buffer = make_buffer()

    async def check_store_age(self, *, accept: bool) -> None:
        """Refuse a store that is older than its audit log; see elevation/rollback.py."""
        await check_store_age(self.keyring, self.audit, self.office, accept=accept)

    def _tell(self, event: str, facts: Mapping[str, object]) -> None:
        """Have the audit log know what the sidecar does, or finds, by itself."""
        self.audit.note({"event": event, **facts})

    def make_relay(
        self,
        connection: Connection,
        outer: socket.socket,
        pidfd: int | None,
        on_closed: Callable[[Connection], None],
    ) -> Relay:
        """Return a relay for one connection; it owns the descriptors."""
        return Relay(
            connection,
            outer,
            pidfd,
            registry=self.registry,
            buffer=self._buffer,
            on_arrival=self._turns.expect_short,
            on_closed=on_closed,
        )


def _read_rules(key: KeySettings) -> KeyRules:
    policy = RolloverPolicy(
        rotate_every_s=key.rotate_every_s,
        rotate_after_messages=key.rotate_after_messages,
        rotate_after_bytes=key.rotate_after_bytes,
        propagation_s=key.propagation_s,
    )
    return KeyRules(policy, key.destroy_after_s)
