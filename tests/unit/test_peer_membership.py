"""How long an answer of the name service is used (I1); the name service and the clock are fake."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.membership_scene import (
    AWAY,
    STAFF,
    STALE_MAX_S,
    TTL_S,
    UID,
    FakeClock,
    FakeNameService,
    playing,
)

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer.membership import Membership


def test_a_young_answer_is_used_as_it_is() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            first = await scene.membership.identify(UID)
            scene.clock.now_s += TTL_S / 2 - 0.01
            assert await scene.membership.identify(UID) is first
            assert scene.membership.fresh(UID) is first
            assert (first.uid, first.name, first.gids) == (
                UID,
                "account-70001",
                frozenset({UID, STAFF}),
            )
            assert scene.names.lookups == [UID]

        run(play())


def test_an_older_answer_is_used_and_refreshed_in_the_background() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids()
            scene.names.groups[UID] = {UID}
            scene.names.may_answer.clear()
            scene.clock.now_s += TTL_S / 2
            assert await scene.gids() == {UID, STAFF}
            scene.names.may_answer.set()
            await scene.settle()
            assert await scene.gids() == {UID}
            assert scene.names.lookups == [UID, UID]

        run(play())


def test_i1_an_answer_as_old_as_ttl_is_not_used() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids()
            scene.names.groups[UID] = {UID}
            scene.clock.now_s += TTL_S
            assert scene.membership.fresh(UID) is None
            assert await scene.gids() == {UID}

        run(play())


def test_fresh_knows_nothing_of_an_account_that_was_never_looked_up() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            assert scene.membership.fresh(UID) is None
            assert scene.names.lookups == []

        run(play())


@pytest.mark.parametrize("takes_s", [0.0, 0.3, 2.0, 4.9, 7.0])
@pytest.mark.parametrize("every_s", [0.1, 0.7, 1.0, 2.4, 2.6, 4.9, 5.0, 7.0])
def test_i1_a_removal_takes_effect_within_ttl(every_s: float, takes_s: float) -> None:
    """Also where the directory is slow, and answers with what was so before the removal.

    A directory that is slower than ttl counts as away: stale_max holds for it.
    """
    bound_s = TTL_S if takes_s < TTL_S else STALE_MAX_S
    with playing() as (scene, run):

        async def play() -> None:
            for removed_after_s in (0.05, 2.55, 4.95, 9.95):
                scene.names.takes_s = takes_s
                scene.names.groups[UID] = {UID, STAFF}
                scene.clock.now_s += 2 * STALE_MAX_S  # forget the round before
                await scene.gids()
                remove_at_s = scene.clock.now_s + removed_after_s
                removed_at_s = float("inf")
                while scene.clock.now_s < remove_at_s + 4 * TTL_S:
                    if scene.clock.now_s >= remove_at_s and removed_at_s == float("inf"):
                        scene.names.groups[UID] = {UID}
                        removed_at_s = scene.clock.now_s
                    if STAFF in await scene.gids():
                        assert scene.clock.now_s - removed_at_s < bound_s
                    await scene.settle()
                    scene.clock.now_s += every_s
                assert removed_at_s < float("inf")
                assert STAFF not in await scene.gids()

        run(play())


def test_i1_age_is_counted_from_before_the_lookup() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.takes_s = 4.0
            await scene.gids()
            scene.names.groups[UID] = {UID}
            scene.clock.now_s += 1.0
            assert scene.membership.fresh(UID) is None

        run(play())


def test_calls_that_come_together_share_one_lookup() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.may_answer.clear()
            calls = [asyncio.create_task(scene.gids()) for _ in range(20)]
            await scene.wait_for_lookups(1)
            scene.names.may_answer.set()
            assert await asyncio.gather(*calls) == [{UID, STAFF}] * 20
            assert scene.names.lookups == [UID]

        run(play())


def test_a_call_that_is_cancelled_takes_no_other_with_it() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.may_answer.clear()
            first, second = (asyncio.create_task(scene.gids()) for _ in range(2))
            await scene.wait_for_lookups(1)
            first.cancel()
            await asyncio.sleep(0)
            scene.names.may_answer.set()
            assert await second == {UID, STAFF}
            assert first.cancelled()

        run(play())


def test_i1_an_account_that_is_gone_is_refused_at_once() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids()
            del scene.names.groups[UID]
            scene.clock.now_s += TTL_S / 2
            await scene.gids()
            await scene.settle()
            assert await scene.refusal() is Reason.ACCOUNT_UNKNOWN
            scene.names.failure = AWAY  # nor does what was known before come back in an outage
            scene.clock.now_s += TTL_S
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE

        run(play())


def test_that_there_is_no_account_is_remembered_for_ttl_only() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            for _ in range(5):
                assert await scene.refusal(90_000) is Reason.ACCOUNT_UNKNOWN
            assert scene.names.lookups == [90_000]
            scene.names.groups[90_000] = {90_000}
            scene.clock.now_s += TTL_S
            assert await scene.gids(90_000) == {90_000}

        run(play())


def test_only_so_many_accounts_are_remembered_and_the_least_used_is_forgotten() -> None:
    with playing(max_accounts=3) as (scene, run):

        async def play() -> None:
            scene.names.groups = {uid: {uid} for uid in range(5)}
            for uid in (0, 1, 2, 0, 3, 0, 4):
                await scene.gids(uid)
            assert len(scene.entries()) == 3
            assert scene.membership.fresh(0) is not None
            assert scene.membership.fresh(1) is None

        run(play())


@pytest.mark.parametrize(("ttl_s", "stale_max_s"), [(0, 60), (-1, 60), (5, 4)])
def test_bounds_that_make_no_sense_are_rejected(ttl_s: float, stale_max_s: float) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="ttl_s"):
        Membership(FakeNameService(clock), [], ttl_s, stale_max_s, clock)
