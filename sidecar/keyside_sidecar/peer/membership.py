"""Which groups an account is in now: the name service's answers, cached within bounds (I1).

An answer's age is counted from before its lookup *started*. What happens at each age::

    0 ───────────── ttl/2 ───────────── ttl ─────────────────────── stale_max ──────►
      used as it is │ used, and a new   │ a call waits for a new     │ never used
                    │ one is asked for  │ one; used only where that  │
                    │ in the background │ fails or takes too long    │

Why a removal takes effect within ttl. Let an account be removed from a group at R, and a call be
judged at U by an answer whose lookup started at S. If S >= R, the answer knows of the removal. If
S < R and the name service answers, the call is let through only while U - S < ttl, so
U < S + ttl < R + ttl. If the name service does not answer (it fails, or is slower than
``lookup_timeout_s`` or ttl), the same holds with stale_max. A failure counts for ``retry_after_s``:
calls in that time don't wait again, and the name service is taken to be away. Answers never
replace newer ones: a lookup that was given up and returns later is ignored if another was begun
after it. That there is no such account is an answer like any other, takes effect at once, and is
never used beyond ttl.

A lookup's life, one at most for each uid::

    ASKED ──answer──► done          ASKED ──too long──► LATE ──answer──► done
      └────failure──► failed                              └──given up──► forgotten

Used from one event loop. Lookups run in daemon threads, so that a directory that hangs holds up
neither the loop, nor other accounts' cached answers, nor the end of the process.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.log import event
from keyside_sidecar.peer.accounts import Account, NameServiceUnavailable
from keyside_sidecar.peer.lookups import GIVEN_UP_AFTER_S, LookupThreads

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from keyside_sidecar.clock import Clock

_log = logging.getLogger(__name__)

_THREADS: Final = 4
_MAX_ACCOUNTS: Final = 4096


class AccountSource(Protocol):
    """The name service, as far as membership needs it; called in threads."""

    def account(self, uid: int) -> Account | None:
        """Return the account of ``uid``; None where there certainly is none."""

    def group_ids(self, account: Account, relevant: Collection[int]) -> frozenset[int]:
        """Return the account's gids, complete as regards ``relevant``."""


@dataclass(frozen=True, slots=True)
class AccountGroups:
    """One answer: an account and the groups that it was in.

    Args:
        uid: The account's uid.
        name: Its name.
        gids: Its groups, the primary one too; certain as regards the relevant ones only.
    """

    uid: int
    name: str
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A definite answer. ``account`` is None where there is no such account."""

    number: int
    started_s: float
    account: AccountGroups | None


@dataclass(slots=True, eq=False)
class _Flight:
    """A lookup under way. ``settled`` is done when nobody should wait for it any longer."""

    number: int
    asked_s: float
    settled: asyncio.Future[None]
    late: bool = False


@dataclass(slots=True, eq=False)
class _Entry:
    uid: int
    verdict: _Verdict | None = None
    flight: _Flight | None = None
    retry_at_s: float = float("-inf")
    failing_since: datetime | None = None
    failed_s: float = field(default=float("-inf"))


class Membership:
    """Answers which groups an account is in, from memory where the answer is young enough.

    Args:
        name_service: Where answers come from.
        relevant_gids: The gids that policy names.
        ttl_s: For how long an answer is used. More than 0.
        stale_max_s: For how long the last answer is used while the name service is away. At least
            ``ttl_s``.
        clock: Counts ages; asked in threads too.
        threads: How many lookups run at once.
        lookup_timeout_s: How long a call waits for an answer (never longer than ``ttl_s``).
        retry_after_s: For how long after a failure no new lookup for the account is begun.
        max_accounts: How many accounts are remembered; the least recently used are forgotten.
    """

    def __init__(
        self,
        name_service: AccountSource,
        relevant_gids: Collection[int],
        ttl_s: float,
        stale_max_s: float,
        clock: Clock,
        *,
        threads: int = _THREADS,
        lookup_timeout_s: float = 2.0,
        retry_after_s: float = 1.0,
        max_accounts: int = _MAX_ACCOUNTS,
    ) -> None:
        if not 0 < ttl_s <= stale_max_s:
            raise ValueError("0 < ttl_s <= stale_max_s does not hold")
        self._name_service = name_service
        self._relevant_gids = frozenset(relevant_gids)
        self._ttl_s = ttl_s
        self._stale_max_s = stale_max_s
        self._clock = clock
        self._threads = LookupThreads(threads, clock)
        self._patience_s = min(lookup_timeout_s, ttl_s)
        self._retry_after_s = retry_after_s
        self._max_accounts = max_accounts
        self._entries: collections.OrderedDict[int, _Entry] = collections.OrderedDict()
        self._last_number = 0

    @property
    def outage_since(self) -> datetime | None:
        """Since when lookups have been failing; None where they don't, as far as is known.

        A failure that was followed by no other try counts for ``stale_max_s``.
        """
        forgotten_s = self._clock.monotonic_s() - self._stale_max_s
        return min(
            (
                entry.failing_since
                for entry in self._entries.values()
                if entry.failing_since is not None and entry.failed_s >= forgotten_s
            ),
            default=None,
        )

    def fresh(self, uid: int) -> AccountGroups | None:
        """Return the account's groups if that needs no waiting, else None. Call in the event loop.

        The same object is returned until there is a newer answer.
        """
        entry = self._entries.get(uid)
        if entry is None or entry.verdict is None:
            return None
        age_s = self._clock.monotonic_s() - entry.verdict.started_s
        if age_s >= self._ttl_s:
            return None
        if age_s >= self._ttl_s / 2:
            self._ask(entry)
        self._entries.move_to_end(uid)
        return entry.verdict.account

    async def identify(self, uid: int) -> AccountGroups:
        """Return the account's groups, after asking the name service where that is due.

        Raises:
            Refused: ACCOUNT_UNKNOWN, or NAME_SERVICE_UNAVAILABLE.
        """
        account = self.fresh(uid)
        if account is not None:
            return account
        entry = self._remember(uid)
        if entry.verdict is None or self._age_s(entry.verdict) >= self._ttl_s:
            flight = self._ask(entry)
            if flight is not None and not flight.late:
                # wait() leaves the future alone where this call is cancelled; others wait for it.
                await asyncio.wait((flight.settled,))
        return self._judge(entry.verdict)

    def close(self) -> None:
        """End the threads that aren't inside a call; begin no more lookups."""
        self._threads.close()

    def _judge(self, verdict: _Verdict | None) -> AccountGroups:
        if verdict is None:
            raise Refused(Reason.NAME_SERVICE_UNAVAILABLE)
        # Where the answer is older than ttl here, a newer one was asked for and did not come.
        age_s = self._age_s(verdict)
        if verdict.account is None:
            known = age_s < self._ttl_s
            raise Refused(Reason.ACCOUNT_UNKNOWN if known else Reason.NAME_SERVICE_UNAVAILABLE)
        if age_s >= self._stale_max_s:
            raise Refused(Reason.NAME_SERVICE_UNAVAILABLE)
        return verdict.account

    def _age_s(self, verdict: _Verdict) -> float:
        return self._clock.monotonic_s() - verdict.started_s

    def _remember(self, uid: int) -> _Entry:
        entry = self._entries.get(uid)
        if entry is None:
            entry = self._entries[uid] = _Entry(uid)
            while len(self._entries) > self._max_accounts:
                self._entries.popitem(last=False)
        self._entries.move_to_end(uid)
        return entry

    def _ask(self, entry: _Entry) -> _Flight | None:
        """Return the lookup under way for an account, begun here if need be; None: not now."""
        now_s = self._clock.monotonic_s()
        flight = entry.flight
        if flight is not None and now_s - flight.asked_s < GIVEN_UP_AFTER_S:
            return flight
        if flight is None and now_s < entry.retry_at_s:
            return None
        loop = asyncio.get_running_loop()
        self._last_number += 1
        flight = entry.flight = _Flight(self._last_number, now_s, loop.create_future())
        loop.call_later(self._patience_s, self._on_late, entry, flight)
        self._threads.submit(lambda: self._look_up(entry, flight, loop))
        return flight

    def _look_up(self, entry: _Entry, flight: _Flight, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the name service. Runs in a thread."""
        started_s = self._clock.monotonic_s()
        verdict: _Verdict | None = None
        failure: Exception | None = None
        try:
            account = self._name_service.account(entry.uid)
            groups = None
            if account is not None:
                gids = self._name_service.group_ids(account, self._relevant_gids)
                groups = AccountGroups(account.uid, account.name, gids)
            verdict = _Verdict(flight.number, started_s, groups)
        except Exception as error:  # noqa: BLE001  # whatever it is, the call must get an answer
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._on_landed, entry, flight, verdict, failure)

    def _on_landed(
        self, entry: _Entry, flight: _Flight, verdict: _Verdict | None, failure: Exception | None
    ) -> None:
        current = entry.flight is flight
        if verdict is not None:
            if entry.verdict is None or entry.verdict.number < verdict.number:
                entry.verdict = verdict
            if current and self._age_s(verdict) < self._ttl_s:
                self._on_success(entry)
            elif current:
                self._on_failure(entry, None)
        elif current:
            self._on_failure(entry, failure)
        if current:
            entry.flight = None
        _settle(flight)

    def _on_late(self, entry: _Entry, flight: _Flight) -> None:
        if entry.flight is flight:
            flight.late = True
            self._on_failure(entry, None)
        _settle(flight)

    def _on_success(self, entry: _Entry) -> None:
        entry.retry_at_s = float("-inf")
        if entry.failing_since is not None:
            event(_log, logging.INFO, "the name service answers again", uid=entry.uid)
            entry.failing_since = None

    def _on_failure(self, entry: _Entry, failure: Exception | None) -> None:
        entry.failed_s = self._clock.monotonic_s()
        entry.retry_at_s = entry.failed_s + self._retry_after_s
        if failure is not None and not isinstance(failure, NameServiceUnavailable):
            _log.error("looking up an account failed", exc_info=failure)
        if entry.failing_since is None:
            entry.failing_since = self._clock.now()
            event(
                _log,
                logging.WARNING,
                "the name service does not answer",
                uid=entry.uid,
                why=failure if failure is not None else "it takes too long",
            )


def _settle(flight: _Flight) -> None:
    if not flight.settled.done():
        flight.settled.set_result(None)
