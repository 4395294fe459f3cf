"""What membership does while the name service is away or hangs (I1)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

from tests.unit.membership_scene import (
    AWAY,
    OTHER_UID,
    STAFF,
    STALE_MAX_S,
    TTL_S,
    UID,
    FakeClock,
    playing,
)

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer.lookups import GIVEN_UP_AFTER_S, Job, LookupThreads

if TYPE_CHECKING:
    import pytest


def test_i1_while_the_name_service_is_away_the_last_answer_serves_until_stale_max() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.takes_s = 1.0
            await scene.gids()  # begun at 1000, here at 1001
            scene.names.failure = AWAY
            scene.clock.now_s = 1000.0 + STALE_MAX_S - 0.1
            assert await scene.gids() == {UID, STAFF}
            scene.clock.now_s = 1000.0 + STALE_MAX_S
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE
            scene.names.failure = None
            scene.clock.now_s += 2.0
            assert await scene.gids() == {UID, STAFF}

        run(play())


def test_an_account_that_was_never_looked_up_is_refused_while_the_name_service_is_away() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.failure = AWAY
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE

        run(play())


def test_after_a_failure_the_name_service_is_left_alone_for_a_moment() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.failure = AWAY
            for _ in range(20):
                await scene.refusal()
            assert len(scene.names.lookups) == 1
            scene.clock.now_s += 1.0
            await scene.refusal()
            assert len(scene.names.lookups) == 2

        run(play())


def test_a_call_waits_for_a_name_service_that_hangs_once_and_not_each_time() -> None:
    with playing(patience_s=0.2) as (scene, run):

        async def play() -> None:
            loop = asyncio.get_running_loop()
            await scene.gids()
            await scene.gids(OTHER_UID)
            scene.names.may_answer.clear()
            scene.clock.now_s += TTL_S
            begun_s = loop.time()
            assert await scene.gids() == {UID, STAFF}
            assert loop.time() - begun_s >= 0.19
            begun_s = loop.time()
            for _ in range(100):
                assert await scene.gids() == {UID, STAFF}
            assert loop.time() - begun_s < 0.19
            assert len(scene.names.lookups) == 3
            scene.clock.now_s = 1000.0 + STALE_MAX_S
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE

        run(play())


def test_a_name_service_that_hangs_for_all_holds_up_no_cached_answer() -> None:
    with playing(patience_s=0.05, threads=2) as (scene, run):

        async def play() -> None:
            await scene.gids()
            scene.names.may_answer.clear()
            await asyncio.gather(*(scene.refusal(uid) for uid in range(80_000, 80_006)))
            assert await scene.gids() == {UID, STAFF}

        run(play())


def test_a_late_answer_is_used_when_it_comes() -> None:
    with playing(patience_s=0.05) as (scene, run):

        async def play() -> None:
            scene.names.may_answer.clear()
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE
            assert scene.membership.outage_since is not None
            scene.names.may_answer.set()
            await scene.settle()
            assert await scene.gids() == {UID, STAFF}
            assert scene.membership.outage_since is None
            assert len(scene.names.lookups) == 1

        run(play())


def test_i1_an_answer_never_replaces_a_newer_one() -> None:
    """A lookup hung for so long that another was begun; then it returns with what was so before."""
    with playing(patience_s=0.05) as (scene, run):

        async def play() -> None:
            stuck = threading.Event()
            scene.names.may_answer = stuck
            await scene.refusal()
            scene.names.may_answer = threading.Event()
            scene.names.may_answer.set()
            del scene.names.groups[UID]
            scene.clock.now_s += GIVEN_UP_AFTER_S
            assert await scene.refusal() is Reason.ACCOUNT_UNKNOWN
            scene.names.groups[UID] = {UID, STAFF}
            stuck.set()
            await asyncio.sleep(0.1)
            assert await scene.refusal() is Reason.ACCOUNT_UNKNOWN

        run(play())


def test_outage_since_tells_when_it_began() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            await scene.gids()
            assert scene.membership.outage_since is None
            scene.names.failure = AWAY
            scene.clock.now_s += TTL_S
            began = scene.clock.now()
            await scene.gids()
            scene.clock.now_s += 10
            await scene.gids()
            assert scene.membership.outage_since == began
            scene.names.failure = None
            scene.clock.now_s += 1
            await scene.gids()
            assert scene.membership.outage_since is None

        run(play())


def test_an_outage_that_nobody_asked_about_any_more_is_forgotten() -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.failure = AWAY
            await scene.refusal()
            assert scene.membership.outage_since is not None
            scene.clock.now_s += STALE_MAX_S + 1
            assert scene.membership.outage_since is None

        run(play())


def test_a_defect_in_a_lookup_is_an_outage_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with playing() as (scene, run):

        async def play() -> None:
            scene.names.failure = ZeroDivisionError()
            assert await scene.refusal() is Reason.NAME_SERVICE_UNAVAILABLE

        run(play())
    assert any(record.exc_info for record in caplog.records)


def test_threads_that_hang_are_replaced_up_to_a_limit() -> None:
    clock = FakeClock()
    threads = LookupThreads(2, clock, 100)
    hang = threading.Event()
    begun = threading.Semaphore(0)

    def job() -> None:
        begun.release()
        hang.wait()

    def never() -> None:
        raise AssertionError("there is room")

    def count_begun() -> int:
        count = 0
        while begun.acquire(timeout=0.2):
            count += 1
        return count

    for _ in range(4):
        threads.submit(Job(job, never))
    assert count_begun() == 2
    for expected in (2, 2, 2, 2, 0):
        clock.now_s += GIVEN_UP_AFTER_S
        threads.submit(Job(job, never))
        threads.submit(Job(job, never))
        assert count_begun() == expected
    hang.set()
    done = threading.Event()
    threads.submit(Job(done.set, never))
    assert done.wait(10)
    threads.close()


def test_a_lookup_that_hangs_does_not_keep_the_process_from_ending() -> None:
    code = """
        import asyncio, time
        from keyside_sidecar.clock import SystemClock
        from keyside_sidecar.errors import Refused
        from keyside_sidecar.peer.membership import Membership

        class Hanging:
            def account(self, uid):
                time.sleep(3600)

        async def main():
            membership = Membership(Hanging(), [], 5, 60, SystemClock(), lookup_timeout_s=0.05)
            try:
                await membership.identify(1)
            except Refused as refused:
                print(refused.reason.name)

        asyncio.run(main())
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == "NAME_SERVICE_UNAVAILABLE\n"
