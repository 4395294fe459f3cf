"""A year of a fleet: many processes on one store, hundreds of rollovers, restarts, clock jumps.

Every process has a wall clock of its own, which is set forward and back; what really passes is seen
by all of their monotonic clocks. The processes are real keyrings, with everything that looks after
keys, on one real store; only their clocks are made up, and their turns are taken by the test.

What must hold all the time: one current version, never one with two materials, numbers without
gaps, and whatever was sealed opens (I5, I10).
"""

from __future__ import annotations

import asyncio
import os
import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tests.unit.made_store import BANK, MAIL, NOW, MadeStore, make_store

from keyside.envelope import open_envelope, parse_wrapping_header, seal
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy
from keyside_sidecar.store import VersionState

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from keyside.names import KeyName

DAYS = 365
HOURS_A_STEP = 12
PROCESSES = 3
TICK_S = HOURS_A_STEP * 3600.0
DAY_S = 86_400.0
KEYS = (MAIL, BANK)
AGES = {MAIL: 2, BANK: 30}
RULES = {
    MAIL: KeyRules(RolloverPolicy(AGES[MAIL] * DAY_S, None, None, 6 * 3600.0)),
    BANK: KeyRules(RolloverPolicy(AGES[BANK] * DAY_S, 1000, None, 0.0)),
}


class ShiftedClock:
    """A host's clock: what really passes, and by how much the wall clock is off."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.off = timedelta()

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed_s) + self.off

    def monotonic_s(self) -> float:
        return self.passed_s


class Fleet:
    """The processes, and what was sealed through them."""

    def __init__(self, made: MadeStore, choices: random.Random) -> None:
        self.made = made
        self.choices = choices
        self.clocks = [ShiftedClock() for _ in range(PROCESSES)]
        self.rings: list[Keyring | None] = [None] * PROCESSES
        self.sealed: list[tuple[KeyName, bytes]] = []
        self.ids: dict[tuple[KeyName, int], bytes] = {}
        self.jumps = self.restarts = self.outages = 0
        # For how many days some clock was ahead by as much as a key's version may be old.
        self.days_ahead = dict.fromkeys(KEYS, 0.0)

    async def start(self, place: int) -> None:
        ring = Keyring(
            self.made.open(), KEYS, clock=self.clocks[place], poll_interval_s=3600, rules=RULES
        )
        ring._caretaker._tick_s = TICK_S  # a tick for each step of the test
        await ring.start()
        await ring._caretaker.stop()  # the test takes the turns
        self.rings[place] = ring

    async def stop(self, place: int) -> None:
        ring, self.rings[place] = self.rings[place], None
        if ring is not None:
            await ring.stop()

    async def take_turns(self) -> None:
        rings = [ring for ring in self.rings if ring is not None]
        # At once: they decide from what they know, which may be out of date, and race.
        await asyncio.gather(*(ring._caretaker.turn() for ring in rings))
        for ring in rings:
            if self.choices.random() < 0.7:
                await asyncio.gather(*(ring.refresh(name) for name in KEYS))

    async def use(self) -> None:
        for ring in filter(None, self.rings):
            name = self.choices.choice(KEYS)
            version = ring.charge(name, 7) or await ring.reserve_and_charge(name, 7)
            self.sealed.append((name, seal(version, b"a token", {})))

    async def open_some(self, count: int) -> None:
        rings = [ring for ring in self.rings if ring is not None]
        for name, envelope in self.choices.sample(self.sealed, min(count, len(self.sealed))):
            header = parse_wrapping_header(envelope)
            version = await self.choices.choice(rings).version(
                name, header.version_number, header.version_id
            )
            assert open_envelope(version, envelope, {}) == b"a token"

    def check(self) -> None:
        store = self.made.open()
        for key in store.list_keys():
            versions = store.list_versions(key.name, before=None, limit=1000)
            assert [v.number for v in versions] == list(range(len(versions), 0, -1))
            current = [v.number for v in versions if v.state is VersionState.CURRENT]
            assert current == [key.current_number]
            assert all(v.number > key.current_number for v in versions if v.state == "PENDING")
            assert sum(v.state is VersionState.PENDING for v in versions) <= 1
            for version in versions:
                known = self.ids.setdefault((key.name, version.number), version.version_id)
                assert known == version.version_id, "a number names two materials"
        store.close()

    def jump(self) -> None:
        clock = self.choices.choice(self.clocks)
        if clock.off:
            clock.off = timedelta()
        else:
            clock.off = timedelta(days=self.choices.choice([-400, -30, -1, 1, 30, 400]))
        self.jumps += 1

    def pass_time(self, hours: float) -> None:
        for clock in self.clocks:
            clock.passed_s += hours * 3600
        furthest = max(clock.off for clock in self.clocks)
        for name, days in AGES.items():
            if furthest >= timedelta(days=days):
                self.days_ahead[name] += hours / 24


def test_i5_i10_a_year_of_a_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o700)
    seed = int(os.environ.get("KEYSIDE_YEAR_SEED", "0")) or random.randrange(1, 2**32)
    with capsys.disabled():
        print(f"KEYSIDE_YEAR_SEED={seed}", end=" ")
    fleet = Fleet(make_store(tmp_path), random.Random(seed))

    async def live_a_year() -> None:
        for place in range(PROCESSES):
            await fleet.start(place)
        for step in range(DAYS * 24 // HOURS_A_STEP):
            fleet.pass_time(HOURS_A_STEP)
            chance = fleet.choices.random()
            if chance < 0.03:
                fleet.jump()
            elif chance < 0.06:
                place = fleet.choices.randrange(PROCESSES)
                await fleet.stop(place)
                await fleet.start(place)
                fleet.restarts += 1
            elif chance < 0.063:
                await live_through_an_outage(fleet)
            await fleet.take_turns()
            await fleet.use()
            if step % 20 == 0:
                fleet.check()
                await fleet.open_some(20)
        fleet.check()
        await fleet.open_some(len(fleet.sealed))
        for place in range(PROCESSES):
            await fleet.stop(place)

    asyncio.run(live_a_year())
    store = fleet.made.open()
    made = {name: store.describe_key(name).version_count for name in KEYS}
    observed_days = store.observed.read().observed_us / 1e6 / DAY_S
    store.close()
    # No jump, restart or outage kept the keys from rolling over as they should. Each jump forward
    # and each outage may have brought one forward, and a clock that is ahead makes two of each for
    # as long (ADR 7), and no more.
    brought = fleet.jumps + fleet.outages
    for name, spare in ((MAIL, 2), (BANK, 12)):
        expected, doubled = DAYS / AGES[name], fleet.days_ahead[name] / AGES[name]
        assert expected * 0.8 <= made[name] <= expected + doubled + brought + spare
    assert fleet.jumps > 10
    assert fleet.restarts > 10
    # It stands still while everything is off, and comes to no harm by anything else.
    assert DAYS * 0.95 <= observed_days <= DAYS


async def live_through_an_outage(fleet: Fleet) -> None:
    """Everything is off for weeks; then the keys that are over their time roll over at once."""
    for place in range(PROCESSES):
        await fleet.stop(place)
        fleet.clocks[place].off = timedelta()
    store = fleet.made.open()
    # Of a version that was activated by a clock that was ahead, nobody can know how old it is.
    now = fleet.clocks[0].now()
    before = {key.name: key.current_number for key in store.list_keys() if key.rotated_at <= now}
    fleet.pass_time(24 * 31)
    for place in range(PROCESSES):
        await fleet.start(place)
    await fleet.take_turns()
    fleet.outages += 1
    for name, number in before.items():
        assert store.describe_key(name).current_number >= number + 1
    store.close()
