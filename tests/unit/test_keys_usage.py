"""Counting what is sealed: never too low while the store answers, and never in the way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import BANK, MAIL, NOW

from keyside.envelope import VersionKey
from keyside.names import VersionNumber
from keyside_sidecar.errors import StoreTampered, StoreUnavailable
from keyside_sidecar.keys.usage import Meter, UsageLimits
from keyside_sidecar.store import VersionUsage

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from keyside.names import KeyName
    from keyside_sidecar.store.usage import UsageEntry


def make_version(name: KeyName = MAIL, number: int = 1) -> VersionKey:
    return VersionKey(name, VersionNumber(number), bytes(16), bytes(32))


class Book:
    """A store that counts, or is away, or hangs."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, int], VersionUsage] = {}
        self.calls = 0
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def record(self, entries: list[UsageEntry]) -> dict[tuple[str, int], VersionUsage]:
        self.calls += 1
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("away")
        for entry in entries:
            old = self.used.get((entry.key_name, entry.number), VersionUsage())
            self.used[entry.key_name, entry.number] = replace(
                old,
                messages=old.messages + entry.messages,
                plaintext_bytes=old.plaintext_bytes + entry.plaintext_bytes,
                last_sealed_at=entry.sealed_at or old.last_sealed_at,
                last_opened_at=entry.opened_at or old.last_opened_at,
            )
        return {(e.key_name, e.number): self.used[e.key_name, e.number] for e in entries}

    def count(self, number: int = 1) -> tuple[int, int]:
        used = self.used.get((MAIL, number), VersionUsage())
        return used.messages, used.plaintext_bytes


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.s)

    def monotonic_s(self) -> float:
        return self.s


class Scene:
    """A meter with its store and its clock."""

    def __init__(self, limits: UsageLimits | None = None) -> None:
        self.book = Book()
        self.clock = Hand()
        self.seen: list[tuple[int, int]] = []
        self.meter = Meter(
            self.book.record,
            self.clock,
            limits={MAIL: limits or UsageLimits()},
            on_usage=lambda _, number, usage: self.seen.append((number, usage.messages)),
            is_away=lambda: self.book.is_away,
        )

    async def seal(self, version: VersionKey, size: int = 10) -> bool:
        """Return whether the message was counted before it was sealed."""
        while not self.meter.charge(version, size):
            if not await self.meter.reserve(version, size):
                return False
        return True


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_the_first_message_reserves_a_block_and_the_next_ones_ask_nobody() -> None:
    async def scenario() -> None:
        scene, version = Scene(), make_version()
        for _ in range(30):
            assert await scene.seal(version)
        assert scene.book.calls == 1
        assert scene.book.count()[0] == 64

    run(scenario())


def test_what_is_recorded_is_never_less_than_what_is_used() -> None:
    async def scenario() -> None:
        choices = random.Random(7)
        scene, version = Scene(UsageLimits(5000, 1 << 20)), make_version()
        used = [0, 0]

        async def caller() -> None:
            for _ in range(200):
                size = choices.choice([0, 1, 100, 5000, 300_000])
                assert await scene.seal(version, size)
                used[0] += 1
                used[1] += size
                messages, plaintext_bytes = scene.book.count()
                assert messages >= used[0]
                assert plaintext_bytes >= used[1]

        await asyncio.gather(*(caller() for _ in range(20)))
        await scene.meter.flush(final=True)
        assert scene.book.count() == tuple(used), "what was not used was returned"

    run(scenario())


def test_blocks_grow_with_use_and_stay_a_small_part_of_the_limit() -> None:
    async def scenario() -> None:
        scene, version = Scene(UsageLimits(64 * 500, None)), make_version()
        for _ in range(5000):
            await scene.seal(version)
        await asyncio.sleep(0.01)
        assert scene.meter._accounts[MAIL].block_messages == 500
        assert scene.book.calls < 40
        scene.clock.s += 1000
        before = scene.book.calls
        while scene.book.calls == before:
            await scene.seal(version)
        assert scene.meter._accounts[MAIL].block_messages == 250

    run(scenario())


def test_a_tiny_limit_is_counted_exactly() -> None:
    async def scenario() -> None:
        scene, version = Scene(UsageLimits(10, None)), make_version()
        for number in range(1, 11):
            await scene.seal(version)
            await asyncio.sleep(0.001)
            assert number <= scene.book.count()[0] <= number + 1

    run(scenario())


def test_i12_with_the_store_away_sealing_goes_on_and_is_counted_later() -> None:
    async def scenario() -> None:
        scene, version = Scene(), make_version()
        scene.book.is_away = True
        scene.clock.s = 5
        for _ in range(100):
            assert not await scene.seal(version)
        assert scene.meter.problem_since == NOW + timedelta(seconds=5)
        assert scene.book.calls == 0, "nobody asks a store that is away"
        with pytest.raises(StoreUnavailable):
            await scene.meter.flush()
        scene.book.is_away = False
        assert await scene.seal(version)
        await scene.meter.flush()
        assert scene.meter.problem_since is None
        assert scene.book.count()[0] >= 101
        await scene.meter.flush(final=True)
        assert scene.book.count() == (101, 1010)

    run(scenario())


def test_a_store_that_hangs_holds_up_one_moment_and_no_more() -> None:
    async def scenario() -> None:
        scene, version = Scene(), make_version()
        scene.book.gate.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(50):
            assert not await scene.seal(version)
        assert loop.time() - began < 2
        scene.book.gate.set()
        await asyncio.sleep(0.01)
        await scene.meter.flush(final=True)
        assert scene.book.count() == (50, 500)

    run(scenario())


def test_another_version_has_an_account_of_its_own_and_the_old_one_is_closed() -> None:
    async def scenario() -> None:
        scene = Scene()
        for number in (1, 2):
            for _ in range(5):
                await scene.seal(make_version(number=number))
        await scene.meter.flush()
        assert scene.book.count(1) == (5, 50)
        assert scene.book.count(2)[0] == 64
        assert scene.book.used[MAIL, 1].last_sealed_at == NOW

    run(scenario())


def test_what_would_lower_a_count_is_not_told_twice() -> None:
    """The store had taken it, and the answer was lost."""

    async def scenario() -> None:
        scene = Scene()
        await scene.seal(make_version(number=1))
        await scene.seal(make_version(number=2))
        record = scene.book.record

        async def record_and_lose(entries: list[UsageEntry]) -> dict[tuple[str, int], VersionUsage]:
            await record(entries)
            raise StoreUnavailable("the answer was lost")

        scene.meter._record = record_and_lose
        with pytest.raises(StoreUnavailable):
            await scene.meter.flush()
        scene.meter._record = record
        for _ in range(3):
            await scene.meter.flush()
        assert scene.book.count(1) == (1, 10)

    run(scenario())


@pytest.mark.parametrize("how", ["rollover", "cancelled"])
def test_what_was_sealed_while_the_store_was_away_is_not_forgotten(how: str) -> None:
    async def scenario() -> None:
        scene, version = Scene(), make_version()
        scene.book.is_away = True
        for _ in range(100):
            assert not await scene.seal(version)
        scene.book.is_away = False
        scene.book.gate.clear()
        flushing = asyncio.create_task(scene.meter.flush())
        await asyncio.sleep(0.01)
        if how == "rollover":
            scene.meter._find(make_version(number=2))
            scene.book.is_away = True
            scene.book.gate.set()
            with pytest.raises(StoreUnavailable):
                await flushing
            scene.book.is_away = False
        else:
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)
            scene.book.gate.set()
        await scene.meter.flush(final=True)
        assert scene.book.count(1)[0] >= 100
        assert scene.meter.problem_since is None

    run(scenario())


def test_a_row_that_does_not_fit_keeps_no_other_from_being_told() -> None:
    async def scenario() -> None:
        scene = Scene()
        record = scene.book.record

        async def refuse_mail(entries: list[UsageEntry]) -> dict[tuple[str, int], VersionUsage]:
            if any(entry.key_name == MAIL for entry in entries):
                raise StoreTampered("usage")
            return await record(entries)

        scene.meter._record = refuse_mail
        for name in (MAIL, BANK):
            scene.meter.note_opened(make_version(name))
            await scene.meter.reserve(make_version(name), 10)
        with pytest.raises(StoreTampered):
            await scene.meter.flush()
        assert scene.book.used[BANK, 1].last_opened_at == NOW

    run(scenario())


def test_openings_are_told_once_a_minute_and_at_the_end() -> None:
    async def scenario() -> None:
        scene = Scene()
        version = make_version(BANK, 3)
        scene.meter.note_opened(version)
        await scene.meter.flush()
        assert scene.book.used[BANK, 3].last_opened_at == NOW
        scene.clock.s = 59
        scene.meter.note_opened(version)
        await scene.meter.flush()
        assert scene.book.used[BANK, 3].last_opened_at == NOW
        await scene.meter.flush(final=True)
        assert scene.book.used[BANK, 3].last_opened_at == NOW + timedelta(seconds=59)

    run(scenario())


def test_openings_that_could_not_be_told_are_kept() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.meter.note_opened(make_version(BANK, 3))
        scene.book.is_away = True
        with pytest.raises(StoreUnavailable):
            await scene.meter.flush()
        scene.book.is_away = False
        await scene.meter.flush(final=True)
        assert scene.book.used[BANK, 3].last_opened_at == NOW

    run(scenario())


def test_many_large_reservations_at_once_take_few_turns_and_leave_something_for_others() -> None:
    """As when data keys are given out, each of which charges its whole limit."""

    async def scenario() -> None:
        scene, version, large = Scene(), make_version(), 1 << 20

        async def charge() -> None:
            again = False
            while not scene.meter.charge(version, 0, large):
                assert await scene.meter.reserve(version, 0, large, again=again)
                again = True

        await asyncio.gather(*(charge() for _ in range(200)))
        assert scene.book.calls <= 3
        assert 200 * large <= scene.book.count()[0] <= 200 * large + 2 * (1 << 16)
        assert scene.meter.charge(version, 0), "others need not wait for the store"

    run(scenario())
