"""The inner gRPC servers of a worker, on private sockets.

A *main* one knows every RPC and serves callers who are allowed something. There are several of
them, all alike, and connections are spread over them: a ``grpc.aio`` server asks for one new call
at a time and hears of it through another thread, so that one server begins one call in a round of
the event loop, however many wait (ADR 13). The *public* one knows health and public status, takes
small messages only, and answers everything else with the reason for the refusal without parsing
it; so a caller who is allowed nothing can't make a main server parse anything.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from keyside.v1 import access_pb2, audit_pb2, encryption_pb2, keys_pb2, status_pb2
from keyside_sidecar.rpc import methods

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from keyside_sidecar.config import Config
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.rpc.access import AccessServicer
    from keyside_sidecar.rpc.audit import AuditServicer
    from keyside_sidecar.rpc.batches import BatchServicer
    from keyside_sidecar.rpc.data_keys import DataKeyServicer
    from keyside_sidecar.rpc.encryption import EncryptionServicer
    from keyside_sidecar.rpc.guard import Guard, StreamContext
    from keyside_sidecar.rpc.health import HealthServicer
    from keyside_sidecar.rpc.keys import KeyServicer
    from keyside_sidecar.rpc.status_service import StatusServicer

_MAIN_SERVERS: Final = 8
_PUBLIC_MESSAGE_BYTES: Final = 4096
_PUBLIC_GRACE_S: Final = 1.0
_PUBLIC_IDLE_MS: Final = 60_000
# What an envelope, a context at its limits and protobuf's framing may add to the largest plaintext.
_MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
# What contexts and framing may add to a batch: as much again as its plaintexts.
_BATCH_FACTOR: Final = 2
_MAX_METADATA_BYTES: Final = 8 * 1024
_STREAMS: Final = 128
# Of one main server: calls that gRPC has received the beginning of and the worker has not begun. No
# limit of ours counts them yet. Above the first number some are refused, above the second all, with
# CANCELLED; the streams of four connections always fit. (gRPC's own numbers are for one server.)
BACKLOG_OPTIONS: Final = (
    ("grpc.server.max_pending_requests", 512),
    ("grpc.server.max_pending_requests_hard_limit", 750),
)
_PUBLIC_STREAMS: Final = 8
_MAX_AGE_GRACE_MS: Final = 10_000

Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[Any, Any]]"


class _Table(grpc.GenericRpcHandler):
    """The handlers of a main server; anything else is UNIMPLEMENTED."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


class _PublicTable(_Table):
    """The handlers of the public server; anything else is refused with a reason."""

    def __init__(
        self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]], guard: Guard
    ) -> None:
        super().__init__(handlers)
        self._guard = guard

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = super().service(handler_call_details)
        return handler or self._guard.refuse_with_reason(handler_call_details.method)


class InnerServers:
    """Builds, starts and stops them all.

    Args:
        config: For limits and reflection.
        directory: Private to the worker's account; holds their sockets.
        guard: Stands before every RPC.
        encryption: Serves EncryptionService …
        batches: … its batches …
        data_keys: … and its data keys.
        keys: Serves KeyService.
        access: Serves AccessService.
        audit: Serves AuditService.
        status: Serves StatusService.
        health: Serves the health protocol.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        guard: Guard,
        encryption: EncryptionServicer,
        batches: BatchServicer,
        data_keys: DataKeyServicer,
        keys: KeyServicer,
        access: AccessServicer,
        audit: AuditServicer,
        status: StatusServicer,
        health: HealthServicer,
    ) -> None:
        public: Handlers = {
            methods.GET_STATUS.path: guard.unary(
                methods.GET_STATUS, status_pb2.GetStatusRequest, status.get_status
            ),
            **_health_handlers(guard, health),
        }
        everything: Handlers = {
            **public,
            methods.ENCRYPT.path: guard.unary(
                methods.ENCRYPT, encryption_pb2.EncryptRequest, encryption.encrypt
            ),
            methods.DECRYPT.path: guard.unary(
                methods.DECRYPT, encryption_pb2.DecryptRequest, encryption.decrypt
            ),
            methods.REWRAP.path: guard.unary(
                methods.REWRAP, encryption_pb2.RewrapRequest, encryption.rewrap
            ),
            methods.REENCRYPT.path: guard.unary(
                methods.REENCRYPT, encryption_pb2.ReencryptRequest, encryption.reencrypt
            ),
            **_batch_handlers(guard, batches),
            methods.GENERATE_DATA_KEY.path: guard.unary(
                methods.GENERATE_DATA_KEY,
                encryption_pb2.GenerateDataKeyRequest,
                data_keys.generate_data_key,
            ),
            methods.DECRYPT_DATA_KEY.path: guard.unary(
                methods.DECRYPT_DATA_KEY,
                encryption_pb2.DecryptDataKeyRequest,
                data_keys.decrypt_data_key,
            ),
            methods.LIST_KEYS.path: guard.unary(
                methods.LIST_KEYS, keys_pb2.ListKeysRequest, keys.list_keys
            ),
            methods.GET_KEY.path: guard.unary(
                methods.GET_KEY, keys_pb2.GetKeyRequest, keys.get_key
            ),
            methods.ROTATE_KEY.path: guard.unary(
                methods.ROTATE_KEY, keys_pb2.RotateKeyRequest, keys.rotate_key
            ),
            methods.DISABLE_VERSION.path: guard.unary(
                methods.DISABLE_VERSION, keys_pb2.DisableVersionRequest, keys.disable_version
            ),
            methods.ENABLE_VERSION.path: guard.unary(
                methods.ENABLE_VERSION, keys_pb2.EnableVersionRequest, keys.enable_version
            ),
            methods.DESTROY_VERSION.path: guard.unary(
                methods.DESTROY_VERSION, keys_pb2.DestroyVersionRequest, keys.destroy_version
            ),
            methods.CANCEL_DESTROY_VERSION.path: guard.unary(
                methods.CANCEL_DESTROY_VERSION,
                keys_pb2.CancelDestroyVersionRequest,
                keys.cancel_destroy_version,
            ),
            **_access_handlers(guard, access),
            methods.SEARCH_RECORDS.path: guard.unary(
                methods.SEARCH_RECORDS, audit_pb2.SearchRecordsRequest, audit.search_records
            ),
            methods.GET_CHECKPOINT.path: guard.unary(
                methods.GET_CHECKPOINT, audit_pb2.GetCheckpointRequest, audit.get_checkpoint
            ),
        }
        if config.sidecar.reflection:
            everything[methods.REFLECTION.path] = _reflection_handler(guard)
        self.main_paths = [str(directory / f"m{number}") for number in range(_MAIN_SERVERS)]
        self._held: list[int] = []
        self._seated = [0] * _MAIN_SERVERS
        self.public_path = str(directory / "p")
        # The guard holds every other call to less (max_call_bytes).
        limit = max_batch_message_bytes(config)
        streams = min(config.sidecar.max_calls_per_uid, _STREAMS)
        options = [*_options(limit, streams), *_age_options(config), *BACKLOG_OPTIONS]
        table = _Table(everything)
        self._main = [_make_server(options, table, path) for path in self.main_paths]
        public_options = [
            *_options(_PUBLIC_MESSAGE_BYTES, _PUBLIC_STREAMS),
            ("grpc.max_connection_idle_ms", _PUBLIC_IDLE_MS),
        ]
        self._public = _make_server(public_options, _PublicTable(public, guard), self.public_path)

    async def start(self) -> None:
        """Begin to listen on the private sockets."""
        for server in (*self._main, self._public):
            await server.start()
        # Reached through descriptors: whoever removes the directory cuts nobody off.
        self._held = [
            os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*self.main_paths, self.public_path)
        ]
        *self.main_paths, self.public_path = [f"/proc/self/fd/{held}" for held in self._held]

    def seat(self, connection: Connection) -> str:
        """Return the socket that a connection is relayed to, and count it there until it closes."""
        if connection.public_only:
            return self.public_path
        index = min(range(_MAIN_SERVERS), key=self._seated.__getitem__)
        self._seated[index] += 1
        connection.server = index
        return self.main_paths[index]

    def leave(self, connection: Connection) -> None:
        """Take note that a connection has closed, wherever it was relayed to."""
        if connection.server is not None:
            self._seated[connection.server] -= 1
            connection.server = None

    async def stop(self, grace_s: float) -> None:
        """Let calls under way finish within ``grace_s`` seconds, then cancel the rest."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._main))
        # Probes that watch are still to be told that nothing is served any more.
        await self._public.stop(min(grace_s, _PUBLIC_GRACE_S))
        while self._held:
            os.close(self._held.pop())


def max_call_bytes(config: Config) -> int:
    """Return how long the message of a call may be that is no batch."""
    return config.sidecar.max_plaintext_bytes + _MESSAGE_OVERHEAD_BYTES


def max_batch_message_bytes(config: Config) -> int:
    """Return how long the message of a batch may be."""
    return config.sidecar.max_batch_bytes * _BATCH_FACTOR + _MESSAGE_OVERHEAD_BYTES


def _options(max_message_bytes: int, max_streams: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        # What is sent is bounded by what was received; an answer must never fail on size.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.so_reuseport", 0),
    ]


def _age_options(config: Config) -> list[tuple[str, int]]:
    if config.identity.membership == "account":
        return []
    # The groups were captured at connect, so a connection must not live for ever (I1).
    return [
        ("grpc.max_connection_age_ms", int(config.identity.connection_max_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", _MAX_AGE_GRACE_MS),
    ]


def _make_server(options: list[tuple[str, int]], table: _Table, path: str) -> grpc.aio.Server:
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((table,))
    server.add_insecure_port(f"unix:{path}")
    return server


def _batch_handlers(guard: Guard, batches: BatchServicer) -> Handlers:
    return {
        method.path: guard.batch(method, kind, serve)
        for method, kind, serve in (
            (methods.BATCH_ENCRYPT, encryption_pb2.BatchEncryptRequest, batches.batch_encrypt),
            (methods.BATCH_DECRYPT, encryption_pb2.BatchDecryptRequest, batches.batch_decrypt),
            (methods.BATCH_REWRAP, encryption_pb2.BatchRewrapRequest, batches.batch_rewrap),
        )
    }


def _access_handlers(guard: Guard, access: AccessServicer) -> Handlers:
    return {
        method.path: guard.unary(method, kind, serve)
        for method, kind, serve in (
            (methods.REQUEST_ACCESS, access_pb2.RequestAccessRequest, access.request_access),
            (
                methods.CHECK_ACCESS_REQUEST,
                access_pb2.CheckAccessRequestRequest,
                access.check_access_request,
            ),
            (methods.LIST_ACCESS, access_pb2.ListAccessRequest, access.list_access),
            (methods.GET_ACCESS, access_pb2.GetAccessRequest, access.get_access),
            (methods.APPROVE_ACCESS, access_pb2.ApproveAccessRequest, access.approve_access),
            (methods.DENY_ACCESS, access_pb2.DenyAccessRequest, access.deny_access),
            (methods.CANCEL_ACCESS, access_pb2.CancelAccessRequest, access.cancel_access),
            (methods.ACTIVATE_ACCESS, access_pb2.ActivateAccessRequest, access.activate_access),
            (methods.REVOKE_ACCESS, access_pb2.RevokeAccessRequest, access.revoke_access),
        )
    }


def _health_handlers(guard: Guard, health: HealthServicer) -> Handlers:
    return {
        methods.HEALTH_CHECK.path: guard.unary(
            methods.HEALTH_CHECK, health_pb2.HealthCheckRequest, health.check
        ),
        methods.HEALTH_LIST.path: guard.unary(
            methods.HEALTH_LIST, health_pb2.HealthListRequest, health.list
        ),
        methods.HEALTH_WATCH.path: guard.watch(
            methods.HEALTH_WATCH, health_pb2.HealthCheckRequest, health.watch
        ),
    }


def _reflection_handler(guard: Guard) -> grpc.RpcMethodHandler[Any, Any]:
    services = sorted({method.service for method in methods.METHODS})
    servicer = reflection_aio.ReflectionServicer(services)

    async def serve(requests: Any, context: StreamContext) -> None:
        async for response in servicer.ServerReflectionInfo(requests, context):
            await context.write(response)

    return guard.converse(methods.REFLECTION, reflection_pb2.ServerReflectionRequest, serve)
