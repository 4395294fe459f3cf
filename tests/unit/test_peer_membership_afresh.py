"""Where people decide, only an answer that was begun after the question counts (I9)."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.membership_scene import AWAY, OTHER_UID, STAFF, UID, Scene, playing

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused


async def afresh(scene: Scene, uid: int = UID) -> frozenset[int]:
    return (await scene.membership.identify_afresh(uid)).gids


async def refusal(scene: Scene, uid: int = UID) -> Reason:
    with pytest.raises(Refused) as refused:
        await afresh(scene, uid)
    return refused.value.reason


def test_an_answer_however_young_is_not_used() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            assert await scene.gids() == {UID, STAFF}
            scene.names.groups[UID] = {UID}
            assert await scene.gids() == {UID, STAFF}
            assert await afresh(scene) == {UID}
            assert await scene.gids() == {UID}, "it is remembered for all others"

        run(play())


def test_a_lookup_that_had_begun_before_does_not_count() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.may_answer.clear()
            earlier = asyncio.create_task(scene.gids())
            await scene.wait_for_lookups(1)
            scene.clock.now_s += 0.5
            asked = asyncio.create_task(afresh(scene))
            await asyncio.sleep(0.01)
            scene.names.may_answer.set()
            await earlier
            scene.names.groups[UID] = {UID}
            await asked
            assert scene.names.lookups == [UID, UID]

        run(play())


def test_nothing_remembered_helps_while_the_name_service_is_away() -> None:
    with playing(retry_after_s=0.0) as (scene, run):

        async def play() -> None:
            await scene.gids()
            scene.names.failure = AWAY
            assert await refusal(scene) is Reason.NAME_SERVICE_UNAVAILABLE
            assert await scene.gids() == {UID, STAFF}, "calls go on, within their bounds"
            scene.names.failure = None
            assert await afresh(scene) == {UID, STAFF}

        run(play())


def test_no_lookup_is_begun_just_after_one_has_failed() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids()
            scene.names.failure = AWAY
            assert await refusal(scene) is Reason.NAME_SERVICE_UNAVAILABLE
            scene.names.failure = None
            assert await refusal(scene) is Reason.NAME_SERVICE_UNAVAILABLE
            scene.clock.now_s += 1.0
            assert await afresh(scene) == {UID, STAFF}

        run(play())


def test_an_account_that_is_gone_is_known_to_be() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids(OTHER_UID)
            del scene.names.groups[OTHER_UID]
            assert await refusal(scene, OTHER_UID) is Reason.ACCOUNT_UNKNOWN

        run(play())
