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
from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from keyside_sidecar.config import Config
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.server.call import Rpc
    from keyside_sidecar.server.grpc_aio import Handlers

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


class _Table(grpc.GenericRpcHandler):
    """The handlers of a main server; anything else is UNIMPLEMENTED."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


class _PublicTable(grpc.GenericRpcHandler):
    """The handlers of the public server; anything else is refused with a reason."""

    def __init__(
        self, known: Mapping[str, grpc.RpcMethodHandler[Any, Any]], handlers: Handlers
    ) -> None:
        self._known = known
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = self._known.get(handler_call_details.method)
        return handler or self._handlers.refuse(handler_call_details.method)


class InnerServers:
    """Builds, starts and stops them all.

    Args:
        config: For limits.
        directory: Private to the worker's account; holds their sockets.
        handlers: Makes handlers of rows.
        rpcs: All that there are.
    """

    def __init__(
        self, config: Config, directory: Path, handlers: Handlers, rpcs: Iterable[Rpc]
    ) -> None:
        made = {rpc: handlers.make(rpc) for rpc in rpcs}
        everything = {rpc.path: handler for rpc, handler in made.items()}
        public = {rpc.path: handler for rpc, handler in made.items() if rpc.public}
        self.main_paths = [str(directory / f"m{number}") for number in range(_MAIN_SERVERS)]
        self._held: list[int] = []
        self._seated = [0] * _MAIN_SERVERS
        self.public_path = str(directory / "p")
        # The parser holds every other call to less (max_call_bytes).
        limit = max_batch_message_bytes(config)
        streams = min(config.sidecar.max_calls_per_uid, _STREAMS)
        options = [*_options(limit, streams), *_age_options(config), *BACKLOG_OPTIONS]
        table = _Table(everything)
        self._main = [_make_server(options, table, path) for path in self.main_paths]
        public_options = [
            *_options(_PUBLIC_MESSAGE_BYTES, _PUBLIC_STREAMS),
            ("grpc.max_connection_idle_ms", _PUBLIC_IDLE_MS),
        ]
        self._public = _make_server(
            public_options, _PublicTable(public, handlers), self.public_path
        )

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


def _make_server(
    options: list[tuple[str, int]], table: grpc.GenericRpcHandler, path: str
) -> grpc.aio.Server:
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((table,))
    server.add_insecure_port(f"unix:{path}")
    return server
