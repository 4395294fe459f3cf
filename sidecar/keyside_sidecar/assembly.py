"""Puts a worker's parts together. Imported after the fork: it pulls in gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.names import KeyName
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.custody import open_custodian
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy
from keyside_sidecar.peer.accounts import NameService
from keyside_sidecar.peer.identity import Identifier
from keyside_sidecar.peer.membership import Membership
from keyside_sidecar.peer.relay import Relay, make_buffer
from keyside_sidecar.peer.tickets import TicketRegistry
from keyside_sidecar.rpc.arrivals import Arrivals
from keyside_sidecar.rpc.calls import Limits
from keyside_sidecar.rpc.encryption import EncryptionServicer
from keyside_sidecar.rpc.guard import Guard
from keyside_sidecar.rpc.health import HealthServicer
from keyside_sidecar.rpc.keys import KeyServicer
from keyside_sidecar.rpc.refusals import RefusalLog
from keyside_sidecar.rpc.server import InnerServers
from keyside_sidecar.rpc.status_service import StatusServicer
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from keyside_sidecar.config import KeySettings
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.serving import ServingBoard
    from keyside_sidecar.worker import WorkerSettings


class Parts:
    """Everything that a worker holds, made from its settings.

    Args:
        settings: What the worker was given.
        board: Where problems are gathered.
        directory: For the inner sockets.
    """

    def __init__(self, settings: WorkerSettings, board: ServingBoard, directory: Path) -> None:
        config, policy = settings.config, settings.policy
        clock = SystemClock()
        custodian = open_custodian(config.root_key)
        self.keyring = Keyring(
            Store.open(config.store.url, custodian),
            [KeyName(name) for name in config.keys],
            clock=clock,
            rules={KeyName(name): _read_rules(key) for name, key in config.keys.items()},
        )
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
        self.refusals = RefusalLog(clock)
        self.arrivals = Arrivals()
        share = config.sidecar.workers
        guard = Guard(
            registry=self.registry,
            identifier=self.identifier,
            policy=policy,
            # A worker's share of the host's limits, rounded up.
            limits=Limits(
                -(-config.sidecar.max_calls // share), -(-config.sidecar.max_calls_per_uid // share)
            ),
            refusals=self.refusals,
            arrivals=self.arrivals,
        )
        self.servers = InnerServers(
            config,
            directory,
            guard=guard,
            encryption=EncryptionServicer(config, self.keyring, clock),
            keys=KeyServicer(config, policy, self.keyring, clock),
            status=StatusServicer(board, self.identifier, policy, self.keyring),
            health=HealthServicer(board),
        )
        self._buffer = make_buffer()

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
