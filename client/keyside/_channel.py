"""One process's way to the sidecar: a gRPC channel to a socket that was checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from keyside import _fork
from keyside.address import grpc_target
from keyside.v1.access_pb2_grpc import AccessServiceStub
from keyside.v1.audit_pb2_grpc import AuditServiceStub
from keyside.v1.encryption_pb2_grpc import EncryptionServiceStub
from keyside.v1.keys_pb2_grpc import KeyServiceStub
from keyside.v1.status_pb2_grpc import StatusServiceStub

if TYPE_CHECKING:
    from keyside.socket_check import TrustedSocket
    from keyside.v1.access_pb2_grpc import AccessServiceAsyncStub
    from keyside.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from keyside.v1.encryption_pb2_grpc import EncryptionServiceAsyncStub
    from keyside.v1.keys_pb2_grpc import KeyServiceAsyncStub
    from keyside.v1.status_pb2_grpc import StatusServiceAsyncStub

# Above the largest plaintext a sidecar can be configured for (16 MiB), so that its own error,
# which states its limit, is what the caller gets to see.
MAX_MESSAGE_BYTES: Final = 24 * 1024 * 1024

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Without its own pool, a channel made after a fork would take up the parent's connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Of calls that the server has never seen, as when it has just sent the connection away; no
    # policy for others can come from anywhere.
    ("grpc.enable_retries", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Link:
    """A channel for threads, its stubs, the socket it goes to and the process it belongs to."""

    generation: int
    trusted: TrustedSocket
    channel: grpc.Channel
    encryption: EncryptionServiceStub
    keys: KeyServiceStub
    status: StatusServiceStub
    access: AccessServiceStub
    audit: AuditServiceStub

    def with_trusted(self, trusted: TrustedSocket) -> Link:
        """Return the same channel with what the socket file is now."""
        return replace(self, trusted=trusted)


@dataclass(frozen=True, slots=True, eq=False)
class AsyncLink:
    """A channel for one event loop, its stubs, the socket and the process it belongs to."""

    generation: int
    trusted: TrustedSocket
    channel: grpc.aio.Channel
    encryption: EncryptionServiceAsyncStub
    keys: KeyServiceAsyncStub
    status: StatusServiceAsyncStub
    access: AccessServiceAsyncStub
    audit: AuditServiceAsyncStub

    def with_trusted(self, trusted: TrustedSocket) -> AsyncLink:
        """Return the same channel with what the socket file is now."""
        return replace(self, trusted=trusted)


def open_link(trusted: TrustedSocket) -> Link:
    """Make a channel; it connects when first used."""
    channel = grpc.insecure_channel(grpc_target(trusted.path), options=_OPTIONS)
    _fork.note_opened()
    return Link(
        _fork.generation(),
        trusted,
        channel,
        EncryptionServiceStub(channel),
        KeyServiceStub(channel),
        StatusServiceStub(channel),
        AccessServiceStub(channel),
        AuditServiceStub(channel),
    )


def open_async_link(trusted: TrustedSocket) -> AsyncLink:
    """Make a channel on the running event loop; it connects when first used."""
    channel = grpc.aio.insecure_channel(grpc_target(trusted.path), options=_OPTIONS)
    _fork.note_opened(channel)
    return AsyncLink(
        _fork.generation(),
        trusted,
        channel,
        EncryptionServiceStub(channel),
        KeyServiceStub(channel),
        StatusServiceStub(channel),
        AccessServiceStub(channel),
        AuditServiceStub(channel),
    )
