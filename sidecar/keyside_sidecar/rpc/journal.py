"""What the audit log is told of each RPC, and when.

A service's call leaves one record, written behind. What a person does leaves two: what is asked
for, before it takes effect, and what came of it, before anything is answered (I8). The second is
written, and the work goes on to its end, even if the caller goes away in between: gRPC cancels the
caller's task, not the one that does the work.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyside.envelope.context import MAX_CONTEXT_NAME_BYTES, MAX_CONTEXT_PAIRS
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import (
    REFUSALS,
    AuditUnavailable,
    Refused,
)
from keyside_sidecar.rpc import methods
from keyside_sidecar.rpc.allowance import Allowance
from keyside_sidecar.rpc.descriptions import (
    describe_data_key,
    describe_request,
    describe_response,
)
from keyside_sidecar.rpc.served import write_served
from keyside_sidecar.rpc.status import Described, describe_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.peer.identity import Identifier
    from keyside_sidecar.rpc.calls import Slot
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.methods import Method

T = TypeVar("T")

_SETTLE_S: Final = 1.0
# What a person may do about requests, and how often use a grant in vain.
_USE: Final = "use"
_BURST: Final = 100
_PER_SECOND: Final = 2
_DATA_KEYS: Final = frozenset({methods.GENERATE_DATA_KEY, methods.DECRYPT_DATA_KEY})


@dataclass(slots=True)
class Action:
    """Something that a person does, on its way.

    Args:
        facts: What both its records say.
        event: What the log calls it.
    """

    facts: dict[str, object]
    event: str


class Journal:
    """Records calls.

    Args:
        audit: The way to the audit log.
        identifier: For the callers' account names.
        read_generation: Says how far the store has come, as this process knows it: so that the log
            tells a store that is put back later.
        clock: For how much one person may ask.
    """

    def __init__(
        self,
        audit: AuditSender,
        identifier: Identifier,
        read_generation: Callable[[], tuple[str, int]],
        clock: Clock,
    ) -> None:
        self._audit = audit
        self._identifier = identifier
        self._read_generation = read_generation
        self._patience = Allowance(clock, burst=_BURST, per_second=_PER_SECOND)
        self._under_way: set[asyncio.Task[Any]] = set()

    async def keep_call(
        self,
        call: Call,
        method: Method,
        request: Any,
        serve: Callable[[Call, Any], Awaitable[T]],
    ) -> T:
        """Serve a service's call, and record it.

        Raises:
            AuditUnavailable: The log fails, and the configuration says that nothing is served
                unrecorded. Nothing was done.
            Described: The call failed; that was recorded.
        """
        self._audit.require_service_calls()
        try:
            response = await serve(call, request)
        except asyncio.CancelledError:
            self.note_cancelled(call, method, request)
            raise
        except Exception as error:
            failure = describe_failure(error, method.path)
            outcome = "refused" if isinstance(error, REFUSALS) else "failed"
            self._note(call, method, request, None, outcome=outcome, reason=failure.reason)
            raise Described(failure) from error
        written = (
            write_served(call, method, request, response, self._identifier.describe)
            if self._audit.takes_each
            else None
        )
        if written is None:
            self._note(call, method, request, response, outcome="ok")
        else:
            self._audit.note_text(written)
        return response

    def note_cancelled(self, call: Call, method: Method, request: Any) -> None:
        """Record that a service's call was broken off; it has no answer."""
        self._note(call, method, request, None, outcome="failed", reason="CANCELLED")

    async def keep_action(
        self,
        call: Call,
        method: Method,
        request: Any,
        serve: Callable[[Call, Any], Awaitable[T]],
    ) -> T:
        """Record what a person asks for, do it, and record what came of it (I8).

        Raises:
            AuditUnavailable: It could not be recorded: nothing was done, or what was done is not
                answered.
            Described: It failed; that was recorded.
        """
        if method.service == methods.ACCESS_SERVICE:
            self.require_patience(call, method.name)
            self._patience.charge((call.connection.credential.uid, method.name))
        facts = {**self._facts_of(call), **describe_request(method, request)}
        action = Action(facts, method.event)

        async def work() -> T:
            return await serve(call, request)

        return await self._shielded(call, self._act(action, method, work))

    def require_patience(self, call: Call, what: str = _USE) -> None:
        """Refuse whoever has asked for much lately, or in vain, before that is recorded again.

        What a person does is two lines on the disk each time, however little comes of it.

        Args:
            call: Whose.
            what: Counted apart, so that nobody is kept from revoking by what they did before.

        Raises:
            Refused: TOO_OFTEN.
        """
        if not self._patience.has_some((call.connection.credential.uid, what)):
            raise Refused(Reason.TOO_OFTEN)

    async def keep_use(
        self,
        call: Call,
        method: Method,
        request: Any,
        *,
        grant_id: str,
        serve: Callable[[], Awaitable[T]],
    ) -> T:
        """Record a use of a grant, or its uses for a batch, as :meth:`keep_action` does.

        Args:
            call: The call.
            method: Its row.
            request: The request.
            grant_id: The grant.
            serve: Opens, and has the use counted, before it returns.

        Raises:
            AuditUnavailable: As for :meth:`keep_action`.
            Described: It failed; that was recorded.
        """
        facts = {
            **self._facts_of(call),
            **_facts_of_request(call, method, request),
            "access": grant_id,
            "details": {"operation": method.operation.value},
        }

        batch = call.batch

        async def work() -> T:
            whose = (call.connection.credential.uid, _USE)
            try:
                response = await serve()
            except Exception:
                self._patience.charge(whose)
                raise
            if batch is None or batch.uses:
                self._patience.refill(whose)
            else:
                self._patience.charge(whose)
            return response

        tell = None if batch is None else batch.tally.describe
        return await self._shielded(
            call, self._act(Action(facts, "access.use"), method, work, tell)
        )

    async def settle(self) -> None:
        """Wait for what is under way, for a while: its outcome belongs into the log.

        What takes longer is left, and the log says that its outcome is not known.
        """
        if self._under_way:
            _, late = await asyncio.wait(tuple(self._under_way), timeout=_SETTLE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _shielded(self, call: Call, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        if call.slot is not None:  # counted until it is done, whatever becomes of the caller
            call.slot.hold()
            task.add_done_callback(partial(_leave, call.slot))
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _act(
        self,
        action: Action,
        method: Method,
        serve: Callable[[], Awaitable[T]],
        tell: Callable[[], dict[str, object]] | None = None,
    ) -> T:
        action.facts["request_id"] = secrets.token_hex(8)
        await self._record(action, phase="intent")
        try:
            response = await serve()
        except asyncio.CancelledError:  # the sidecar ends; it may have taken effect
            lost = {"phase": "outcome", "outcome": "failed", "reason": "OUTCOME_UNKNOWN"}
            self._audit.note({"event": action.event, **action.facts, **lost})
            raise
        except Exception as error:
            failure = describe_failure(error, method.path)
            outcome = "refused" if isinstance(error, REFUSALS) else "failed"
            await self._record(action, phase="outcome", outcome=outcome, reason=failure.reason)
            raise Described(failure) from error
        told = describe_response(method, response) if tell is None else tell()
        store_id, generation = self._read_generation()
        stored = {"store_id": store_id, "store_generation": generation}
        told = {**told, "details": {**_mapping(told.get("details")), **stored}}
        await self._record(action, phase="outcome", outcome="ok", told=told)
        return response

    async def _record(
        self, action: Action, *, told: Mapping[str, object] | None = None, **facts: object
    ) -> None:
        body = {"event": action.event, **action.facts, **facts}
        if told:
            details = {**_mapping(body.get("details")), **_mapping(told.get("details"))}
            body |= told
            if details:
                body["details"] = details
        try:
            await self._audit.record(body)
        except AuditUnavailable as error:
            raise AuditUnavailable(done=facts.get("outcome") == "ok") from error

    def _note(
        self, call: Call, method: Method, request: Any, response: Any, **facts: object
    ) -> None:
        told = {**_facts_of_request(call, method, request, response), **facts}
        if call.batch is not None and response is not None:
            told |= call.batch.tally.describe()
        self._audit.note({"event": method.event, **self._facts_of(call), **told})

    def _facts_of(self, call: Call) -> dict[str, object]:
        facts: dict[str, object] = {"caller": self._identifier.describe(call.connection)}
        if call.key is not None:
            facts["key"] = call.key
        return facts


def _leave(slot: Slot, _task: asyncio.Task[Any]) -> None:
    slot.leave()


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def _facts_of_request(
    call: Call, method: Method, request: Any, response: Any = None
) -> dict[str, object]:
    if call.batch is not None:
        return {"count": len(request.items)}
    if method in _DATA_KEYS:
        return describe_data_key(call, request, response)
    return _facts_of_envelope(call, request, response)


def _facts_of_envelope(call: Call, request: Any, response: Any) -> dict[str, object]:
    """Return version, digest and context names of an encryption call, as far as they are known.

    The digest is of the envelope that came in; of the one that was made, with Encrypt.
    """
    facts: dict[str, object] = {}
    fields = type(request).DESCRIPTOR.fields_by_name
    if "envelope" in fields:
        facts["digest"] = hashlib.sha256(request.envelope).hexdigest()
    elif response is not None:
        facts["digest"] = hashlib.sha256(response.envelope).hexdigest()
    if call.header is not None:
        facts["version"] = int(call.header.version_number)
    elif response is not None:
        facts["version"] = response.version.number
    if "context" in fields and request.context:
        # What no context may have is refused, and not worth keeping.
        names = sorted(name for name in request.context if len(name) <= MAX_CONTEXT_NAME_BYTES)
        facts["context"] = names[:MAX_CONTEXT_PAIRS]
    if response is not None and "previous" in type(response).DESCRIPTOR.fields_by_name:
        facts["details"] = {
            "new_version": response.version.number,
            "new_digest": hashlib.sha256(response.envelope).hexdigest(),
        }
    return facts
