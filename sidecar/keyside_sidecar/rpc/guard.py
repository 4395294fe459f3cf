"""Stands before every RPC: finds the caller, asks policy, and turns errors into statuses.

A call takes these steps, and a servicer is reached only when all of them passed:

1. ``context.peer()`` is looked up as a ticket; an address that isn't registered is refused (I2).
2. The call is counted against the limits.
3. The caller's groups are what the name service says now (I1); policy's view of the caller is
   made from them.
4. The request is parsed, and the key that it is about is read from it.
5. Policy decides. Where it refuses a person who sends a temporary credential, the grant behind that
   decides instead (rpc/granted.py), and the use is counted before anything is answered.
6. The journal records it: a service's call afterwards, a person's action before and afterwards.
   The servicer gets the request, the caller and the key.

A batch is refused as a whole where policy allows the caller no key at all (or the credential is no
good); otherwise its servicer asks for each item's key, and each item answers for itself.

On a connection of a caller who was allowed nothing when it connected, only public RPCs exist.
Anything else is answered with the reason. If policy or membership allows the caller by now, it is
asked to connect again (UNAVAILABLE), and the connection is closed behind the answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from keyside.envelope import WrappingHeader, parse_wrapping_header
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import (
    REFUSALS,
    BadRequest,
    MessageTooLarge,
    Refused,
)
from keyside_sidecar.rpc.batch import Batch
from keyside_sidecar.rpc.fields import read_key_name
from keyside_sidecar.rpc.items import require_countable
from keyside_sidecar.rpc.methods import Kept, KeyFrom, Method
from keyside_sidecar.rpc.status import DETAILS_KEY, Failure, PolicyChanged, describe_failure
from keyside_sidecar.rpc.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from keyside.names import KeyName
    from keyside_sidecar.access.policy import Policy, Subject
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.peer.tickets import TicketRegistry
    from keyside_sidecar.rpc.arrivals import Arrivals
    from keyside_sidecar.rpc.calls import Limits, Slot
    from keyside_sidecar.rpc.granted import GrantedCalls
    from keyside_sidecar.rpc.journal import Journal
    from keyside_sidecar.rpc.refusals import RefusalLog
    from keyside_sidecar.rpc.turns import Turns

# The connection is closed this long after the status was sent, so that the status arrives first.
_CLOSE_BEHIND_S: Final = 0.2
# How long a call's message may take to arrive.
_RECEIVE_S: Final = 10
_PUBLIC_RECEIVE_S: Final = 2

# What a caller sends its temporary credential as.
CREDENTIAL_KEY: Final = "keyside-credential"
_GRANT_HELPS: Final = frozenset({Reason.PEER_PERSON_LOGIN, Reason.NOT_ALLOWED})

T = TypeVar("T")

StreamContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Call:
    """An RPC that policy has allowed.

    Args:
        connection: Who calls.
        subject: Policy's view of the caller, from the groups that it has now.
        key: The key that the request is about; None where it is about none.
        header: The envelope's wrapping header, where the request holds an envelope.
        batch: How the items of a batch are judged, and what became of them.
        slot: The call's place among those in flight.
    """

    connection: Connection
    subject: Subject
    key: KeyName | None
    header: WrappingHeader | None
    batch: Batch | None = None
    slot: Slot | None = None


class Guard:
    """Makes gRPC handlers out of servicer methods.

    Args:
        registry: The worker's open connections.
        identifier: Makes policy's view of a caller.
        policy: What is allowed.
        limits: Calls in flight.
        refusals: Where refusals are reported.
        arrivals: Receives messages under a time limit.
        journal: Records calls.
        granted: Serves people who hold a grant.
        turns: Says when batches are received and worked on.
        max_call_bytes: The longest message of a call that is no batch.
        max_batch_bytes: How much a batch's items may have in all, to be told.
    """

    def __init__(
        self,
        *,
        registry: TicketRegistry,
        identifier: Identifier,
        policy: Policy,
        limits: Limits,
        refusals: RefusalLog,
        arrivals: Arrivals,
        journal: Journal,
        granted: GrantedCalls,
        turns: Turns,
        max_call_bytes: int,
        max_batch_bytes: int,
    ) -> None:
        self._registry = registry
        self._identifier = identifier
        self._policy = policy
        self._limits = limits
        self._refusals = refusals
        self._arrivals = arrivals
        self._journal = journal
        self._granted = granted
        self._max_call_bytes = max_call_bytes
        self._max_batch_bytes = max_batch_bytes
        self._turns = turns

    def unary(
        self,
        method: Method,
        request_type: type[Message],
        serve: Callable[[Call, Any], Awaitable[Message]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for a unary RPC.

        To gRPC it is one that takes a stream, which looks the same to a caller: so the call is
        counted, and its time limit runs, before its message is received. Otherwise messages that
        never end would hold memory that no limit counts.

        Args:
            method: Its row.
            request_type: Its request message.
            serve: Called with the allowed call and the parsed request.
        """
        path, turns = method.path, self._turns
        # What people do, and probes, may take long. (A use of a grant counts as a short call, but
        # only for a moment.)
        is_short = method.kept is Kept.CALL

        async def answer(
            _requests: object, context: StreamContext, caller: Connection, slot: Slot
        ) -> Message:
            turns.expect_short()
            data = await self._receive(context, caller)
            if is_short:
                turns.begin_short()
            try:
                subject = self._identifier.known(caller)
                if subject is None:
                    subject = await self._identifier.identify(caller)
                if subject.standing is not None and not method.public:
                    raise Refused(subject.standing)
                if len(data) > self._max_call_bytes:
                    raise MessageTooLarge(len(data), self._max_call_bytes)
                request = _parse(request_type, data)
                call = self._read(method, caller, subject, request, context=context, slot=slot)
                return await self._answer(method, call, request, context, serve)
            finally:
                if is_short:
                    turns.end_short()

        async def handle(requests: object, context: StreamContext) -> bytes:
            response = await self._attend(path, requests, context, answer)
            data = response.SerializeToString()
            # What else has arrived by now is worked on before gRPC is given the answers (ADR 13);
            # an answer that no other one could join leaves at once.
            if turns.short:
                await asyncio.sleep(0)
            return data

        return grpc.stream_unary_rpc_method_handler(handle, request_deserializer=None)

    def _answer(
        self,
        method: Method,
        call: Call,
        request: Any,
        context: StreamContext,
        serve: Callable[[Call, Any], Awaitable[Message]],
    ) -> Awaitable[Message]:
        """Ask policy, and then the grant behind a credential, whether a call is served.

        Raises:
            Refused: It is not.
        """
        caller, subject, question = call.connection, call.subject, (method.path, call.key)
        if caller.decided_for is subject and question in caller.decided:
            return self._serve(method, call, request, serve)
        reason = self._decide(caller, subject, method, question)
        if reason is None:
            return self._serve(method, call, request, serve)
        credential = _find_credential(context, method, reason)
        if credential is None:
            raise Refused(reason)
        return self._granted.serve(method, call, request, credential, serve)

    def batch(
        self,
        method: Method,
        request_type: type[Message],
        serve: Callable[[Call, Any], Awaitable[bytes]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for a batch: as :meth:`unary`, but each item is judged by itself.

        Args:
            method: Its row.
            request_type: Its request message.
            serve: Called with the call, whose ``batch`` judges items, and the parsed request;
                returns the serialised response.
        """

        async def answer(
            _requests: object, context: StreamContext, caller: Connection, slot: Slot
        ) -> bytes:
            uid = caller.credential.uid
            await self._turns.enter(uid)
            slot.then(partial(self._turns.leave, uid))
            data = await self._receive(context, caller)
            subject = await self._identifier.identify(caller)
            reason = self._policy.decide_for_any(subject, method.operation)
            credential = _find_credential(context, method, reason or Reason.NOT_ALLOWED)
            if reason is not None and credential is None:
                raise Refused(reason)
            doing = serve
            decide = cache(partial(self._policy.decide, subject, method.operation))
            batch = Batch(decide, Tally(method.path))
            call = Call(caller, subject, None, None, batch, slot)
            try:
                await require_countable(data, request_type, self._max_batch_bytes, self._turns)
                request = _parse(request_type, data)
            except BadRequest as error:  # not without a record
                request, doing = request_type(), _refuse_with(error)
            except asyncio.CancelledError:
                if credential is None:
                    self._journal.note_cancelled(call, method, request_type())
                raise
            if credential is None:
                return await self._serve(method, call, request, doing)
            return await self._granted.serve_batch(method, call, request, credential, doing)

        async def handle(requests: object, context: StreamContext) -> bytes:
            return await self._attend(method.path, requests, context, answer)

        return grpc.stream_unary_rpc_method_handler(
            handle, request_deserializer=None, response_serializer=_serialise
        )

    def watch(
        self,
        method: Method,
        request_type: type[Message],
        serve: Callable[[Any, StreamContext], Awaitable[None]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for an RPC that answers one request with a stream, about no key.

        Args:
            method: Its row.
            request_type: Its request message.
            serve: Gets the parsed request and the context to write to.
        """

        async def answer(
            _requests: object, context: StreamContext, connection: Connection, _slot: Slot
        ) -> None:
            data = await self._receive(context, connection)
            await serve(_parse(request_type, data), context)

        return self._stream(method, answer)

    def converse(
        self,
        method: Method,
        request_type: type[Message],
        serve: Callable[[AsyncIterator[Any], StreamContext], Awaitable[None]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler for an RPC with a stream each way, about no key.

        Args:
            method: Its row. Policy is asked again at each request (I1).
            request_type: Its request message.
            serve: Gets the parsed requests and the context to write to.
        """

        async def answer(
            requests: AsyncIterator[bytes],
            context: StreamContext,
            connection: Connection,
            _slot: Slot,
        ) -> None:
            await serve(self._check_each(requests, request_type, method, connection), context)

        return self._stream(method, answer)

    def _stream(
        self,
        method: Method,
        answer: Callable[[AsyncIterator[bytes], StreamContext, Connection, Slot], Awaitable[None]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def check_and_answer(
            requests: AsyncIterator[bytes],
            context: StreamContext,
            connection: Connection,
            slot: Slot,
        ) -> None:
            subject = await self._identifier.identify(connection)
            reason = self._policy.decide(subject, method.operation, None)
            if reason is not None:
                raise Refused(reason)
            await answer(requests, context, connection, slot)

        async def handle(requests: AsyncIterator[bytes], context: StreamContext) -> None:
            await self._attend(method.path, requests, context, check_and_answer, lasting=True)

        return grpc.stream_stream_rpc_method_handler(
            handle, request_deserializer=None, response_serializer=_serialise
        )

    def refuse_with_reason(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler that says why, whatever is called; it receives nothing that was sent.

        Args:
            method: The RPC's full name.
        """

        async def answer(
            _requests: object, _context: StreamContext, caller: Connection, _slot: Slot
        ) -> None:
            subject = await self._identifier.identify(caller)
            if self._policy.is_allowed_anything(subject):
                asyncio.get_running_loop().call_later(_CLOSE_BEHIND_S, caller.close)
                raise PolicyChanged
            raise Refused(subject.standing or subject.person or Reason.NOT_ALLOWED)

        async def handle(requests: object, context: StreamContext) -> None:
            await self._attend(method, requests, context, answer)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _attend(
        self,
        path: str,
        requests: Any,
        context: StreamContext,
        answer: Callable[[Any, StreamContext, Connection, Slot], Awaitable[T]],
        *,
        lasting: bool = False,
    ) -> T:
        """Find the caller, count the call, answer it, and turn what goes wrong into its status."""
        connection: Connection | None = None
        slot: Slot | None = None
        try:
            connection = self._find(context)
            slot = self._limits.enter(connection, lasting=lasting)
            return await answer(requests, context, connection, slot)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  (the table names every kind)
            failure = describe_failure(error, path)
            if isinstance(error, REFUSALS):  # one that the journal has not recorded
                self._refusals.note(connection, path, failure.reason)
        finally:
            if slot is not None:
                slot.leave()
        await _abort(context, failure)
        raise AssertionError("abort always raises")

    async def _check_each(
        self,
        requests: AsyncIterator[bytes],
        request_type: type[Message],
        method: Method,
        connection: Connection,
    ) -> AsyncIterator[Message]:
        async for data in requests:
            subject = await self._identifier.identify(connection)
            reason = self._policy.decide(subject, method.operation, None)
            if reason is not None:
                raise Refused(reason)
            yield _parse(request_type, data)

    def _decide(
        self,
        caller: Connection,
        subject: Subject,
        method: Method,
        question: tuple[str, KeyName | None],
    ) -> Reason | None:
        """Ask policy, and remember what it allows for as long as the caller's Subject is the same.

        The policy is the worker's for life, and only keys that it names are remembered.
        """
        if caller.decided_for is not subject:
            caller.decided, caller.decided_for = set(), subject
        key = question[1]
        reason = self._policy.decide(subject, method.operation, key)
        if reason is None and (key is None or key in self._policy.keys):
            caller.decided.add(question)
        return reason

    def _receive(self, context: StreamContext, connection: Connection) -> Awaitable[bytes]:
        limit_s = _PUBLIC_RECEIVE_S if connection.public_only else _RECEIVE_S
        return self._arrivals.receive(context, limit_s)

    def _find(self, context: StreamContext) -> Connection:
        connection = self._registry.find(context.peer())
        if connection is None:
            raise Refused(Reason.PEER_UNKNOWN)
        return connection

    def _serve(
        self,
        method: Method,
        call: Call,
        request: Any,
        serve: Callable[[Call, Any], Awaitable[T]],
    ) -> Awaitable[T]:
        if method.kept is Kept.CALL:
            return self._journal.keep_call(call, method, request, serve)
        if method.kept is Kept.ACTION:
            return self._journal.keep_action(call, method, request, serve)
        return serve(call, request)

    def _read(
        self,
        method: Method,
        connection: Connection,
        subject: Subject,
        request: Any,
        *,
        context: StreamContext,
        slot: Slot,
    ) -> Call:
        """Read which key a request is about.

        Raises:
            BadRequest: It names none.
            EnvelopeRejected: Its envelope has no header.
            Refused: Whatever it named, the caller may not do this.
        """
        key: KeyName | None = None
        header: WrappingHeader | None = None
        try:
            if method.key_from is KeyFrom.ENVELOPE:
                header = parse_wrapping_header(request.envelope)
                key = header.key_name
            elif method.key_from is KeyFrom.KEY_FIELD:
                key = read_key_name(request.key, "key")
            elif method.key_from is KeyFrom.NAME_FIELD:
                key = read_key_name(request.name, "name")
            elif method.key_from is KeyFrom.WRAPPED_FIELD:
                header = parse_wrapping_header(request.wrapped)
                key = header.key_name
        except Exception:
            # Who may do this with no key at all is told so first.
            reason = self._policy.decide(subject, method.operation, None)
            if (
                reason not in {None, Reason.NOT_ALLOWED}
                and _find_credential(context, method, reason) is None
            ):
                raise Refused(reason) from None
            raise
        return Call(connection, subject, key, header, slot=slot)


def _find_credential(context: StreamContext, method: Method, reason: Reason | None) -> str | None:
    """Return the temporary credential that came with a call which policy alone refuses.

    None where no grant could help: an operator never uses keys, and some operations are not to be
    granted.
    """
    if not method.grantable or reason not in _GRANT_HELPS:
        return None
    for name, value in context.invocation_metadata() or ():
        if name == CREDENTIAL_KEY:
            return value if isinstance(value, str) else None
    return None


def _parse(request_type: type[Message], data: bytes) -> Message:
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise BadRequest("request", f"is not a {request_type.DESCRIPTOR.full_name}") from None


def _refuse_with(error: BadRequest) -> Callable[[Call, Any], Awaitable[bytes]]:
    async def refuse(_call: Call, _request: Any) -> bytes:
        raise error

    return refuse


def _serialise(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _abort(context: StreamContext, failure: Failure) -> None:
    await context.abort(
        failure.code, failure.text, trailing_metadata=((DETAILS_KEY, failure.details()),)
    )
