"""Which groups an account is in now: the name service's answers, cached within bounds (I1).

An answer's age is counted from before its lookup *started*. What happens at each age::

    0 ───────────── ttl/2 ───────────── ttl ─────────────────────── stale_max ──────►
      used as it is │ used, and a new   │ a call waits for a new     │ never used
                    │ one is asked for  │ one; used only where the   │
                    │ in the background │ name service is away       │

Why a removal takes effect within ttl. Let an account be removed from a group at R, and a call be
judged at U by an answer whose lookup started at S. If S >= R, the answer knows of the removal. If
S < R and U - S < ttl, then U < S + ttl < R + ttl. With U - S >= ttl the call is let through only
where the name service was seen to be away, and then the same holds with stale_max. Away means that
this account's lookup

* failed or took ttl, now or within ``retry_after_s`` (calls in that time don't wait again);
* has been inside the name service for ``lookup_timeout_s`` or ttl, and still is; or
* waits for a thread, while all threads for served accounts are inside the name service and none
  has come back for so long.

That a lookup waits for a thread while others return, or that there is no room for it to wait, says
nothing of the name service. So such a call is refused, never let through; no outage begins, and
the next call may ask again. Answers never replace newer ones: a lookup that was given up and
returns later is ignored if another was begun after it. That there is no such account is an answer
like any other, takes effect at once, and is never used beyond ttl.

Why strangers can't get in the way. Anyone who can connect with many uids (subordinate ones, say)
can have each looked up. An account is *served* if policy names its uid, or if its last answer has
it in a relevant group; no stranger can make an account served.

* Served accounts' lookups have threads and a queue of their own. Others wait in a queue of
  ``max_waiting``, one lookup at most for each uid, and where that is full one is refused at once.
* Served accounts' entries have a table of their own, so that others' never push them out.
* An account that was never seen may be a service on its first call. So the others' queue is shared
  out evenly among blocks of 65,536 uids, which is how subordinate and container uids are handed
  out (subuid(5); systemd, "Users, Groups, UIDs and GIDs"): who floods from one block crowds out
  that block. A service whose uid lies among the flooder's gets in by luck only, unless policy
  names its uid.

Where people decide about access, nothing remembered will do: identify_afresh().

Bounded: entries by ``max_accounts`` for each table (and those that are being looked up), waiting
lookups by ``max_waiting`` and ``max_accounts``, threads as LookupThreads says.

A lookup's life, one at most for each uid::

    WAITING ──a thread is free──► BEGUN ──answer──► done     BEGUN ──too long──► LATE ──► done
       └──no room──► dropped        └──failure──► failed                          └──► forgotten

Used from one event loop. Lookups run in daemon threads, so that a directory that hangs holds up
neither the loop, nor other accounts' cached answers, nor the end of the process.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused
from keyside_sidecar.log import event
from keyside_sidecar.peer.accounts import Account, NameServiceUnavailable
from keyside_sidecar.peer.lookups import GIVEN_UP_AFTER_S, Job, LookupThreads
from keyside_sidecar.severity import severity_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from keyside_sidecar.clock import Clock

_log = logging.getLogger(__name__)

_THREADS: Final = 4
_MAX_ACCOUNTS: Final = 4096
_MAX_WAITING: Final = 256
_UIDS_PER_SHARE: Final = 65_536
_NO_ROOM_LOGGED_EVERY_S: Final = 60.0
# The first may have to wait for a lookup that had begun already, and so counts for nothing.
_AFRESH_TRIES: Final = 2


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
    """A lookup.

    ``begun`` is done when it no longer waits for a thread, ``settled`` when nobody should wait for
    it any longer. ``away`` says that it failed or is late.
    """

    number: int
    served: bool
    begun: asyncio.Future[None]
    settled: asyncio.Future[None]
    started_s: float | None = None
    away: bool = False


@dataclass(slots=True, eq=False)
class _Entry:
    uid: int
    served: bool
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
        relevant_uids: The uids that policy names; they are served from their first call on.
        threads: How many lookups run at once: so many of served accounts, and as many of others.
        lookup_timeout_s: How long a call waits for an answer (never longer than ``ttl_s``), and
            before that, at most as long, for a thread.
        retry_after_s: For how long after a failure no new lookup for the account is begun.
        max_accounts: How many served accounts are remembered, and how many others; of each, the
            least recently used are forgotten.
        max_waiting: How many lookups of accounts that aren't served may wait for a thread.
    """

    def __init__(
        self,
        name_service: AccountSource,
        relevant_gids: Collection[int],
        ttl_s: float,
        stale_max_s: float,
        clock: Clock,
        *,
        relevant_uids: Collection[int] = (),
        threads: int = _THREADS,
        lookup_timeout_s: float = 2.0,
        retry_after_s: float = 1.0,
        max_accounts: int = _MAX_ACCOUNTS,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        if not 0 < ttl_s <= stale_max_s:
            raise ValueError("0 < ttl_s <= stale_max_s does not hold")
        self._name_service = name_service
        self._relevant_gids = frozenset(relevant_gids)
        self._relevant_uids = frozenset(relevant_uids)
        self._ttl_s = ttl_s
        self._stale_max_s = stale_max_s
        self._clock = clock
        self._served_threads = LookupThreads(threads, clock, max_accounts)
        self._other_threads = LookupThreads(threads, clock, max_waiting)
        self._patience_s = min(lookup_timeout_s, ttl_s)
        self._retry_after_s = retry_after_s
        self._max_accounts = max_accounts
        self._served: collections.OrderedDict[int, _Entry] = collections.OrderedDict()
        self._others: collections.OrderedDict[int, _Entry] = collections.OrderedDict()
        self._last_number = 0
        # How many lookups of served accounts came back; and whether, since the last that did, one
        # has waited too long for a thread.
        self._served_landed = 0
        self._served_stuck = False
        self._no_room_logged_s = float("-inf")

    @property
    def outage_since(self) -> datetime | None:
        """Since when lookups have been failing; None where they don't, as far as is known.

        A failure that was followed by no other try counts for ``stale_max_s``. A lookup that there
        was no room for, or that waits for a thread, is no failure.
        """
        forgotten_s = self._clock.monotonic_s() - self._stale_max_s
        return min(
            (
                entry.failing_since
                for entry in itertools.chain(self._served.values(), self._others.values())
                if entry.failing_since is not None and entry.failed_s >= forgotten_s
            ),
            default=None,
        )

    def fresh(self, uid: int) -> AccountGroups | None:
        """Return the account's groups if that needs no waiting, else None. Call in the event loop.

        The same object is returned until there is a newer answer.
        """
        entry = self._find(uid)
        if entry is None or entry.verdict is None:
            return None
        age_s = self._clock.monotonic_s() - entry.verdict.started_s
        if age_s >= self._ttl_s:
            return None
        if age_s >= self._ttl_s / 2:
            self._ask(entry)
        self._table(entry).move_to_end(uid)
        return entry.verdict.account

    async def identify(self, uid: int) -> AccountGroups:
        """Return the account's groups, after asking the name service where that is due.

        Raises:
            Refused: ACCOUNT_UNKNOWN; or NAME_SERVICE_UNAVAILABLE, where the name service is away or
                can't be asked soon enough because of other lookups. The call may be repeated.
        """
        account = self.fresh(uid)
        if account is not None:
            return account
        entry = self._find(uid)
        if entry is None:
            entry = _Entry(uid, served=uid in self._relevant_uids)
        else:
            self._table(entry).move_to_end(uid)
        away = False
        if entry.verdict is None or self._age_s(entry.verdict) >= self._ttl_s:
            flight = self._ask(entry)
            away = flight is None or await self._wait(flight)
        return self._judge(entry.verdict, away=away)

    async def identify_afresh(self, uid: int) -> AccountGroups:
        """Return the account's groups by a lookup that began after this call did.

        What is remembered is never used, however long the name service is away; the answer is
        remembered as any other.

        Raises:
            Refused: As for :meth:`identify`.
        """
        for _ in range(_AFRESH_TRIES):
            entry = self._find(uid) or _Entry(uid, served=uid in self._relevant_uids)
            earlier = entry.flight
            had_begun = earlier is not None and earlier.started_s is not None
            flight = self._ask(entry)
            if flight is None:
                break
            await self._wait(flight)
            counts = flight is not earlier or not had_begun
            if counts and entry.verdict is not None and entry.verdict.number >= flight.number:
                return self._judge(entry.verdict, away=False)
        raise Refused(Reason.NAME_SERVICE_UNAVAILABLE)

    def close(self) -> None:
        """End the threads that aren't inside a call; begin no more lookups."""
        self._served_threads.close()
        self._other_threads.close()

    async def _wait(self, flight: _Flight) -> bool:
        """Wait for a lookup, within bounds; return whether it shows that the name service is away.

        asyncio.wait() leaves the future alone where this call is cancelled; others wait for it.
        """
        if not flight.begun.done() and not (flight.served and self._served_stuck):
            landed_before = self._served_landed
            await asyncio.wait((flight.begun,), timeout=self._patience_s)
            if flight.served and not flight.begun.done():
                none_landed = self._served_landed == landed_before
                self._served_stuck = none_landed and self._served_threads.all_busy()
        if flight.begun.done():
            await asyncio.wait((flight.settled,))
        waiting = flight.started_s is None
        return flight.away or (waiting and flight.served and self._served_stuck)

    def _judge(self, verdict: _Verdict | None, *, away: bool) -> AccountGroups:
        if verdict is None:
            raise Refused(Reason.NAME_SERVICE_UNAVAILABLE)
        age_s = self._age_s(verdict)
        if verdict.account is None:
            known = age_s < self._ttl_s
            raise Refused(Reason.ACCOUNT_UNKNOWN if known else Reason.NAME_SERVICE_UNAVAILABLE)
        if age_s >= (self._stale_max_s if away else self._ttl_s):
            raise Refused(Reason.NAME_SERVICE_UNAVAILABLE)
        return verdict.account

    def _age_s(self, verdict: _Verdict) -> float:
        return self._clock.monotonic_s() - verdict.started_s

    def _find(self, uid: int) -> _Entry | None:
        return self._served.get(uid) or self._others.get(uid)

    def _table(self, entry: _Entry) -> collections.OrderedDict[int, _Entry]:
        return self._served if entry.served else self._others

    def _remember(self, entry: _Entry) -> None:
        """Put an entry into its table, as the one used last."""
        table = self._table(entry)
        table[entry.uid] = entry
        table.move_to_end(entry.uid)
        excess = len(table) - self._max_accounts
        if excess > 0:
            # One that is being looked up stays: forgotten, it could be asked for twice at once.
            idle = (old.uid for old in table.values() if old.flight is None and old is not entry)
            for uid in list(itertools.islice(idle, excess)):
                del table[uid]

    def _ask(self, entry: _Entry) -> _Flight | None:
        """Return the lookup under way for an account, begun here if need be; None: not now.

        One that there is no room for is settled, not away, and leaves no trace in the entry.
        """
        now_s = self._clock.monotonic_s()
        flight = entry.flight
        if flight is None:
            if now_s < entry.retry_at_s:
                return None
        elif flight.started_s is None:
            (self._served_threads if flight.served else self._other_threads).relieve()
            return flight
        elif now_s - flight.started_s < GIVEN_UP_AFTER_S:
            return flight
        loop = asyncio.get_running_loop()
        self._last_number += 1
        flight = entry.flight = _Flight(
            self._last_number, entry.served, loop.create_future(), loop.create_future()
        )
        job = Job(
            run=functools.partial(self._look_up, entry, flight, loop),
            drop=functools.partial(self._on_dropped, entry, flight),
        )
        if entry.served:
            self._served_threads.submit(job)
        else:
            self._other_threads.submit(job, share=entry.uid // _UIDS_PER_SHARE)
        if entry.flight is flight:
            self._remember(entry)
        return flight

    def _look_up(self, entry: _Entry, flight: _Flight, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the name service. Runs in a thread."""
        started_s = self._clock.monotonic_s()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._on_begun, entry, flight, started_s)
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
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_landed, entry, flight, verdict, failure)

    def _on_dropped(self, entry: _Entry, flight: _Flight) -> None:
        entry.flight = None
        if entry.verdict is None and entry.failing_since is None:
            self._table(entry).pop(entry.uid, None)
        _settle(flight)
        now_s = self._clock.monotonic_s()
        if now_s - self._no_room_logged_s >= _NO_ROOM_LOGGED_EVERY_S:
            self._no_room_logged_s = now_s
            event(
                _log,
                logging.WARNING,
                "too many accounts at once are to be looked up, and some callers are refused",
                uid=entry.uid,
            )

    def _on_begun(self, entry: _Entry, flight: _Flight, started_s: float) -> None:
        flight.started_s = started_s
        flight.begun.set_result(None)
        loop = asyncio.get_running_loop()
        loop.call_later(self._patience_s, self._on_late, entry, flight)

    def _on_landed(
        self, entry: _Entry, flight: _Flight, verdict: _Verdict | None, failure: Exception | None
    ) -> None:
        current = entry.flight is flight
        if flight.served:
            self._served_landed += 1
            self._served_stuck = False
        if current:
            entry.flight = None
            if verdict is not None and self._age_s(verdict) < self._ttl_s:
                self._on_success(entry)
            else:
                flight.away = True
                self._on_failure(entry, failure)
        if verdict is not None and (entry.verdict is None or entry.verdict.number < verdict.number):
            self._accept(entry, verdict)
        _settle(flight)

    def _accept(self, entry: _Entry, verdict: _Verdict) -> None:
        entry.verdict = verdict
        gids = frozenset() if verdict.account is None else verdict.account.gids
        remembered = self._find(entry.uid) is entry
        if remembered:
            del self._table(entry)[entry.uid]
        entry.served = entry.uid in self._relevant_uids or not gids.isdisjoint(self._relevant_gids)
        if remembered:
            self._remember(entry)

    def _on_late(self, entry: _Entry, flight: _Flight) -> None:
        if entry.flight is flight:
            flight.away = True
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
                severity_of("NAME_SERVICE_UNAVAILABLE").log_level,
                "the name service does not answer",
                uid=entry.uid,
                why=failure if failure is not None else "it takes too long",
            )


def _settle(flight: _Flight) -> None:
    for future in (flight.begun, flight.settled):
        if not future.done():
            future.set_result(None)
