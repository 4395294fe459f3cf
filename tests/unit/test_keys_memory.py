"""Pure parts of keys/: states, the cache, and what is remembered of vain look-ups."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from tests.unit.made_store import BANK, MAIL, NOW

from keyside.envelope import VersionKey
from keyside.names import KeyName, VersionNumber
from keyside_sidecar.errors import StoreUnavailable
from keyside_sidecar.keys.cache import AbsenceMemory, VersionCache
from keyside_sidecar.keys.states import TRANSITIONS, may_follow, may_open
from keyside_sidecar.keys.threads import StoreThreads
from keyside_sidecar.store import OpenedVersion, VersionInfo, VersionState

PENDING, CURRENT, ARCHIVED, DISABLED, DESTROYED = VersionState


def version(key: KeyName, number: int, state: VersionState = ARCHIVED) -> OpenedVersion:
    n = VersionNumber(number)
    info = VersionInfo(key, n, bytes(16), state, NOW, NOW, None, None)
    return OpenedVersion(info, VersionKey(key, n, bytes(16), b"\x07" * 32))


@pytest.mark.parametrize(
    ("state", "opens"),
    [(PENDING, True), (CURRENT, True), (ARCHIVED, True), (DISABLED, False), (DESTROYED, False)],
)
def test_which_states_open_envelopes(state: VersionState, opens: bool) -> None:  # noqa: FBT001
    assert may_open(state) is opens


def test_the_table_of_transitions_is_what_the_design_says() -> None:
    assert {(a, b) for a, follow in TRANSITIONS.items() for b in follow} == {
        (PENDING, CURRENT),
        (PENDING, DISABLED),
        (CURRENT, ARCHIVED),
        (CURRENT, DISABLED),
        (ARCHIVED, DISABLED),
        (DISABLED, ARCHIVED),
        (DISABLED, DESTROYED),
    }


@pytest.mark.parametrize("state", VersionState)
def test_nothing_becomes_current_twice_and_nothing_comes_back_from_destruction(
    state: VersionState,
) -> None:
    assert may_follow(state, state)
    assert may_follow(state, DESTROYED)
    assert may_follow(DESTROYED, state) is (state is DESTROYED)
    assert may_follow(state, CURRENT) is (state in {PENDING, CURRENT})
    assert may_follow(state, PENDING) is (state is PENDING)


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = VersionCache(2)
    cache.put(version(MAIL, 1))
    cache.put(version(BANK, 1))
    assert cache.get(MAIL, 1) is not None
    cache.put(version(MAIL, 2))
    assert cache.get(BANK, 1) is None
    assert [v.info.number for v in cache.list_versions(MAIL)] == [1, 2]
    assert len(cache) == 2


def test_listing_and_replacing_are_no_use() -> None:
    cache = VersionCache(2)
    cache.put(version(MAIL, 1))
    cache.put(version(MAIL, 2))
    cache.list_versions(MAIL)
    cache.replace(version(MAIL, 1, DISABLED))
    cache.put(version(MAIL, 3))
    assert cache.get(MAIL, 1) is None
    cache.replace(version(MAIL, 1))
    assert cache.get(MAIL, 1) is None, "what has gone is not brought back"
    cache.drop(MAIL, 3)
    assert cache.get(MAIL, 3) is None


def test_absences_are_forgotten_in_time_and_bounded_in_number() -> None:
    absences = AbsenceMemory(2, ttl_s=5)
    absences.add(MAIL, 9, b"a", 100)
    assert absences.holds(MAIL, 9, b"a", 104.9)
    assert not absences.holds(MAIL, 9, b"a", 105)
    assert not absences.holds(MAIL, 9, b"b", 101), "another id may have been made since"
    assert not absences.holds(BANK, 9, b"a", 101)
    absences.add(MAIL, 9, b"b", 101)
    absences.add(MAIL, 9, b"c", 101)
    assert len(absences) == 2
    assert not absences.holds(MAIL, 9, b"a", 101)


def test_nothing_shows_key_material() -> None:
    """I7."""
    opened = version(MAIL, 1)
    assert "7, 7" not in repr(opened)
    assert "\\x07\\x07" not in repr(opened)
    assert "material" not in repr(opened)


def test_calls_run_off_the_event_loop_and_raise_what_they_raise() -> None:
    async def run() -> None:
        threads = StoreThreads("t", 1)
        assert await threads.run(threading.get_ident, timeout_s=5) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0, timeout_s=5)
        threads.close()

    asyncio.run(run())


def test_a_hung_call_is_given_up_and_those_behind_it_are_never_begun() -> None:
    async def run() -> None:
        threads = StoreThreads("t", 1)
        release, begun = threading.Event(), []
        hung = asyncio.create_task(threads.run(release.wait, timeout_s=0.05))
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await threads.run(lambda: begun.append(1), timeout_s=0.05)
        with pytest.raises(StoreUnavailable):
            await hung
        release.set()
        assert await threads.run(lambda: "well again", timeout_s=5) == "well again"
        assert begun == []
        threads.close()

    asyncio.run(run())


def test_the_number_of_waiting_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyside_sidecar.keys.threads._MAX_WAITING", 2)

    async def run() -> None:
        threads = StoreThreads("t", 1)
        release = threading.Event()
        tasks = [asyncio.create_task(threads.run(release.wait, timeout_s=5)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="too many"):
            await threads.run(lambda: None, timeout_s=5)
        release.set()
        await asyncio.gather(*tasks)
        threads.close()

    asyncio.run(run())


def test_a_hung_call_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import asyncio, time
from keyside_sidecar.errors import StoreUnavailable
from keyside_sidecar.keys.threads import StoreThreads
async def main():
    try:
        await StoreThreads("t", 1).run(lambda: time.sleep(600), timeout_s=0.1)
    except StoreUnavailable:
        print("given up")
asyncio.run(main())
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60, text=True
    )
    assert done.stdout == "given up\n"
    assert time.monotonic() - began < 30
