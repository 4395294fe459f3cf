"""Record: what the audit log is told of a call, and when (entries.py, actions.py).

What a person does goes on to its end, and is recorded, even if the caller goes away in between: the
caller's task is cancelled, not the one that does the work (under_way.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from keyside_sidecar.server.actions import ActionEntry, UseEntry
from keyside_sidecar.server.call import Keeps
from keyside_sidecar.server.entries import CallEntry, NoEntry
from keyside_sidecar.services.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.audit.sender import AuditSender
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.server.call import Call
    from keyside_sidecar.server.entries import Entry

# What a person may do about requests, and how often use a grant in vain.
_BURST: Final = 100
_PER_SECOND: Final = 2


class Recorder:
    """Makes the entries of calls.

    Args:
        audit: The way to the audit log.
        read_generation: Says how far the store has come, as this process knows it: so that the log
            tells a store that is put back later.
        clock: For how much one person may ask.
    """

    def __init__(
        self,
        audit: AuditSender,
        read_generation: Callable[[], tuple[str, int]],
        clock: Clock,
    ) -> None:
        self._audit = audit
        self._read_generation = read_generation
        self._patience = Allowance(clock, burst=_BURST, per_second=_PER_SECOND)
        # What the log calls a caller, as JSON.
        self._described: WeakKeyDictionary[Caller, str] = WeakKeyDictionary()

    def open(self, call: Call) -> Entry:
        """Return the entry of a call.

        Raises:
            Refused: TOO_OFTEN: what a person does is two lines on the disk each time, however
                little comes of it, so whoever has asked for much lately, or in vain, is refused.
        """
        if call.use is not None:
            return UseEntry(self._audit, call, self._read_generation, self._patience)
        if call.rpc.keeps is Keeps.CALL:
            return CallEntry(self._audit, call, self._described)
        if call.rpc.keeps is Keeps.ACTION:
            return ActionEntry(self._audit, call, self._read_generation, self._patience)
        return NoEntry()
