"""Actions on their way into the audit log: what people do, and their uses of grants.

Each leaves two records: what is asked for, before it takes effect, and what came of it, before
anything is answered (I8). How much one person may ask, and use in vain, is limited here, because
each time it is two lines on the disk.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import AuditUnavailable, Refused
from keyside_sidecar.server.call import BatchCall
from keyside_sidecar.server.entries import describe_call, name_outcome
from keyside_sidecar.services.failures import Described, describe_failure
from keyside_sidecar.services.shapes import merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.server.call import Call
    from keyside_sidecar.services.allowance import Allowance
    from keyside_sidecar.services.shapes import Facts, Result

# What uses of a grant that come to nothing are counted as.
_USE: Final = "use"


class ActionEntry:
    """Of what a person does: an intent and an outcome, each on the disk before what follows."""

    def __init__(
        self,
        audit: AuditSender,
        call: Call,
        read_generation: Callable[[], tuple[str, int]],
        patience: Allowance,
    ) -> None:
        self._audit = audit
        self._call = call
        self._read_generation = read_generation
        self._patience = patience
        self._require_patience()
        self._event = self._name_event()
        self._facts = merge(describe_call(call), self._list_more_facts())

    async def begin(self) -> None:
        """Record that it is asked for, where that is recorded."""
        self._facts["request_id"] = secrets.token_hex(8)
        await self._record({}, "intent")

    async def end(self, result: Result | None) -> None:
        """Record what came of it."""
        told = self._describe_result(result)
        store_id, generation = self._read_generation()
        stored: Facts = {"details": {"store_id": store_id, "store_generation": generation}}
        await self._record(merge({"outcome": "ok", **told}, stored), "outcome", done=True)

    async def fail(self, error: Exception) -> Exception:
        """Record that it has failed; return what it fails with."""
        failure = describe_failure(error, self._call.rpc.path)
        told: Facts = {"outcome": name_outcome(error), "reason": failure.reason}
        await self._record(told, "outcome")
        return Described(failure)

    def break_off(self) -> None:
        """Record that nobody knows what came of it: the sidecar ends."""
        lost = {"phase": "outcome", "outcome": "failed", "reason": "OUTCOME_UNKNOWN"}
        self._audit.note({"event": self._event, **self._facts, **lost})

    def _require_patience(self) -> None:
        """Count what a person asks about requests: each RPC apart.

        So nobody is kept from revoking by what they did before.
        """
        if self._call.rpc.event.startswith("access."):
            self._require_some(self._call.rpc.name)
            self._patience.charge((self._call.caller.uid, self._call.rpc.name))

    def _require_some(self, what: str) -> None:
        if not self._patience.has_some((self._call.caller.uid, what)):
            raise Refused(Reason.TOO_OFTEN)

    def _name_event(self) -> str:
        return self._call.rpc.event

    def _list_more_facts(self) -> Facts:
        return {}

    def _describe_result(self, result: Result | None, /) -> Facts:
        return {} if result is None else result.facts()

    async def _record(self, told: Facts, phase: str, *, done: bool = False) -> None:
        body = {"event": self._event, **self._facts, "phase": phase}
        try:
            await self._audit.record(merge(body, told))
        except AuditUnavailable as error:
            raise AuditUnavailable(done=done) from error


class UseEntry(ActionEntry):
    """Of a use of a grant, or of its uses for a batch."""

    async def end(self, result: Result | None) -> None:
        """Record what came of it."""
        whose = (self._call.caller.uid, _USE)
        if isinstance(self._call, BatchCall) and not self._call.batch.uses:
            self._patience.charge(whose)
        else:
            self._patience.refill(whose)
        await super().end(result)

    async def fail(self, error: Exception) -> Exception:
        """Record that it has failed; return what it fails with."""
        self._patience.charge((self._call.caller.uid, _USE))
        return await super().fail(error)

    def _require_patience(self) -> None:
        self._require_some(_USE)

    def _name_event(self) -> str:
        return "access.use"

    def _list_more_facts(self) -> Facts:
        use = self._call.use
        grant = {} if use is None else {"access": use.grant_id}
        return {**grant, "details": {"operation": self._call.rpc.operation.value}}

    def _describe_result(self, _result: Result | None, /) -> Facts:
        if isinstance(self._call, BatchCall):
            return self._call.batch.tally.describe()
        return {}
