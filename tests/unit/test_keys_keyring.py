"""The keyring: what is served from memory, and how it follows the store (I5, I6, I10, I12)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import (
    BANK,
    MAIL,
    NOW,
    CountingCustodian,
    MadeStore,
    add_archived,
    make_store,
    set_state,
)

from keyside.names import KeyName
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import (
    RotationConflict,
    StoreTampered,
    StoreUnavailable,
    UnknownVersion,
    VersionDisabled,
)
from keyside_sidecar.keys import Keyring, KeyRules, RolloverPolicy, watch
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

NOBODY = KeyName("nobody")
# Nothing here rolls over by itself (test_keys_caretaker.py).
NEVER = dict.fromkeys((MAIL, BANK), KeyRules(RolloverPolicy(1e10, None, None, 0.0)))


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return make_store(tmp_path)


@asynccontextmanager
async def started(made: MadeStore, **options: Any) -> AsyncIterator[Keyring]:
    store = made.open(options.pop("custodian", None), busy_timeout_s=1)
    options.setdefault("rules", NEVER)
    keyring = Keyring(store, [MAIL, BANK], clock=SystemClock(), poll_interval_s=0.02, **options)
    await keyring.start()
    try:
        yield keyring
    finally:
        await keyring.stop()


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        await asyncio.sleep(0.01)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def rotate_elsewhere(made: MadeStore, times: int = 1) -> Store:
    store = made.open()
    for _ in range(times):
        store.rotate(MAIL, actor_uid=0, expected_current=0, now=NOW)
    return store


def test_starting_makes_the_keys_and_loads_their_current_versions(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            assert keyring.all_current_ready()
            assert keyring.store_problem is None
            assert keyring.current(MAIL).number == 1
            assert keyring.current(MAIL).material != keyring.current(BANK).material
            assert keyring.current_number(BANK) == 1
            assert keyring.current_number(NOBODY) is None

    run(scenario())


def test_making_a_key_beside_older_ones_is_loud(
    made: MadeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A store put back as it was before the key existed fits in itself; only this tells."""
    caplog.set_level(logging.INFO)
    made.open().create_key(MAIL, datetime.now(UTC) - timedelta(minutes=2))

    async def scenario() -> None:
        for expected in ([BANK], []):
            caplog.clear()
            async with started(made):
                pass
            lines = [record for record in caplog.records if record.message == "key made"]
            facts = [record.__dict__["facts"] for record in lines]
            assert [fact["key"] for fact in facts] == expected
            assert all(record.levelno == logging.WARNING for record in lines)
            assert all("keysided restore FILE" in fact["what_to_do"] for fact in facts)
            assert all(fact["what_to_do"].startswith("nothing, where") for fact in facts)

    run(scenario())


def test_first_start_gives_no_advice(made: MadeStore, caplog: pytest.LogCaptureFixture) -> None:
    """Several workers that start at once on a new store say nothing alarming either."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        keyrings = [Keyring(made.open(), [MAIL, BANK], clock=SystemClock()) for _ in range(2)]
        await asyncio.gather(*(keyring.start() for keyring in keyrings))
        await asyncio.gather(*(keyring.stop() for keyring in keyrings))
        lines = [record for record in caplog.records if record.message == "key made"]
        assert sorted(record.__dict__["facts"]["key"] for record in lines) == [BANK, MAIL]
        assert all(record.levelno == logging.INFO for record in lines)
        assert all("what_to_do" not in record.__dict__["facts"] for record in lines)

    run(scenario())


def test_nothing_is_ready_before_the_start(made: MadeStore) -> None:
    keyring = Keyring(made.open(), [MAIL], clock=SystemClock())
    assert not keyring.all_current_ready()
    with pytest.raises(StoreUnavailable):
        keyring.current(MAIL)


def test_two_workers_that_start_at_once_have_the_same_versions(made: MadeStore) -> None:
    async def scenario() -> None:
        one = Keyring(made.open(), [MAIL, BANK], clock=SystemClock())
        two = Keyring(made.open(), [MAIL, BANK], clock=SystemClock())
        await asyncio.gather(one.start(), two.start())
        for key in (MAIL, BANK):
            assert one.current(key).material == two.current(key).material
        await asyncio.gather(one.stop(), two.stop())

    run(scenario())


def test_a_rotation_is_used_at_once_by_the_process_that_made_it(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            old = keyring.current(MAIL)
            done = await keyring.rotate(MAIL, actor_uid=7, expected_current=1)
            assert (done.version.number, done.previous.number) == (2, 1)
            assert (done.key.current_number, done.key.version_count) == (2, 2)
            assert (done.version.state, done.previous.state) == ("CURRENT", "ARCHIVED")
            assert keyring.current(MAIL).number == 2
            assert keyring.cached(MAIL, 1, old.version_id) is old, "I5: it goes on opening"

    run(scenario())


def test_a_rotation_elsewhere_is_seen_within_a_second(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            old = keyring.current(MAIL)
            other = await asyncio.to_thread(rotate_elsewhere, made, 3)
            await until(lambda: keyring.current(MAIL).number == 4, within_s=1)
            assert keyring.cached(MAIL, 1, old.version_id) is not None
            current = other.load_key(MAIL).current.material
            assert current is not None
            assert keyring.current(MAIL).material == current.material
            other.close()

    run(scenario())


def test_a_conflict_changes_nothing(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            with pytest.raises(RotationConflict):
                await keyring.rotate(MAIL, actor_uid=7, expected_current=5)
            assert keyring.current(MAIL).number == 1
            assert (await keyring.describe(MAIL)).version_count == 1

    run(scenario())


def test_many_rotations_at_once_make_each_version_once(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as one, started(made) as two:
            both = [k.rotate(MAIL, actor_uid=0, expected_current=0) for k in (one, two) * 10]
            numbers = [done.version.number for done in await asyncio.gather(*both)]
            assert sorted(numbers) == list(range(2, 22))
            await until(lambda: one.current(MAIL).number == two.current(MAIL).number == 21)

    run(scenario())


def test_describing_and_paging(made: MadeStore) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            for expected in (1, 2, 3):
                await keyring.rotate(MAIL, actor_uid=7, expected_current=expected)
            page = await keyring.versions(MAIL, before=4, limit=2)
            assert [v.number for v in page] == [3, 2]
            assert (await keyring.describe(MAIL)).current_number == 4

    run(scenario())


def test_a_version_is_unwrapped_once_however_many_want_it(made: MadeStore) -> None:
    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 300)
        wanted = other.find_version(MAIL, 7)
        other.close()
        custodian = CountingCustodian(made.custodian)
        async with started(made, custodian=custodian) as keyring:
            await keyring._watch.stop()
            before = custodian.unwrapped
            found = await asyncio.gather(
                *(keyring.version(MAIL, 7, wanted.info.version_id) for _ in range(50))
            )
            assert len(set(map(id, found))) == 1
            assert wanted.material is not None
            assert found[0].material == wanted.material.material
            assert keyring.cached(MAIL, 7, wanted.info.version_id) is found[0]
            assert custodian.unwrapped - before == 1

    run(scenario())


def test_memory_is_bounded(made: MadeStore) -> None:
    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 40)
        ids = {
            int(v.number): v.version_id for v in other.list_versions(MAIL, before=None, limit=99)
        }
        other.close()
        async with started(made, cached_versions=5) as keyring:
            for number in range(2, 42):
                assert (await keyring.version(MAIL, number, ids[number])).number == number
            assert len(keyring._cache) == 5
            assert keyring.cached(MAIL, 2, ids[2]) is None
            assert keyring.current(MAIL).number == 1

    run(scenario())


def test_an_unknown_version_is_looked_for_once(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        looks: list[object] = []
        find = Store.find_version

        def count(self: Store, *arguments: Any) -> Any:
            looks.append(arguments)
            return find(self, *arguments)

        monkeypatch.setattr(Store, "find_version", count)
        async with started(made) as keyring:
            for _ in range(5):
                with pytest.raises(UnknownVersion):
                    await keyring.version(MAIL, 9, bytes(16))
            assert len(looks) == 1
            with pytest.raises(UnknownVersion):
                await keyring.version(MAIL, 1, bytes(16))
            with pytest.raises(UnknownVersion):
                await keyring.version(NOBODY, 1, bytes(16))
            assert len(looks) == 1, "version 1 is in memory, and nobody is no key of ours"

    run(scenario())


def list_ids(store: Store) -> dict[int, bytes]:
    versions = store.list_versions(MAIL, before=None, limit=99)
    return {int(version.number): version.version_id for version in versions}


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    looks: list[int] = []
    find = Store.find_version

    def count(self: Store, name: KeyName, number: int) -> Any:
        looks.append(number)
        return find(self, name, number)

    monkeypatch.setattr(Store, "find_version", count)
    return looks


def test_versions_asked_for_by_made_up_ids_drive_nothing_out_of_memory(made: MadeStore) -> None:
    """All keys share the cache: whoever may use one key decides nothing about the others."""

    async def scenario() -> None:
        other = made.open()
        for key in (MAIL, BANK):
            other.create_key(key, NOW)
        add_archived(other, MAIL, 20)
        add_archived(other, BANK, 1)
        wanted = other.find_version(BANK, 2).info.version_id
        other.close()
        async with started(made, cached_versions=4) as keyring:
            bank = await keyring.version(BANK, 2, wanted)
            for number in range(2, 22):
                with pytest.raises(UnknownVersion):
                    await keyring.version(MAIL, number, bytes(16))
            assert keyring.cached(BANK, 2, wanted) is bank
            assert len(keyring._cache) == 1

    run(scenario())


def test_a_made_up_id_and_the_true_one_at_the_same_time(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look serves both, whichever came first, and the version stays in memory."""

    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 2)
        ids = list_ids(other)
        other.close()
        async with started(made) as keyring:
            await keyring._watch.stop()
            looks = count_looks(monkeypatch)
            for number, order in ((2, (ids[2], bytes(16))), (3, (bytes(16), ids[3]))):
                calls = (keyring.version(MAIL, number, version_id) for version_id in order)
                found = await asyncio.gather(*calls, return_exceptions=True)
                answers = dict(zip(order, found, strict=True))
                assert isinstance(answers[bytes(16)], UnknownVersion)
                assert keyring.cached(MAIL, number, ids[number]) is answers[ids[number]]
            assert looks == [2, 3]

    run(scenario())


def test_needing_a_look_is_what_asking_does(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True exactly where the store is asked, by number, state, id and what was absent."""

    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 3)
        set_state(other, MAIL, 4, "DISABLED")
        ids = list_ids(other)
        other.close()
        async with started(made) as keyring:
            await keyring._watch.stop()
            looks = count_looks(monkeypatch)
            for key, number, version_id, needs_look in (
                (MAIL, 1, ids[1], False),  # current
                (MAIL, 1, bytes(16), False),
                (MAIL, 2, bytes(16), True),  # another id
                (MAIL, 2, bytes(16), False),
                (MAIL, 2, ids[2], True),
                (MAIL, 2, ids[2], False),
                (MAIL, 2, b"\x01" * 16, False),
                (MAIL, 4, ids[4], True),  # disabled
                (MAIL, 4, ids[4], False),
                (MAIL, 9, bytes(16), True),  # no such number
                (MAIL, 9, bytes(16), False),
                (MAIL, 9, b"\x01" * 16, True),
                (NOBODY, 1, bytes(16), False),
            ):
                looks.clear()
                assert keyring.needs_look(key, number, version_id) is needs_look
                assert looks == [], "it only says so"
                with suppress(UnknownVersion, VersionDisabled):
                    await keyring.version(key, number, version_id)
                assert bool(looks) is needs_look

    run(scenario())


def test_a_version_made_elsewhere_a_moment_ago_opens_before_it_was_noticed(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a look-up of that number, for nothing, was under way when it was made."""

    async def scenario() -> None:
        async with started(made) as keyring:
            await keyring._watch.stop()
            find, hold = Store.find_version, threading.Event()
            first: list[int] = []

            def find_slowly(self: Store, *arguments: Any) -> Any:
                try:
                    return find(self, *arguments)
                finally:
                    if not first:
                        first.append(1)
                        hold.wait(10)

            monkeypatch.setattr(Store, "find_version", find_slowly)
            vain = asyncio.create_task(keyring.version(MAIL, 2, bytes(16)))
            await until(lambda: first)
            other = await asyncio.to_thread(rotate_elsewhere, made)
            made_now = other.load_key(MAIL).current
            good = asyncio.create_task(keyring.version(MAIL, 2, made_now.info.version_id))
            await asyncio.sleep(0.02)
            hold.set()
            assert (await good).version_id == made_now.info.version_id
            with pytest.raises(UnknownVersion):
                await vain
            assert (await keyring.version(MAIL, 2, made_now.info.version_id)).number == 2
            other.close()

    run(scenario())


def test_a_caller_that_gives_up_takes_nothing_from_the_others(made: MadeStore) -> None:
    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 3)
        wanted = other.find_version(MAIL, 3).info.version_id
        other.close()
        async with started(made) as keyring:
            leaving = asyncio.create_task(keyring.version(MAIL, 3, wanted))
            staying = asyncio.create_task(keyring.version(MAIL, 3, wanted))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).number == 3

    run(scenario())


@pytest.mark.parametrize("state", ["DISABLED", "DESTROYED"])
def test_a_version_that_is_disabled_elsewhere_leaves_memory(made: MadeStore, state: str) -> None:
    async def scenario() -> None:
        async with started(made) as keyring:
            old = keyring.current(MAIL)
            await keyring.rotate(MAIL, actor_uid=0, expected_current=1)
            other = made.open()
            await asyncio.to_thread(set_state, other, MAIL, 1, state)
            await until(lambda: keyring.cached(MAIL, 1, old.version_id) is None, within_s=1)
            with pytest.raises(VersionDisabled) as caught:
                await keyring.version(MAIL, 1, old.version_id)
            assert caught.value.state == state
            with pytest.raises(UnknownVersion):
                await keyring.version(MAIL, 1, bytes(16))
            if state == "DISABLED":
                await asyncio.to_thread(set_state, other, MAIL, 1, "ARCHIVED")
                await until(lambda: not keyring._cache.list_versions(MAIL), within_s=1)
                again = await keyring.version(MAIL, 1, old.version_id)
                assert again.material == old.material
            other.close()

    run(scenario())


def test_a_look_up_overtaken_by_a_change_is_done_again(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version disabled while it was being loaded does not stay in memory."""

    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        add_archived(other, MAIL, 3)
        wanted = other.find_version(MAIL, 3).info.version_id
        async with started(made) as keyring:
            find, loaded, hold = Store.find_version, threading.Event(), threading.Event()

            def find_slowly(self: Store, *arguments: Any) -> Any:
                found = find(self, *arguments)
                if not loaded.is_set():
                    loaded.set()
                    hold.wait(10)
                return found

            monkeypatch.setattr(Store, "find_version", find_slowly)
            call = asyncio.create_task(keyring.version(MAIL, 3, wanted))
            await until(loaded.is_set)
            await asyncio.to_thread(set_state, other, MAIL, 3, "DISABLED")
            generation = other.read_meta().generation
            await until(lambda: keyring._watch._generation == generation)
            hold.set()
            with pytest.raises(VersionDisabled):
                await call
            assert keyring.cached(MAIL, 3, wanted) is None
        other.close()

    run(scenario())


def test_with_the_store_away_memory_serves_and_it_heals_by_itself(made: MadeStore) -> None:
    """I12."""

    async def scenario() -> None:
        async with started(made) as keyring:
            old = keyring.current(MAIL)
            await keyring.rotate(MAIL, actor_uid=0, expected_current=1)
            away = made.path.with_name("away.db")
            made.path.rename(away)
            await until(lambda: keyring.store_problem)
            problem = keyring.store_problem
            assert problem is not None
            assert problem.reason == "STORE_UNAVAILABLE"
            assert keyring.all_current_ready()
            assert keyring.current(MAIL).number == 2
            assert await keyring.version(MAIL, 1, old.version_id) is old
            with pytest.raises(StoreUnavailable):
                await keyring.version(MAIL, 9, bytes(16))
            with pytest.raises(StoreUnavailable):
                await keyring.rotate(MAIL, actor_uid=0, expected_current=0)
            with pytest.raises(StoreUnavailable):
                await keyring.describe(MAIL)
            await asyncio.sleep(0.1)
            assert keyring.store_problem == problem, "since when does not move"
            away.rename(made.path)
            await until(lambda: keyring.store_problem is None)
            done = await keyring.rotate(MAIL, actor_uid=0, expected_current=2)
            assert done.version.number == 3

    run(scenario())


def test_a_store_that_hangs_is_unavailable_and_memory_serves(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(watch, "_POLL_TIMEOUT_S", 0.1)
        async with started(made) as keyring:
            release = threading.Event()
            monkeypatch.setattr(Store, "read_change_token", lambda _: release.wait(10))
            await until(lambda: keyring.store_problem)
            assert keyring.current(MAIL).number == 1
            release.set()
            await until(lambda: keyring.store_problem is None)

    run(scenario())


def test_starting_without_a_store_says_so(made: MadeStore) -> None:
    async def scenario() -> None:
        store = made.open()
        store.close()
        made.path.unlink()
        keyring = Keyring(store, [MAIL], clock=SystemClock())
        with pytest.raises(StoreUnavailable):
            await keyring.start()
        assert not keyring.all_current_ready()

    run(scenario())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE key_versions SET state = 'DISABLED' WHERE number = 1",
        "UPDATE key_versions SET wrapped = randomblob(81) WHERE number = 1",
        "DELETE FROM key_versions WHERE number = 1",
        "UPDATE keys SET created_at = 0 WHERE name = 'mail-credentials'",
    ],
)
def test_a_row_changed_by_hand_is_noticed_refused_and_heals_when_it_is_put_right(
    made: MadeStore, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6: loud without anyone asking for the row; memory goes on serving what was checked."""

    async def scenario() -> None:
        monkeypatch.setattr(watch, "_DOUBT_INTERVAL_S", 0.05)
        async with started(made, cached_versions=0) as keyring:
            old = keyring.current(MAIL)
            await keyring.rotate(MAIL, actor_uid=0, expected_current=1)
            await until(lambda: keyring._watch._generation == 4)
            columns = "SELECT * FROM key_versions ORDER BY key_name, number"
            versions, keys = made.run(columns), made.run("SELECT * FROM keys ORDER BY name")
            made.run(statement)
            await until(lambda: keyring.store_problem)
            assert keyring.store_problem is not None
            assert keyring.store_problem.reason == "STORE_TAMPERED"
            assert keyring.all_current_ready()
            assert keyring.current(MAIL).number == 2
            assert keyring.current(BANK).number == 1
            if "key_versions" in statement:
                with pytest.raises(StoreTampered):
                    await keyring.version(MAIL, 1, old.version_id)
            made.run("DELETE FROM key_versions")
            made.run("DELETE FROM keys")
            for table, rows in (("keys", keys), ("key_versions", versions)):
                marks = ", ".join("?" for _ in rows[0])
                for row in rows:
                    made.run(f"INSERT INTO {table} VALUES ({marks})", *row)
            await until(lambda: keyring.store_problem is None)
            assert (await keyring.version(MAIL, 1, old.version_id)).material == old.material

    run(scenario())


def test_a_row_changed_along_with_a_rotation_is_noticed_a_little_later(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new generation explains one write, not two."""

    async def scenario() -> None:
        monkeypatch.setattr(watch, "_DOUBT_INTERVAL_S", 0.05)
        monkeypatch.setattr(watch, "_AFTER_CHANGE_S", 0.1)
        async with started(made) as keyring:
            await asyncio.sleep(0.2)
            await keyring.rotate(MAIL, actor_uid=0, expected_current=1)
            made.run("UPDATE key_versions SET state = 'DISABLED' WHERE number = 1")
            await until(lambda: keyring.store_problem)
            assert keyring.store_problem is not None
            assert keyring.store_problem.reason == "STORE_TAMPERED"

    run(scenario())


def test_a_key_that_fails_its_checks_at_the_start_is_refused_and_the_others_are_served(
    made: MadeStore,
) -> None:
    async def scenario() -> None:
        other = made.open()
        other.create_key(MAIL, NOW)
        other.create_key(BANK, NOW)
        other.close()
        made.run("UPDATE key_versions SET wrapped = randomblob(81) WHERE key_name = ?", MAIL)
        async with started(made) as keyring:
            assert not keyring.all_current_ready()
            assert keyring.current(BANK).number == 1
            with pytest.raises(StoreTampered):
                keyring.current(MAIL)
            with pytest.raises(StoreTampered):
                await keyring.rotate(MAIL, actor_uid=0, expected_current=0)
            assert keyring.store_problem is not None
            assert keyring.store_problem.reason == "STORE_TAMPERED"

    run(scenario())


def test_a_store_that_fails_as_a_whole_does_not_start(made: MadeStore) -> None:
    async def scenario() -> None:
        other = made.open()
        other.create_key(BANK, NOW)
        made.run("DELETE FROM key_versions")
        made.run("DELETE FROM keys")
        keyring = Keyring(made.open(), [MAIL], clock=SystemClock())
        with pytest.raises(StoreTampered):
            await keyring.start()
        assert made.run("SELECT count(*) FROM keys") == [(0,)], "nothing is built upon it"
        other.close()

    run(scenario())


def test_a_store_that_goes_back_is_loud_and_memory_keeps_the_newer_version(made: MadeStore) -> None:
    """I10: whatever was sealed under the version that the old copy lacks still opens here."""

    async def scenario() -> None:
        past = made.path.with_name("past.db")
        async with started(made) as keyring:
            made.run("VACUUM INTO ?", str(past))
            past.chmod(0o600)
            await keyring.rotate(MAIL, actor_uid=0, expected_current=1)
            keyring.store.close()
            past.replace(made.path)
            for suffix in ("-wal", "-shm"):
                made.path.with_name(f"keyside.db{suffix}").unlink(missing_ok=True)
            await until(lambda: keyring.store_problem)
            assert keyring.store_problem is not None
            assert keyring.store_problem.reason == "STORE_TAMPERED"
            assert keyring.current(MAIL).number == 2
            with pytest.raises(StoreTampered):
                await keyring.rotate(MAIL, actor_uid=0, expected_current=0)

    run(scenario())
