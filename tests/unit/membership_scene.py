"""A membership on a fake clock and a fake name service."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyside_sidecar.errors import Refused
from keyside_sidecar.peer.accounts import Account, NameServiceUnavailable
from keyside_sidecar.peer.membership import Membership

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator

    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.peer.membership import _Entry

UID, OTHER_UID = 70001, 70002
STAFF, OPERATORS = 70100, 70200
TTL_S, STALE_MAX_S = 5.0, 60.0
AWAY = NameServiceUnavailable("looking up an account: Connection refused")


class FakeClock:
    """Stands still until told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> datetime:
        """Return a wall clock's time that fits."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def monotonic_s(self) -> float:
        """Return the time that it was set to."""
        return self.now_s


class FakeNameService:
    """Groups as the test sets them; fails or hangs as the test says."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.groups: dict[int, set[int]] = {UID: {UID, STAFF}, OTHER_UID: {OTHER_UID}}
        self.failure: Exception | None = None
        self.takes_s = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()
        # What the lookup of one account waits for besides.
        self.gates: dict[int, threading.Event] = {}
        self.lookups: list[int] = []

    def account(self, uid: int) -> Account | None:
        """Answer with what is so now, after a while."""
        self.lookups.append(uid)
        account = Account(f"account-{uid}", uid, uid) if uid in self.groups else None
        failure = self.failure
        self.may_answer.wait()
        if gate := self.gates.get(uid):
            gate.wait()
        if failure is not None:
            raise failure
        return account

    def group_ids(self, account: Account, relevant: Collection[int]) -> frozenset[int]:
        """Answer with what is so now, after a while."""
        assert set(relevant) == {STAFF, OPERATORS}
        gids = frozenset(self.groups.get(account.uid, ()))
        self._clock.now_s += self.takes_s
        return gids


class Scene:
    """A membership and what it stands on."""

    def __init__(self, *, patience_s: float = 30.0, max_accounts: int = 8, **settings: Any) -> None:
        self.clock = FakeClock()
        self.names = FakeNameService(self.clock)
        self.membership = Membership(
            self.names,
            relevant_gids=[STAFF, OPERATORS],
            ttl_s=TTL_S,
            stale_max_s=STALE_MAX_S,
            clock=self.clock,
            lookup_timeout_s=patience_s,
            max_accounts=max_accounts,
            **settings,
        )

    async def gids(self, uid: int = UID) -> frozenset[int]:
        """Return what a call is told."""
        return (await self.membership.identify(uid)).gids

    async def refusal(self, uid: int = UID) -> Reason:
        """Return why a call is refused."""
        with pytest.raises(Refused) as refused:
            await self.membership.identify(uid)
        return refused.value.reason

    def entries(self) -> list[_Entry]:
        """Return what is remembered."""
        return [*self.membership._served.values(), *self.membership._others.values()]

    async def settle(self) -> None:
        """Wait until no lookup is under way."""
        async with asyncio.timeout(20):
            while any(entry.flight for entry in self.entries()):
                await asyncio.sleep(0.001)

    async def wait_for_lookups(self, count: int) -> None:
        """Wait until so many lookups were begun."""
        async with asyncio.timeout(20):
            while len(self.names.lookups) < count:  # filled by threads
                await asyncio.sleep(0.001)


@contextmanager
def playing(
    **settings: Any,
) -> Iterator[tuple[Scene, Callable[[Coroutine[object, object, None]], None]]]:
    scene = Scene(**settings)
    try:
        yield scene, asyncio.run
    finally:
        scene.names.may_answer.set()
        for gate in scene.names.gates.values():
            gate.set()
        scene.membership.close()
