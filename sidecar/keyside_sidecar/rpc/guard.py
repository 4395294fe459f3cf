"""Stands before every RPC: finds the caller, asks policy, and turns errors into statuses.

A call takes these steps, and a servicer is reached only when all of them passed:

1. ``context.peer()`` is looked up as a ticket; an address that isn't registered is refused (I2).
2. The call is counted against the limits.
3. The caller's groups are what the name service says now (I1); policy's view of the caller is
   made from them.
4. The request is parsed, and the key that it is about is read from it.
5. Policy decides. The servicer gets the request, the caller and the key.

On a connection of a caller who was allowed nothing when it connected, only public RPCs exist.
Anything else is answered with the reason. If policy or membership allows the caller by now, it is
asked to connect again (UNAVAILABLE), and the connection is closed behind the answer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from keyside.envelope import WrappingHeader, parse_wrapping_header
from keyside.errors import EnvelopeRejected
from keyside.names import KeyName, parse_key_name
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import BadRequest, Refused
from keyside_sidecar.log import event
from keyside_sidecar.rpc.methods import KeyFrom, Method
from keyside_sidecar.rpc.status import DETAILS_KEY, Failure, PolicyChanged, describe_failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from keyside_sidecar.access.policy import Policy, Subject
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.peer.tickets import TicketRegistry
    from keyside_sidecar.rpc.calls import CallLimits
    from keyside_sidecar.rpc.refusals import RefusalLog

_log = logging.getLogger(__name__)

# The connection is closed this long after the status was sent, so that the status arrives first.
_CLOSE_BEHIND_S: Final = 0.2

StreamContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Call:
    """An RPC that policy has allowed.

    Args:
        connection: Who calls.
        subject: Policy's view of the caller, from the groups that it has now.
        key: The key that the request is about; None where it is about none.
        header: The envelope's wrapping header, where the request holds an envelope.
    """

    connection: Connection
    subject: Subject
    key: KeyName | None
    header: WrappingHeader | None


class Guard:
    """Makes gRPC handlers out of servicer methods.

    Args:
        registry: The worker's open connections.
        identifier: Makes policy's view of a caller.
        policy: What is allowed.
        limits: Calls in flight.
        refusals: Where refusals are reported.
    """

    def __init__(
        self,
        *,
        registry: TicketRegistry,
        identifier: Identifier,
        policy: Policy,
        limits: CallLimits,
        refusals: RefusalLog,
    ) -> None:
        self._registry = registry
        self._identifier = identifier
        self._policy = policy
        self._limits = limits
        self._refusals = refusals

    def unary(
        self,
        method: Method,
        request_type: type[Message],
        serve: Callable[[Call, Any], Awaitable[Message]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for a unary RPC.

        Args:
            method: Its row.
            request_type: Its request message.
            serve: Called with the allowed call and the parsed request.
        """

        async def handle(data: bytes, context: StreamContext) -> Message:
            connection: Connection | None = None
            counted_uid: int | None = None
            try:
                connection = self._find(context)
                uid = connection.credential.uid
                self._limits.enter(uid)
                counted_uid = uid
                subject = self._identifier.known(connection)
                if subject is None:
                    subject = await self._identifier.identify(connection)
                if subject.standing is not None and not method.public:
                    raise Refused(subject.standing)  # noqa: TRY301
                request = _parse(request_type, data)
                call = self._authorise(method, connection, subject, request)
                return await serve(call, request)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  (the table names every kind)
                failure = self._fail(error, method, connection)
            finally:
                if counted_uid is not None:
                    self._limits.leave(counted_uid)
            await _abort(context, failure)
            raise AssertionError("abort always raises")

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=None, response_serializer=_serialise
        )

    def stream(
        self,
        method: Method,
        serve: Callable[[Any, StreamContext], Awaitable[None]],
        request_deserializer: Callable[[bytes], Any],
        *,
        request_streaming: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for an RPC that answers with a stream and is about no key.

        Args:
            method: Its row.
            serve: Gets the request (or the iterator of requests) and the context to write to.
            request_deserializer: Parses one request.
            request_streaming: Whether the RPC takes a stream.
        """

        async def handle(requests: Any, context: StreamContext) -> None:
            connection: Connection | None = None
            counted_uid: int | None = None
            try:
                connection = self._find(context)
                self._limits.enter(connection.credential.uid)
                counted_uid = connection.credential.uid
                subject = await self._identifier.identify(connection)
                reason = self._policy.decide(subject, method.operation, None)
                if reason is not None:
                    raise Refused(reason)  # noqa: TRY301
                await serve(requests, context)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001
                failure = self._fail(error, method, connection)
            else:
                return
            finally:
                if counted_uid is not None:
                    self._limits.leave(counted_uid)
            await _abort(context, failure)

        make = (
            grpc.stream_stream_rpc_method_handler
            if request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(
            handle, request_deserializer=request_deserializer, response_serializer=_serialise
        )

    def refuse_with_reason(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler that says why, whatever is called; it parses nothing that was sent.

        Args:
            method: The RPC's full name.
        """

        async def handle(_requests: AsyncIterator[bytes], context: StreamContext) -> None:
            connection: Connection | None = None
            try:
                connection = self._find(context)
                subject = await self._identifier.identify(connection)
                if self._policy.is_allowed_anything(subject):
                    loop = asyncio.get_running_loop()
                    loop.call_later(_CLOSE_BEHIND_S, connection.close)
                    raise PolicyChanged  # noqa: TRY301
                raise Refused(subject.standing or subject.person or Reason.NOT_ALLOWED)  # noqa: TRY301
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001
                failure = self._fail(error, method, connection)
            await _abort(context, failure)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _find(self, context: StreamContext) -> Connection:
        connection = self._registry.find(context.peer())
        if connection is None:
            raise Refused(Reason.PEER_UNKNOWN)
        return connection

    def _authorise(
        self, method: Method, connection: Connection, subject: Subject, request: Any
    ) -> Call:
        key: KeyName | None = None
        header: WrappingHeader | None = None
        try:
            if method.key_from is KeyFrom.ENVELOPE:
                header = parse_wrapping_header(request.envelope)
                key = header.key_name
            elif method.key_from is KeyFrom.KEY_FIELD:
                key = parse_key_name(request.key)
            elif method.key_from is KeyFrom.NAME_FIELD:
                key = parse_key_name(request.name)
        except Exception:
            # Who may do this with no key at all is told so first.
            reason = self._policy.decide(subject, method.operation, None)
            if reason not in {None, Reason.NOT_ALLOWED}:
                raise Refused(reason) from None
            raise
        reason = self._policy.decide(subject, method.operation, key)
        if reason is not None:
            raise Refused(reason)
        return Call(connection, subject, key, header)

    def _fail(
        self, error: Exception, method: Method | str, connection: Connection | None
    ) -> Failure:
        path = method if isinstance(method, str) else method.path
        failure = describe_failure(error, path)
        if isinstance(error, Refused):
            self._refusals.note(connection, path, error.reason)
        elif isinstance(error, EnvelopeRejected):
            event(
                _log,
                logging.DEBUG,
                "envelope rejected",
                uid=connection.credential.uid if connection else None,
            )
        return failure


def _parse(request_type: type[Message], data: bytes) -> Message:
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise BadRequest("request", f"is not a {request_type.DESCRIPTOR.full_name}") from None


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


async def _abort(context: StreamContext, failure: Failure) -> None:
    await context.abort(
        failure.code, failure.text, trailing_metadata=((DETAILS_KEY, failure.details()),)
    )
