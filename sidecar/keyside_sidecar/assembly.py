"""Puts a worker's parts together. Imported after the fork: it pulls in gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.names import KeyName
from keyside_sidecar.api.rpcs import bind_all
from keyside_sidecar.api.v1.status import encode_status
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
from keyside_sidecar.server.grpc_aio import Handlers
from keyside_sidecar.server.inner_servers import InnerServers, max_call_bytes
from keyside_sidecar.server.pipeline import Pipeline
from keyside_sidecar.server.pipeline.authorise import Authoriser
from keyside_sidecar.server.pipeline.grant import GrantUses
from keyside_sidecar.server.pipeline.limit import Limits
from keyside_sidecar.server.pipeline.parse import Parser
from keyside_sidecar.server.pipeline.receive import Arrivals
from keyside_sidecar.server.pipeline.record import Recorder
from keyside_sidecar.server.refusals import RefusalLog
from keyside_sidecar.server.under_way import UnderWay
from keyside_sidecar.services import Services
from keyside_sidecar.services.access import AccessService
from keyside_sidecar.services.audit import AuditService
from keyside_sidecar.services.batches import BatchService
from keyside_sidecar.services.data_keys import DataKeyService
from keyside_sidecar.services.encryption import EncryptionService
from keyside_sidecar.services.keys import KeyService
from keyside_sidecar.services.status import StatusService
from keyside_sidecar.services.turns import Turns
from keyside_sidecar.services.versions import Versions
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
        self.refusals = RefusalLog(clock, self.audit)
        self.under_way = UnderWay()
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
        pipeline = Pipeline(
            identifier=self.identifier,
            limits=limits,
            arrivals=self.arrivals,
            turns=turns,
            parser=Parser(max_call_bytes(config)),
            authoriser=Authoriser(policy, self.office),
            recorder=Recorder(self.audit, self.keyring.read_generation, clock),
            uses=GrantUses(self.office),
            under_way=self.under_way,
            refusals=self.refusals,
            policy=policy,
        )
        versions = Versions(self.keyring, clock)
        services = Services(
            encryption=EncryptionService(config, versions),
            batches=BatchService(config, versions, turns),
            data_keys=DataKeyService(config, versions),
            keys=KeyService(config, policy, self.keyring, clock),
            access=AccessService(self.office, policy, self.identifier),
            audit=AuditService(config.audit.path, policy),
            status=StatusService(board, policy, self.keyring),
            board=board,
            turns=turns,
            max_batch_bytes=config.sidecar.max_batch_bytes,
        )
        self.servers = InnerServers(
            config,
            directory,
            Handlers(pipeline, self.registry, turns, encode_status),
            bind_all(services, with_reflection=config.sidecar.reflection),
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
