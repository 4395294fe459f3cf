"""The pipeline: the way of every call, a step a file, the same for every front door.

1. **identify** finds the connection that the call came on; the kernel's word is all that counts.
2. **limit** counts it among those in flight.
3. **receive** takes its one message, within a time limit; a batch waits for its turn first.
4. **identify** again: the caller's groups are what the name service says now (I1).
5. **parse** makes a command of the message.
6. **authorise** asks policy; where that refuses a person who sent a credential, finds the grant.
7. **record** opens the call's entry in the log: an intent, where a person acts (I8).
8. **serve** has the service carry the command out; **grant** is checked before and counted after.
9. **record** ends the entry; only then is anything answered.

What fails on the way is described once (services/failures.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import REFUSALS, Refused
from keyside_sidecar.server.call import Keeps
from keyside_sidecar.server.pipeline.identify import find_connection, identify
from keyside_sidecar.server.pipeline.receive import limit_of
from keyside_sidecar.server.pipeline.serve import serve_batch, serve_unary
from keyside_sidecar.server.pipeline.stream import Stream
from keyside_sidecar.services.failures import Described, PolicyChanged, describe_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import TypeVar

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.peer.connection import Connection
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.server.call import (
        BatchCall,
        BatchRpc,
        Call,
        Exchange,
        StreamRpc,
        UnaryCall,
        UnaryRpc,
    )
    from keyside_sidecar.server.pipeline.authorise import Authoriser
    from keyside_sidecar.server.pipeline.grant import GrantUses
    from keyside_sidecar.server.pipeline.limit import Limits, Slot
    from keyside_sidecar.server.pipeline.parse import Parser
    from keyside_sidecar.server.pipeline.receive import Arrivals
    from keyside_sidecar.server.pipeline.record import Recorder
    from keyside_sidecar.server.refusals import RefusalLog
    from keyside_sidecar.server.under_way import UnderWay
    from keyside_sidecar.services.turns import Turns

    T = TypeVar("T")

# The connection is closed this long after the status was sent, so that the status arrives first.
_CLOSE_BEHIND_S: Final = 0.2


class Pipeline:
    """Takes calls through all steps.

    Args:
        identifier: Knows who a caller is now.
        limits: Counts calls in flight.
        arrivals: Receives messages.
        turns: Says when batches are received and worked on.
        parser: Reads messages.
        authoriser: Asks policy, and finds grants.
        recorder: Makes entries in the audit log.
        uses: Checks grants, and counts their uses.
        under_way: Finishes what people have begun.
        refusals: Where refusals are reported.
        policy: What is allowed.
    """

    def __init__(
        self,
        *,
        identifier: Identifier,
        limits: Limits,
        arrivals: Arrivals,
        turns: Turns,
        parser: Parser,
        authoriser: Authoriser,
        recorder: Recorder,
        uses: GrantUses,
        under_way: UnderWay,
        refusals: RefusalLog,
        policy: Policy,
    ) -> None:
        self._identifier = identifier
        self._policy = policy
        self._limits = limits
        self._arrivals = arrivals
        self._turns = turns
        self._parser = parser
        self._authoriser = authoriser
        self._recorder = recorder
        self._uses = uses
        self._under_way = under_way
        self._refusals = refusals

    async def answer(self, rpc: UnaryRpc, exchange: Exchange) -> bytes:
        """Return a call's response, serialised.

        Raises:
            Described: It failed.
        """
        return await self._attend(rpc.path, exchange, partial(self._answer, rpc, exchange))

    async def answer_batch(self, rpc: BatchRpc, exchange: Exchange) -> bytes:
        """Return a batch's response, serialised.

        Raises:
            Described: It failed as a whole.
        """
        return await self._attend(rpc.path, exchange, partial(self._answer_batch, rpc, exchange))

    async def answer_stream(self, rpc: StreamRpc, exchange: Exchange) -> None:
        """Let an RPC's messages be taken and sent, one by one.

        Raises:
            Described: It failed.
        """

        async def converse(connection: Connection, _slot: Slot) -> None:
            stream = Stream(
                rpc,
                exchange,
                connection,
                identifier=self._identifier,
                policy=self._policy,
                arrivals=self._arrivals,
            )
            await stream.check()
            await rpc.converse(stream)

        await self._attend(rpc.path, exchange, converse, lasting=True)

    async def refuse(self, path: str, exchange: Exchange) -> None:
        """Tell a caller who was allowed nothing when it connected why; nothing is received.

        Raises:
            Described: Always.
        """
        await self._attend(path, exchange, self._explain)

    async def _answer(
        self, rpc: UnaryRpc, exchange: Exchange, connection: Connection, slot: Slot
    ) -> bytes:
        self._turns.expect_short()
        data = await self._receive(exchange, connection)
        # What people do, and probes, may take long. (A use of a grant counts as a short call, but
        # only for a moment.)
        is_short = rpc.keeps is Keeps.CALL
        if is_short:
            self._turns.begin_short()
        try:
            caller = await identify(self._identifier, connection, rpc)
            message = self._parser.decode(rpc, data)
            try:
                command = rpc.read(message)
            except Exception:
                self._authoriser.refuse_unread(rpc, caller, exchange)
                raise
            call = await self._authoriser.authorise(rpc, caller, command, exchange)
            return await self._record(call, slot, self._carry_out(call))
        finally:
            if is_short:
                self._turns.end_short()

    async def _answer_batch(
        self, rpc: BatchRpc, exchange: Exchange, connection: Connection, slot: Slot
    ) -> bytes:
        uid = connection.caller.uid
        await self._turns.enter(uid)
        slot.then(partial(self._turns.leave, uid))
        data = await self._receive(exchange, connection)
        caller = await identify(self._identifier, connection, rpc)
        credential = self._authoriser.admit_batch(rpc, caller, exchange)
        call = self._authoriser.authorise_batch(rpc, caller)
        try:
            command = await self._parser.parse_batch(rpc, data)
        except asyncio.CancelledError:
            if credential is None:
                self._recorder.open(call).break_off()
            raise
        call = replace(call, command=command)
        if credential is not None:
            call = await self._authoriser.add_grant(call, credential)
        return await self._record(call, slot, self._carry_batch_out(call))

    def _record(self, call: Call, slot: Slot, work: Coroutine[Any, Any, bytes]) -> Awaitable[bytes]:
        """Have what a person does done to its end, and recorded, although the caller goes away."""
        if call.use is None and call.rpc.keeps is not Keeps.ACTION:
            return work
        return self._under_way.finish(work, slot)

    async def _carry_out(self, call: UnaryCall) -> bytes:
        entry = self._recorder.open(call)
        await entry.begin()
        try:
            result = await serve_unary(call, self._uses)
        except asyncio.CancelledError:
            entry.break_off()
            raise
        except Exception as error:
            raise await entry.fail(error) from error
        await entry.end(result)
        return call.rpc.write(result)

    async def _carry_batch_out(self, call: BatchCall) -> bytes:
        entry, response = self._recorder.open(call), call.rpc.make_sink()
        await entry.begin()
        try:
            await serve_batch(call, self._uses, response)
        except asyncio.CancelledError:
            entry.break_off()
            raise
        except Exception as error:
            raise await entry.fail(error) from error
        await entry.end(None)
        return response.serialise()

    async def _explain(self, connection: Connection, _slot: Slot) -> bytes:
        caller = await self._identifier.identify(connection.caller)
        reason = self._authoriser.explain_refusal(caller)
        if reason is None:
            asyncio.get_running_loop().call_later(_CLOSE_BEHIND_S, connection.close)
            raise PolicyChanged
        raise Refused(reason)

    def _receive(self, exchange: Exchange, connection: Connection) -> Awaitable[bytes]:
        return self._arrivals.receive(exchange.read(), limit_of(connection))

    async def _attend(
        self,
        path: str,
        exchange: Exchange,
        answer: Callable[[Connection, Slot], Awaitable[T]],
        *,
        lasting: bool = False,
    ) -> T:
        """Find the connection, count the call, answer it, and describe what goes wrong."""
        connection: Connection | None = None
        slot: Slot | None = None
        try:
            connection = find_connection(exchange)
            slot = self._limits.enter(connection, lasting=lasting)
            return await answer(connection, slot)
        except Exception as error:  # (the table names every kind)
            failure = describe_failure(error, path)
            if isinstance(error, REFUSALS):  # one that is not recorded yet
                self._refusals.note(self._name(connection), path, failure.reason)
            raise Described(failure) from error
        finally:
            if slot is not None:
                slot.leave()

    def _name(self, connection: Connection | None) -> Caller | None:
        """Return who a call's caller is, as far as that is known without waiting."""
        if connection is None:
            return None
        return self._identifier.known(connection.caller) or connection.caller
