"""Keys look after themselves, and a change waits for every process (I5, I10, I12)."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import BANK, MAIL, NOW, MadeStore, make_store

from keyside_sidecar.errors import CustodyError, StoreTampered, VersionDisabled
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy, presence
from keyside_sidecar.store import VersionState
from keyside_sidecar.store.sidecars import ProcessName, make_sidecar_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

DAY_S = 86_400.0
OPERATOR = 4711
POLICY = RolloverPolicy(90 * DAY_S, 1000, None, 60.0)


class Hand:
    """A host's clocks, moved by hand."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.off_s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed_s + self.off_s)

    def monotonic_s(self) -> float:
        return self.passed_s


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return make_store(tmp_path)


@asynccontextmanager
async def started(
    made: MadeStore, clock: Hand | None = None, policy: RolloverPolicy = POLICY
) -> AsyncIterator[Keyring]:
    """Give a keyring whose turns the test takes."""
    ring = Keyring(
        made.open(),
        [MAIL],
        clock=clock or Hand(),
        poll_interval_s=0.02,
        rules={MAIL: KeyRules(policy)},
    )
    ring._caretaker._tick_s = 120.0
    await ring.start()
    await ring._caretaker.stop()
    try:
        yield ring
    finally:
        await ring.stop()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def states(ring: Keyring) -> list[str]:
    found = await ring.versions(MAIL, before=None, limit=100)
    return [str(version.state) for version in reversed(found)]


async def turn(ring: Keyring) -> list[str]:
    await ring._caretaker.turn()
    return await states(ring)


async def observe(ring: Keyring, clock: Hand, seconds: float) -> None:
    """Let time go by as a sidecar sees it."""
    end_s = clock.passed_s + seconds
    while clock.passed_s < end_s:
        clock.passed_s = min(end_s, clock.passed_s + ring._caretaker._tick_s)
        await ring._caretaker._move_time_on()


def test_i10_a_key_rolls_over_by_age_with_a_successor_made_before(made: MadeStore) -> None:
    async def scenario() -> None:
        clock = Hand()
        async with started(made, clock) as ring:
            first = ring.current(MAIL)
            ring._caretaker._tick_s = 60.0
            assert await turn(ring) == ["CURRENT"]
            clock.passed_s = 90 * DAY_S - 61
            assert await turn(ring) == ["CURRENT"]
            clock.passed_s = 90 * DAY_S - 60
            assert await turn(ring) == ["CURRENT", "PENDING"]
            assert ring.current(MAIL) is first
            clock.passed_s = 90 * DAY_S
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]
            assert ring.current(MAIL).number == 2
            assert ring.cached(MAIL, 1, first.version_id) is not None
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]

    run(scenario())


def test_everything_off_for_a_month_rolls_over_at_once(made: MadeStore) -> None:
    async def scenario() -> None:
        clock = Hand()
        async with started(made, clock):
            pass
        clock.passed_s = 120 * DAY_S
        async with started(made, clock) as ring:
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]

    run(scenario())


def test_a_clock_that_jumps_forward_makes_one_version_and_back_reactivates_nothing(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock = Hand()
        async with started(made, clock, RolloverPolicy(3600.0, None, None, 0.0)) as ring:
            clock.off_s = 4000 * DAY_S
            for _ in range(5):
                assert await turn(ring) == ["ARCHIVED", "CURRENT"]
            assert ring.problems() == ()
            clock.off_s = 0
            for _ in range(5):
                assert await turn(ring) == ["ARCHIVED", "CURRENT"]
            assert [notice.reason for notice in ring.problems()] == ["CLOCK_BEHIND"]
            await observe(ring, clock, 3500)
            assert len(await turn(ring)) == 2
            await observe(ring, clock, 140)
            assert await turn(ring) == ["ARCHIVED", "ARCHIVED", "CURRENT"]
            await turn(ring)
            assert ring.problems() == ()

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert [r.getMessage() for r in caplog.records if "clock" in r.getMessage()] == [
        "clock is behind",
        "clock has caught up",
    ]


def test_a_key_rolls_over_when_its_messages_are_used_up(made: MadeStore) -> None:
    async def scenario() -> None:
        policy = RolloverPolicy(90 * DAY_S, 1000, None, 0.0)
        async with started(made, policy=policy) as ring:
            for _ in range(1000):
                await ring.reserve_and_charge(MAIL, 1)
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]
            assert ring.current_usage(MAIL).messages == 0
            usage = await ring.read_usage(MAIL, [1, 2])
            assert 1000 <= usage[1].messages <= 1000 + 1000 // 64

    run(scenario())


def test_counts_hold_across_restarts(made: MadeStore) -> None:
    async def scenario() -> None:
        policy = RolloverPolicy(90 * DAY_S, 1000, None, 0.0)
        for _ in range(4):
            async with started(made, policy=policy) as ring:
                for _ in range(250):
                    await ring.reserve_and_charge(MAIL, 1)
                assert len(await states(ring)) == 1
        async with started(made, policy=policy) as ring:
            assert ring.current_usage(MAIL).messages == 1000
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]

    run(scenario())


def test_a_rollover_that_fails_is_told_and_tried_again(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        clock = Hand()
        async with started(made, clock, RolloverPolicy(3600.0, None, None, 0.0)) as ring:
            clock.passed_s = 3600

            def fail(*_: object) -> None:
                raise CustodyError("the custodian is ill")

            with monkeypatch.context() as patch:
                patch.setattr(ring.store, "roll_over", fail)
                with pytest.raises(CustodyError):
                    await turn(ring)
            assert await states(ring) == ["CURRENT"]
            (notice,) = ring.problems()
            assert notice.reason == "ROLLOVER_FAILS"
            assert "the custodian is ill" in notice.summary
            assert await turn(ring) == ["ARCHIVED", "CURRENT"]
            assert ring.problems() == ()

    run(scenario())


def test_a_key_that_fails_keeps_no_other_from_rolling_over(made: MadeStore) -> None:
    async def scenario() -> None:
        clock = Hand()
        ring = Keyring(made.open(), [BANK, MAIL], clock=clock, poll_interval_s=0.02)
        await ring.start()
        await ring._caretaker.stop()
        try:
            made.run("UPDATE key_versions SET created_at = 1 WHERE key_name = ?", BANK)
            clock.passed_s = 91 * DAY_S
            with pytest.raises(StoreTampered):
                await turn(ring)
            assert await states(ring) == ["ARCHIVED", "CURRENT"]
        finally:
            await ring.stop()

    run(scenario())


def test_a_process_whose_row_was_removed_goes_on_being_named(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_WAIT_S", 0.3)

    async def scenario() -> None:
        async with started(made) as one:
            await one.rotate(MAIL, actor_uid=OPERATOR, expected_current=1)
            far = ProcessName("far", "another boot", 77, 1)
            made_store = made.open()
            made_store.sidecars.enter(make_sidecar_id(), far, 0, (), lambda _: True)
            assert len((await one.disable(MAIL, 1, actor_uid=OPERATOR)).unacknowledged) == 1
            made.run("DELETE FROM sidecars WHERE pid = 77")
            done = await one.enable(MAIL, 1, actor_uid=OPERATOR)
            assert [late.pid for late in done.unacknowledged] == [77]
            farther = ProcessName("farther", "another boot", 78, 1)
            made_store.sidecars.enter(make_sidecar_id(), farther, 0, (), lambda _: True)
            made_store.close()
            made.run("UPDATE sidecars SET generation_seen = 1000000 WHERE pid = 78")
            done = await one.disable(MAIL, 1, actor_uid=OPERATOR)
            assert {late.pid for late in done.unacknowledged} >= {0, 77}

    run(scenario())


def test_i5_a_scheduled_destruction_is_loud_and_happens_when_its_time_was_seen(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        clock = Hand()
        policy = RolloverPolicy(9000 * DAY_S, None, None, 0.0)
        async with started(made, clock, policy) as ring:
            await ring.rotate(MAIL, actor_uid=OPERATOR, expected_current=1)
            await ring.schedule_destruction(MAIL, 1, actor_uid=OPERATOR)
            await turn(ring)
            (notice,) = ring.problems()
            assert notice.reason == "DESTRUCTION_SCHEDULED"
            assert "in 7 d 0 h" in notice.summary
            clock.off_s = 8 * DAY_S
            assert await turn(ring) == ["DISABLED", "CURRENT"], "the wall clock does not count"
            ring._caretaker._tick_s = 600.0
            await observe(ring, clock, 7 * DAY_S - 600)
            assert await turn(ring) == ["DISABLED", "CURRENT"]
            await observe(ring, clock, 700)
            assert await turn(ring) == ["DESTROYED", "CURRENT"]
            assert ring.problems() == ()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    said = [r.getMessage() for r in caplog.records if "destroyed" in r.getMessage()]
    assert said == ["version will be destroyed"] * 2 + ["version destroyed"]


def test_a_version_disabled_in_one_process_is_refused_in_all_when_that_is_answered(
    made: MadeStore,
) -> None:
    async def scenario() -> None:
        async with started(made) as one, started(made) as two, started(made) as three:
            first = one.current(MAIL)
            await one.rotate(MAIL, actor_uid=OPERATOR, expected_current=1)
            for ring in (two, three):
                assert (await ring.version(MAIL, 1, first.version_id)).number == 1
            began = time.monotonic()
            done = await one.disable(MAIL, 1, actor_uid=OPERATOR)
            took_s = time.monotonic() - began
            assert done.unacknowledged == ()
            for ring in (one, two, three):
                assert ring.cached(MAIL, 1, first.version_id) is None
                with pytest.raises(VersionDisabled):
                    await ring.version(MAIL, 1, first.version_id)
            assert took_s < 3, "it did not wait in vain"
            done = await two.enable(MAIL, 1, actor_uid=OPERATOR)
            assert (done.version.state, done.unacknowledged) == (VersionState.ARCHIVED, ())
            for ring in (one, two, three):
                assert (await ring.version(MAIL, 1, first.version_id)).number == 1

    run(scenario())


def test_a_process_that_has_not_acknowledged_is_named(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_WAIT_S", 0.3)

    async def scenario() -> None:
        async with started(made) as one:
            await one.rotate(MAIL, actor_uid=OPERATOR, expected_current=1)
            far = ProcessName("far", "another boot", 77, 1)
            made_store = made.open()
            made_store.sidecars.enter(make_sidecar_id(), far, 0, (), lambda _: True)
            done = await one.disable(MAIL, 1, actor_uid=OPERATOR)
            assert [(late.host, late.pid) for late in done.unacknowledged] == [("far", 77)]
            assert done.version.state is VersionState.DISABLED
            made_store.close()

    run(scenario())


def test_a_compromised_version_is_gone_everywhere_when_that_is_answered(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as one, started(made) as two:
            first = two.current(MAIL)
            done = await one.rotate(MAIL, actor_uid=OPERATOR, expected_current=0, compromised=True)
            assert done.unacknowledged == ()
            assert done.previous.state is VersionState.DISABLED
            for ring in (one, two):
                assert ring.current(MAIL).number == 2
                assert ring.cached(MAIL, 1, first.version_id) is None

    run(scenario())


def test_processes_withdraw_when_they_stop(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made), started(made) as two:
            assert len((await two.look(two.store.sidecars.list_all)).live) == 2

    run(scenario())
    store = made.open()
    assert store.sidecars.list_all().live == ()
    store.close()


def test_this_process_is_running_and_one_that_never_was_is_not() -> None:
    me = presence.describe_self()
    assert presence.is_running(me)
    assert not presence.is_running(ProcessName(me.host, me.boot, me.pid, me.start_ticks + 1))
    assert not presence.is_running(ProcessName(me.host, me.boot, 2**22 + 1, 1))
