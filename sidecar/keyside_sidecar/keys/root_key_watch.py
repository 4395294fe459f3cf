"""Watch of the root key where it is kept: what this process holds must be there for the next start.

A file that was overwritten, removed or cut short is otherwise noticed by the next process, when the
last one that held the good key is gone. So it is looked at every few seconds while one still does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import CustodyError, StoreUnavailable
from keyside_sidecar.keys.notices import Notice
from keyside_sidecar.keys.threads import StoreThreads
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.keys.notices import Tell
    from keyside_sidecar.store.trust import Trust

_log = logging.getLogger(__name__)

ROOT_KEY_NOT_KEPT: Final = "ROOT_KEY_NOT_KEPT"
_INTERVAL_S: Final = 5.0
_TIMEOUT_S: Final = 10.0
# While a root key is being rotated, another process may have the new one a moment earlier.
_DOUBT_S: Final = 1.0
_SAID_AGAIN_S: Final = 60.0
_REMEDY: Final = (
    "put the root key back from its backup now, with the owner and mode that it had; the only good "
    "copy may be in the memory of this sidecar: until this problem is gone, don't restart, reload "
    "or stop it, nor its host"
)


class RootKeyWatch:
    """Looks at the root key in use, where its custodian keeps it.

    Args:
        trust: The store's, which follows a rotation.
        clock: Tells the time.
        tell: Told of a problem and of its end.
    """

    def __init__(self, trust: Trust, clock: Clock, tell: Tell) -> None:
        self._trust = trust
        self._clock = clock
        self._tell = tell
        self._threads = StoreThreads("keyside-root-key", 1)
        self._said_s = float("-inf")
        self.problem: Notice | None = None

    async def run(self) -> None:
        """Look for ever."""
        try:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                await self.look()
        finally:
            self._threads.close()

    async def look(self) -> None:
        """Look once; twice where something seems to be wrong."""
        fault = await self._find_fault()
        if fault and self.problem is None:
            await asyncio.sleep(_DOUBT_S)
            fault = await self._find_fault()
        if fault:
            self._raise_alarm(fault)
        elif self.problem is not None:
            event(_log, logging.WARNING, "the root key is kept again", since=self.problem.since)
            self._tell("store.sound", {"outcome": "ok", "reason": ROOT_KEY_NOT_KEPT})
            self.problem = None
            self._said_s = float("-inf")

    async def _find_fault(self) -> str:
        custodian = self._trust.custodian
        try:
            await self._threads.run(custodian.require_kept, timeout_s=_TIMEOUT_S)
        except CustodyError as error:
            return str(error)
        except StoreUnavailable:
            return "it can't be looked at: where it is kept does not answer"
        return ""

    def _raise_alarm(self, fault: str) -> None:
        """Say it at once, and again and again: it may be the last chance to save what is sealed."""
        since = self._clock.now() if self.problem is None else self.problem.since
        is_new = self.problem is None or self.problem.summary != fault
        self.problem = Notice(
            ROOT_KEY_NOT_KEPT,
            fault,
            _REMEDY,
            since,
            strangers="the root key is not where it should be kept",
        )
        if is_new:
            told = {"outcome": "failed", "reason": ROOT_KEY_NOT_KEPT, "details": {"why": fault}}
            self._tell("store.problem", told)
        now_s = self._clock.monotonic_s()
        if is_new or now_s - self._said_s >= _SAID_AGAIN_S:
            self._said_s = now_s
            event(
                _log,
                logging.ERROR,
                "the root key in use is not where it is kept",
                why=fault,
                what_to_do=_REMEDY,
                since=since,
            )
