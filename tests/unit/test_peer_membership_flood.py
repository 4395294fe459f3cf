"""A stranger with many uids keeps nobody's removal from taking effect, and no service out (I1)."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.membership_scene import (
    AWAY,
    OPERATORS,
    OTHER_UID,
    STAFF,
    STALE_MAX_S,
    TTL_S,
    UID,
    Scene,
    playing,
)

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import Refused
from keyside_sidecar.peer.accounts import Account
from keyside_sidecar.peer.lookups import GIVEN_UP_AFTER_S, FairQueue, Job
from keyside_sidecar.peer.membership import Membership

if TYPE_CHECKING:
    from collections.abc import Collection

BLOCK = 65_536
STRANGER = 16 * BLOCK  # the first of the stranger's uids
THREADS, MAX_WAITING = 2, 6


async def flood(scene: Scene, uids: range, *, begun: int = 0) -> list[asyncio.Task[Reason]]:
    """Have strangers call whose lookups hang; return when each call waits or is refused.

    Args:
        scene: The scene.
        uids: Who calls.
        begun: How many of the first find a free thread.
    """
    gate = threading.Event()
    scene.names.gates.update(dict.fromkeys(uids, gate))
    lookups_before = len(scene.names.lookups)
    calls = [asyncio.create_task(scene.refusal(uid)) for uid in uids[:begun]]
    await asyncio.sleep(0)
    await scene.wait_for_lookups(lookups_before + begun)
    calls += [asyncio.create_task(scene.refusal(uid)) for uid in uids[begun:]]
    await asyncio.sleep(0.02)
    return calls


def end_flood(scene: Scene) -> None:
    """Let the name service answer."""
    for gate in scene.names.gates.values():
        gate.set()


class SlowDirectory:
    """A directory that takes its time for each answer, and has two accounts."""

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s
        self.gids = frozenset({STAFF})

    def account(self, uid: int) -> Account | None:
        """Answer after a while."""
        time.sleep(self._takes_s)
        return Account("service", uid, uid) if uid in {UID, OTHER_UID} else None

    def group_ids(self, account: Account, relevant: Collection[int]) -> frozenset[int]:
        """Answer at once with what is so now."""
        del account, relevant
        return self.gids


def test_i1_a_removal_takes_effect_within_ttl_during_a_flood() -> None:
    """On a real clock: 1,000 unknown uids a second, and a directory that does 200 at most."""
    ttl_s, flood_s = 0.4, 1.6
    directory = SlowDirectory(0.02)
    membership = Membership(
        directory, [STAFF], ttl_s, 60.0, SystemClock(), lookup_timeout_s=ttl_s / 2
    )
    strangers_refused_at_once = 0
    last_served_s: dict[int, float] = {}

    async def call_as_stranger(uid: int) -> None:
        nonlocal strangers_refused_at_once
        begun_s = time.monotonic()
        with pytest.raises(Refused):
            await membership.identify(uid)
        strangers_refused_at_once += time.monotonic() - begun_s < ttl_s / 8

    async def serve(uid: int, every_s: float) -> None:
        while True:
            begun_s = time.monotonic()
            # Raises nothing: the service's lookups don't wait for the strangers'.
            if STAFF in (await membership.identify(uid)).gids:
                last_served_s[uid] = begun_s
            await asyncio.sleep(every_s)

    async def play() -> None:
        begun_s = time.monotonic()
        busy = asyncio.create_task(serve(UID, 0.01))
        now_and_then = asyncio.create_task(serve(OTHER_UID, ttl_s * 1.1))
        strangers: list[asyncio.Task[None]] = []
        removed_s = float("inf")
        while (now_s := time.monotonic()) < begun_s + flood_s:
            while len(strangers) < 1000 * (now_s - begun_s):
                uid = STRANGER + len(strangers)
                strangers.append(asyncio.create_task(call_as_stranger(uid)))
            if now_s >= begun_s + flood_s / 2 and removed_s == float("inf"):
                directory.gids = frozenset()
                removed_s = time.monotonic()
            await asyncio.sleep(0.005)
        assert not busy.done()
        assert not now_and_then.done()
        assert last_served_s.keys() == {UID, OTHER_UID}
        assert max(last_served_s.values()) < removed_s + ttl_s
        assert membership.outage_since is None
        for service in (busy, now_and_then):
            service.cancel()
        await asyncio.gather(*strangers)
        assert strangers_refused_at_once > 100

    asyncio.run(play())
    membership.close()


def test_i1_strangers_lookups_that_hang_do_not_hold_up_a_served_accounts() -> None:
    with playing(threads=THREADS, max_waiting=MAX_WAITING) as (scene, run):

        async def play() -> None:
            await scene.gids()
            calls = await flood(scene, range(STRANGER, STRANGER + 100), begun=THREADS)
            scene.names.groups[UID] = {UID}
            scene.clock.now_s += TTL_S
            assert await scene.gids() == {UID}
            end_flood(scene)
            await asyncio.gather(*calls)

        run(play())


def test_where_there_is_no_room_a_call_is_refused_at_once_and_nothing_else_happens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with playing(threads=THREADS, max_waiting=MAX_WAITING) as (scene, run):

        async def play() -> None:
            uids = range(STRANGER, STRANGER + 1000)
            calls = await flood(scene, uids, begun=THREADS)
            refused = [call for call in calls if call.done()]
            assert len(refused) == 1000 - THREADS - MAX_WAITING
            assert {call.result() for call in refused} == {Reason.NAME_SERVICE_UNAVAILABLE}
            assert len(scene.names.lookups) == THREADS
            assert len(scene.entries()) == THREADS + MAX_WAITING
            assert scene.membership.outage_since is None
            end_flood(scene)
            assert set(await asyncio.gather(*calls)) == {
                Reason.NAME_SERVICE_UNAVAILABLE,
                Reason.ACCOUNT_UNKNOWN,
            }
            # No back-off: on a clock that stands still the next call asks.
            assert await scene.refusal(uids[-1]) is Reason.ACCOUNT_UNKNOWN

        run(play())
    assert [record.getMessage() for record in caplog.records].count(
        "too many accounts at once are to be looked up, and some callers are refused"
    ) <= 1
    assert not any("does not answer" in record.getMessage() for record in caplog.records)


def test_calls_that_wait_for_a_thread_too_long_are_refused_without_an_outage() -> None:
    with playing(threads=1, patience_s=0.1) as (scene, run):

        async def play() -> None:
            calls = await flood(scene, range(STRANGER, STRANGER + 1), begun=1)
            waiting = asyncio.create_task(scene.refusal())
            assert await asyncio.gather(*calls) == [Reason.NAME_SERVICE_UNAVAILABLE]
            since = scene.membership.outage_since  # the stranger's own: it was asked, and hangs
            assert since is not None
            assert await waiting is Reason.NAME_SERVICE_UNAVAILABLE
            entry = scene.membership._others[UID]
            assert entry.failing_since is None
            end_flood(scene)
            assert await scene.gids() == {UID, STAFF}  # it kept its place

        run(play())


def test_i1_an_answer_older_than_ttl_is_not_used_because_lookups_queue_up() -> None:
    """Where only the queue is slow, refusing is right: the name service answers."""
    third = 70003
    with playing(threads=1, patience_s=0.2) as (scene, run):

        async def play() -> None:
            uids = (UID, OTHER_UID, third)
            for uid in uids:
                scene.names.groups[uid] = {uid, STAFF}
                await scene.gids(uid)
                scene.names.gates[uid] = threading.Event()
            scene.clock.now_s += TTL_S
            first, second = (asyncio.create_task(scene.gids(uid)) for uid in uids[:2])
            last = asyncio.create_task(scene.refusal(third))
            await asyncio.sleep(0.1)
            scene.names.gates[UID].set()
            assert await first == {UID, STAFF}
            assert await last is Reason.NAME_SERVICE_UNAVAILABLE
            # This one was asked for, and hangs: the name service is away for it.
            assert await second == {OTHER_UID, STAFF}
            # Now none comes back for so long: for the last one too, then, once and not each time.
            assert await scene.gids(third) == {third, STAFF}
            begun_s = time.monotonic()
            for _ in range(50):
                assert await scene.gids(third) == {third, STAFF}
            assert time.monotonic() - begun_s < 0.2
            scene.names.gates[third].set()
            scene.names.gates[OTHER_UID].set()
            await scene.settle()
            assert scene.membership.fresh(third) is not None

        run(play())


def test_lookups_that_hang_for_served_accounts_are_given_up_when_another_waits() -> None:
    with playing(threads=1, patience_s=0.05) as (scene, run):

        async def play() -> None:
            scene.names.groups[OTHER_UID] = {OTHER_UID, STAFF}
            await scene.gids()
            await scene.gids(OTHER_UID)
            scene.names.gates[UID] = threading.Event()
            scene.clock.now_s += TTL_S
            await scene.gids()
            await scene.gids(OTHER_UID)
            assert len(scene.names.lookups) == 3
            scene.clock.now_s += GIVEN_UP_AFTER_S
            scene.names.groups[OTHER_UID] = {OTHER_UID}
            await scene.gids(OTHER_UID)
            await scene.wait_for_lookups(4)
            while scene.membership.fresh(OTHER_UID) is None:
                await asyncio.sleep(0.001)
            assert await scene.gids(OTHER_UID) == {OTHER_UID}

        run(play())


def test_strangers_never_push_a_served_account_out() -> None:
    with playing(max_accounts=3) as (scene, run):

        async def play() -> None:
            for uid, gid in ((UID, STAFF), (OTHER_UID, OPERATORS)):
                scene.names.groups[uid] = {uid, gid}
                await scene.gids(uid)
            for uid in range(STRANGER, STRANGER + 50):
                assert await scene.refusal(uid) is Reason.ACCOUNT_UNKNOWN
            assert len(scene.entries()) == 5
            scene.names.failure = AWAY
            scene.clock.now_s += STALE_MAX_S - 1
            assert await scene.gids() == {UID, STAFF}
            assert await scene.gids(OTHER_UID) == {OTHER_UID, OPERATORS}

        run(play())


def test_an_account_that_leaves_its_groups_is_no_longer_kept_and_one_that_joins_is() -> None:
    with playing(max_accounts=3) as (scene, run):

        async def play() -> None:
            await scene.gids()
            await scene.gids(OTHER_UID)
            scene.names.groups = {UID: {UID}, OTHER_UID: {OTHER_UID, STAFF}}
            scene.clock.now_s += TTL_S
            await scene.gids()
            await scene.gids(OTHER_UID)
            for uid in range(STRANGER, STRANGER + 10):
                await scene.refusal(uid)
            assert scene.membership.fresh(UID) is None
            assert scene.membership.fresh(OTHER_UID) is not None

        run(play())


def test_served_accounts_are_bounded_too() -> None:
    with playing(max_accounts=3) as (scene, run):

        async def play() -> None:
            scene.names.groups = {uid: {uid, STAFF} for uid in range(20)}
            await asyncio.gather(*(scene.gids(uid) for uid in range(20)))
            assert len(scene.entries()) == 3

        run(play())


def test_a_services_first_call_gets_in_while_another_block_of_uids_floods() -> None:
    with playing(threads=1, max_waiting=MAX_WAITING) as (scene, run):

        async def play() -> None:
            strangers = await flood(scene, range(STRANGER, STRANGER + 50), begun=1)
            waiting = [call for call in strangers if not call.done()]
            service = asyncio.create_task(scene.gids())
            await asyncio.sleep(0.02)
            assert sum(call.done() for call in waiting) == 1  # it made room
            assert not service.done()
            strangers += await flood(scene, range(STRANGER + 50, STRANGER + 100))
            end_flood(scene)
            assert await service == {UID, STAFF}
            await asyncio.gather(*strangers)
            # Before it came the one that was under way, and one of those that waited.
            assert scene.names.lookups.index(UID) == 2

        run(play())


def test_an_account_that_policy_names_by_uid_is_served_from_its_first_call_on() -> None:
    uid = STRANGER + 7  # among the flooder's, and in no relevant group
    with playing(threads=THREADS, max_waiting=MAX_WAITING, relevant_uids=[uid]) as (scene, run):

        async def play() -> None:
            scene.names.groups[uid] = {uid}
            calls = await flood(scene, range(STRANGER + 100, STRANGER + 200), begun=THREADS)
            assert await scene.gids(uid) == {uid}
            scene.clock.now_s += TTL_S
            assert await scene.gids(uid) == {uid}
            end_flood(scene)
            await asyncio.gather(*calls)
            for stranger in range(STRANGER + 200, STRANGER + 220):
                await scene.refusal(stranger)
            assert scene.membership.fresh(uid) is not None

        run(play())


def make_jobs(count: int) -> list[Job]:
    return [Job(lambda: None, lambda: None) for _ in range(count)]


def test_the_queue_serves_shares_in_turn_and_each_in_order() -> None:
    queue = FairQueue(10)
    a, b, c, d = make_jobs(4)
    for job, share in ((a, 1), (b, 1), (c, 2), (d, 1)):
        assert queue.put(job, share) is None
    assert [queue.take() for _ in range(len(queue))] == [a, c, b, d]
    assert len(queue) == 0


def test_a_full_queue_takes_room_from_the_longest_share_only() -> None:
    queue = FairQueue(4)
    a, b, c, d, e, f, g = make_jobs(7)
    for job in (a, b, c, d):
        assert queue.put(job, 1) is None
    assert queue.put(e, 1) is e
    assert queue.put(e, 2) is d
    assert queue.put(f, 2) is c
    assert queue.put(g, 2) is g  # 2 and 2: each has its half
    assert queue.put(g, 3) is b
    assert queue.put(b, 1) is b
    assert [queue.take() for _ in range(len(queue))] == [a, e, g, f]
