"""Entries of calls on their way into the audit log.

An *entry* is one call::

    begun ──► ended          what came of it is recorded
         ├──► failed         why is recorded; the failure is described once, here
         └──► broken off     the caller went away, or the sidecar ends

A service's call leaves one record, written behind. What a person does leaves two (actions.py).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from keyside.audit import encode_json
from keyside_sidecar.errors import REFUSALS
from keyside_sidecar.server.call import BatchCall
from keyside_sidecar.services.encryption import Open, Opened, Seal, Sealed
from keyside_sidecar.services.failures import Described, describe_failure
from keyside_sidecar.services.shapes import merge

if TYPE_CHECKING:
    from weakref import WeakKeyDictionary

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.server.call import Call
    from keyside_sidecar.services.shapes import Facts, Result

# A record up to here can't hold a text or a list that is too long (audit/records.py).
_MAX_CHARACTERS: Final = 900


class Entry(Protocol):
    """A call on its way into the log."""

    async def begin(self) -> None:
        """Record that it is asked for, where that is recorded.

        Raises:
            AuditUnavailable: That could not be recorded, or its outcome could not be: nothing was
                done.
        """

    async def end(self, result: Result | None) -> None:
        """Record what came of it; a batch's outcomes are in its tally.

        Raises:
            AuditUnavailable: It could not be recorded, so it is not answered.
        """

    async def fail(self, error: Exception) -> Exception:
        """Record that it has failed; return what it fails with.

        Raises:
            AuditUnavailable: It could not be recorded.
        """

    def break_off(self) -> None:
        """Record that it was broken off, if anything was begun."""


class NoEntry:
    """Of what the log does not keep."""

    async def begin(self) -> None:
        """Do nothing."""

    async def end(self, result: Result | None) -> None:
        """Do nothing."""

    async def fail(self, error: Exception) -> Exception:
        """Return the error."""
        return error

    def break_off(self) -> None:
        """Do nothing."""


class CallEntry:
    """Of a service's call: one record, written behind."""

    __slots__ = ("_audit", "_call", "_described")

    def __init__(
        self, audit: AuditSender, call: Call, described: WeakKeyDictionary[Caller, str]
    ) -> None:
        self._audit = audit
        self._call = call
        self._described = described

    async def begin(self) -> None:
        """Record that it is asked for, where that is recorded."""
        self._audit.require_service_calls()

    async def end(self, result: Result | None) -> None:
        """Record what came of it."""
        written = self._write_at_once(result) if self._audit.takes_each else None
        if written is not None:
            self._audit.note_text(written)
        elif isinstance(self._call, BatchCall):
            self._note(self._call.batch.tally.describe())
        else:
            self._note({} if result is None else result.facts(), outcome="ok")

    async def fail(self, error: Exception) -> Exception:
        """Record that it has failed; return what it fails with."""
        failure = describe_failure(error, self._call.rpc.path)
        self._note({}, outcome=name_outcome(error), reason=failure.reason)
        return Described(failure)

    def break_off(self) -> None:
        """Record that it was broken off."""
        self._note({}, outcome="failed", reason="CANCELLED")

    def _note(self, told: Facts, **facts: object) -> None:
        body = {"event": self._call.rpc.event, **describe_call(self._call)}
        self._audit.note(merge(body, {**told, **facts}))

    def _write_at_once(self, result: Result | None) -> str | None:
        """Return the record of an answered Encrypt or Decrypt in one piece; None for other calls.

        It says what is made of any call, in the same form, for a fifth of the time: what a caller
        is called changes only with the caller, everything else is known to need no escaping, and
        nothing has to be gathered first.
        """
        call, command = self._call, self._call.command
        if isinstance(result, Sealed) and isinstance(command, Seal):
            envelope, version = result.envelope, int(result.version.number)
        elif isinstance(result, Opened) and isinstance(command, Open):
            envelope, version = command.envelope, int(command.header.version_number)
        else:
            return None
        caller = self._described.get(call.caller)
        if caller is None:
            caller = self._described[call.caller] = encode_json(call.caller.describe())
        context = f',"context":{encode_json(sorted(command.context))}' if command.context else ""
        text = (
            f'"event":"{call.rpc.event}","caller":{caller},"key":"{command.key}",'
            f'"digest":"{hashlib.sha256(envelope).hexdigest()}","version":{version}{context},'
            '"outcome":"ok"'
        )
        return text if len(text) <= _MAX_CHARACTERS else None


def describe_call(call: Call) -> Facts:
    """Return what every record of a call has: the caller, the key, and what is asked."""
    facts: Facts = {"caller": call.caller.describe()}
    if call.command.key is not None:
        facts["key"] = call.command.key
    return {**facts, **call.command.facts()}


def name_outcome(error: Exception) -> str:
    """Return what the log calls a call that ended with an error."""
    return "refused" if isinstance(error, REFUSALS) else "failed"
