"""What becomes of versions: successors, disabling, destruction, usage, and who serves (I5, I10)."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.unit.made_store import BANK, KINDS, LATER, MAIL, NOW, MadeStore, make_store_of

from keyside_sidecar.errors import (
    NoSuchVersion,
    RotationConflict,
    StoreTampered,
    VersionInUse,
    WrongState,
)
from keyside_sidecar.store import Store, VersionState
from keyside_sidecar.store.backup import write_backup
from keyside_sidecar.store.changing import Expected
from keyside_sidecar.store.observed import Observation
from keyside_sidecar.store.sidecars import ProcessName, make_sidecar_id
from keyside_sidecar.store.usage import UsageEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keyside_sidecar.store import VersionInfo

OPERATOR = 4711
DAY_S = 86_400.0


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    return make_store_of(request, tmp_path)


@pytest.fixture
def store(made: MadeStore) -> Iterator[Store]:
    opened = made.open()
    opened.create_key(MAIL, NOW)
    yield opened
    opened.close()


def states(store: Store) -> list[str]:
    versions = store.list_versions(MAIL, before=None, limit=100)
    return [str(version.state) for version in reversed(versions)]


def find(store: Store, number: int) -> VersionInfo:
    return store.describe_versions(MAIL, [number])[0]


def observe(store: Store, seconds: float) -> None:
    store.observed.advance(store.observed.read(), round(seconds * 1_000_000))


def rotate(store: Store) -> None:
    store.rotate(MAIL, actor_uid=OPERATOR, expected_current=0, now=LATER)


# --- successors


def test_a_successor_is_made_pending_and_becomes_current_later(store: Store) -> None:
    observe(store, 5)
    store.make_pending(MAIL, Expected(1, None), NOW)
    loaded = store.load_key(MAIL)
    assert states(store) == ["CURRENT", "PENDING"]
    assert (loaded.info.current_number, loaded.info.pending_number) == (1, 2)
    assert loaded.pending is not None
    assert loaded.pending.material is not None
    assert loaded.pending.info.activated_at is None
    observe(store, 60)
    done = store.roll_over(MAIL, Expected(1, 2), LATER)
    assert done.version.material is not None
    assert done.version.material.material == loaded.pending.material.material
    assert states(store) == ["ARCHIVED", "CURRENT"]
    info = find(store, 2)
    assert (info.created_at, info.activated_at) == (NOW, LATER)
    assert (info.created_observed_s, info.activated_observed_s) == (5, 65)
    assert store.describe_key(MAIL).pending_number is None


@pytest.mark.parametrize("expected", [Expected(2, None), Expected(1, 2), Expected(0, None)])
def test_i10_what_was_decided_upon_another_state_changes_nothing(
    store: Store, expected: Expected
) -> None:
    generation = store.read_meta().generation
    with pytest.raises(RotationConflict):
        store.roll_over(MAIL, expected, LATER)
    with pytest.raises(RotationConflict):
        store.make_pending(MAIL, expected, LATER)
    assert states(store) == ["CURRENT"]
    assert store.read_meta().generation == generation


def test_an_operator_s_rotation_takes_the_successor_that_is_there(store: Store) -> None:
    store.make_pending(MAIL, Expected(1, None), NOW)
    rotate(store)
    assert states(store) == ["ARCHIVED", "CURRENT"]


def test_a_compromised_version_is_disabled_and_so_is_its_successor(store: Store) -> None:
    store.make_pending(MAIL, Expected(1, None), NOW)
    done = store.rotate(MAIL, actor_uid=OPERATOR, expected_current=1, now=LATER, compromised=True)
    assert states(store) == ["DISABLED", "DISABLED", "CURRENT"]
    assert done.previous.number == 1
    assert (done.previous.disabled_at, done.previous.disabled_by_uid) == (LATER, OPERATOR)
    assert done.key.pending_number is None


@pytest.mark.parametrize("step", ["make", "activate", "rotate"])
def test_i10_of_many_that_decide_at_once_one_succeeds(made: MadeStore, step: str) -> None:
    with_key = made.open()
    with_key.create_key(MAIL, NOW)
    expected = Expected(1, None)
    if step == "activate":
        with_key.make_pending(MAIL, expected, NOW)
        expected = Expected(1, 2)
    stores = [made.open() for _ in range(4)]
    gate = threading.Barrier(len(stores))
    outcomes: list[str] = []

    def decide(store: Store) -> None:
        gate.wait()
        act: Callable[..., object] = store.make_pending if step == "make" else store.roll_over
        try:
            act(MAIL, expected, LATER)
        except RotationConflict:
            outcomes.append("conflict")
        else:
            outcomes.append("done")
        store.close()

    threads = [threading.Thread(target=decide, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 3 + ["done"]
    assert states(with_key) == (
        ["CURRENT", "PENDING"] if step == "make" else ["ARCHIVED", "CURRENT"]
    )
    with_key.close()


# --- disabling


def test_disabling_and_enabling_are_recorded_and_can_be_repeated(store: Store) -> None:
    rotate(store)
    first = store.disable(MAIL, 1, actor_uid=OPERATOR, now=LATER)
    again = store.disable(MAIL, 1, actor_uid=OPERATOR + 1, now=LATER + timedelta(days=1))
    assert first == again
    assert first.generation == store.read_meta().generation
    info = first.version
    assert (info.state, info.disabled_at, info.disabled_by_uid) == ("DISABLED", LATER, OPERATOR)
    enabled = store.enable(MAIL, 1)
    assert enabled == store.enable(MAIL, 1)
    assert (enabled.version.state, enabled.version.disabled_at) == ("ARCHIVED", None)


def test_a_pending_version_that_is_disabled_is_no_successor_any_more(store: Store) -> None:
    store.make_pending(MAIL, Expected(1, None), NOW)
    store.disable(MAIL, 2, actor_uid=OPERATOR, now=LATER)
    assert store.describe_key(MAIL).pending_number is None
    assert store.enable(MAIL, 2).version.state is VersionState.ARCHIVED
    store.roll_over(MAIL, Expected(1, None), LATER)
    assert states(store) == ["ARCHIVED", "ARCHIVED", "CURRENT"]


REFUSED: dict[str, tuple[Callable[[Store], object], type[Exception]]] = {
    "disable the current version": (
        lambda s: s.disable(MAIL, 2, actor_uid=OPERATOR, now=LATER),
        VersionInUse,
    ),
    "destroy the current version": (
        lambda s: s.schedule_destruction(MAIL, 2, actor_uid=OPERATOR, now=LATER, after_s=1),
        VersionInUse,
    ),
    "disable a version that never was": (
        lambda s: s.disable(MAIL, 3, actor_uid=OPERATOR, now=LATER),
        NoSuchVersion,
    ),
    "enable version 0": (lambda s: s.enable(MAIL, 0), NoSuchVersion),
    "cancel what is not scheduled": (lambda s: s.cancel_destruction(MAIL, 1), WrongState),
    "use an unknown key": (lambda s: s.enable(BANK, 1), KeyError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(store: Store, name: str) -> None:
    rotate(store)
    generation = store.read_meta().generation
    act, error = REFUSED[name]
    with pytest.raises(error):
        act(store)
    assert store.read_meta().generation == generation
    assert states(store) == ["ARCHIVED", "CURRENT"]


# --- destruction


def schedule(store: Store, after_s: float = 7 * DAY_S) -> None:
    store.schedule_destruction(MAIL, 1, actor_uid=OPERATOR, now=LATER, after_s=after_s)


def test_i5_a_destruction_waits_for_observed_time_and_the_row_stays(store: Store) -> None:
    rotate(store)
    observe(store, 100)
    schedule(store)
    info = find(store, 1)
    assert (info.state, info.destroy_due_s) == ("DISABLED", 100 + 7 * DAY_S)
    assert [version.number for version in store.load_key(MAIL).scheduled] == [1]
    years_later = LATER + timedelta(days=3650)
    assert not store.destroy_if_due(MAIL, 1, years_later), "the wall clock does not count"
    observe(store, 7 * DAY_S - 0.001)
    assert not store.destroy_if_due(MAIL, 1, years_later)
    observe(store, 0.001)
    assert store.destroy_if_due(MAIL, 1, years_later)
    assert not store.destroy_if_due(MAIL, 1, years_later)
    info = find(store, 1)
    assert (info.state, info.destroyed_at, info.destroy_due_s) == ("DESTROYED", years_later, None)
    assert (info.destroy_requested_at, info.destroy_requested_by_uid) == (LATER, OPERATOR)
    assert store.find_version(MAIL, 1).material is None
    assert store.load_key(MAIL).scheduled == ()


def test_a_scheduled_destruction_can_be_repeated_and_cancelled(store: Store) -> None:
    rotate(store)
    schedule(store)
    due = find(store, 1).destroy_due_s
    observe(store, 50)
    schedule(store)
    assert find(store, 1).destroy_due_s == due, "asking again does not put it off"
    with pytest.raises(WrongState, match="is going to be destroyed"):
        store.enable(MAIL, 1)
    store.cancel_destruction(MAIL, 1)
    observe(store, 8 * DAY_S)
    assert not store.destroy_if_due(MAIL, 1, LATER)
    info = find(store, 1)
    assert (info.state, info.destroy_requested_at) == ("DISABLED", None)
    assert store.enable(MAIL, 1).version.state is VersionState.ARCHIVED
    assert store.find_version(MAIL, 1).material is not None


def test_nothing_leads_out_of_destruction(store: Store) -> None:
    rotate(store)
    schedule(store, after_s=0)
    assert store.destroy_if_due(MAIL, 1, LATER)
    for act in (
        lambda: store.enable(MAIL, 1),
        lambda: store.disable(MAIL, 1, actor_uid=OPERATOR, now=LATER),
        lambda: store.cancel_destruction(MAIL, 1),
        lambda: schedule(store),
    ):
        with pytest.raises(WrongState, match="is destroyed"):
            act()
    assert states(store) == ["DESTROYED", "CURRENT"]


# --- observed time


def test_observed_time_is_moved_on_by_one_of_many(made: MadeStore, store: Store) -> None:
    other = made.open()
    seen = store.observed.read()
    assert seen == Observation(0, b"")
    first = store.observed.advance(seen, 10)
    assert first.observed_us == 10
    assert other.observed.advance(seen, 10) == first, "who saw it before it moved moves nothing"
    assert other.observed.advance(first, 5).observed_us == 15
    other.close()


def test_observed_time_never_goes_back(made: MadeStore, store: Store) -> None:
    observe(store, 1)
    made.run("CREATE TABLE kept AS SELECT * FROM store_time")
    observe(store, 1)
    made.run("DELETE FROM store_time")
    made.run("INSERT INTO store_time SELECT * FROM kept")
    with pytest.raises(StoreTampered, match="gone back"):
        store.observed.read()
    with pytest.raises(StoreTampered, match="gone back"):
        observe(store, 1)


@pytest.mark.parametrize("trick", ["remove it", "put an older one back"])
def test_i5_observed_time_can_not_be_taken_back_to_bring_a_destruction_forward(
    made: MadeStore, store: Store, trick: str
) -> None:
    observe(store, DAY_S)
    made.run("CREATE TABLE kept AS SELECT * FROM store_time")
    observe(store, 30 * DAY_S)
    rotate(store)  # every change remembers how far time had come
    made.run("DELETE FROM store_time")
    if trick != "remove it":
        made.run("INSERT INTO store_time SELECT * FROM kept")
    fresh = made.open()  # has seen nothing itself
    for opened in (store, fresh):
        with pytest.raises(StoreTampered, match="observed time"):
            schedule(opened)
        with pytest.raises(StoreTampered, match="observed time"):
            rotate(opened)
        with pytest.raises(StoreTampered, match="observed time"):
            opened.observed.read()
        with pytest.raises(StoreTampered, match="observed time"):
            observe(opened, 1)
        with pytest.raises(StoreTampered, match="observed time"):
            write_backup(opened.session, "0", NOW, len)
    fresh.close()
    assert find(store, 1).state is VersionState.ARCHIVED


def test_i5_a_destruction_waits_for_the_wall_clock_too(store: Store) -> None:
    rotate(store)
    schedule(store)
    observe(store, 8 * DAY_S)
    almost = LATER + timedelta(days=7) - timedelta(microseconds=1)
    assert not store.destroy_if_due(MAIL, 1, almost)
    assert store.destroy_if_due(MAIL, 1, LATER + timedelta(days=7))


def test_a_schedule_that_is_hidden_is_missed(made: MadeStore, store: Store) -> None:
    rotate(store)
    schedule(store)
    made.run("UPDATE key_versions SET destroy_due = NULL WHERE number = 1")
    with pytest.raises(StoreTampered, match="scheduled destructions"):
        store.load_key(MAIL)


def test_observed_time_set_by_hand_is_refused(made: MadeStore, store: Store) -> None:
    observe(store, 1)
    rotate(store)
    schedule(store)
    made.run("UPDATE store_time SET observed = observed + 864000000000")
    with pytest.raises(StoreTampered, match="observed time"):
        store.observed.read()
    with pytest.raises(StoreTampered, match="observed time"):
        store.destroy_if_due(MAIL, 1, LATER)
    assert find(store, 1).state is VersionState.DISABLED


def test_a_schedule_changed_by_hand_is_refused(made: MadeStore, store: Store) -> None:
    rotate(store)
    schedule(store)
    made.run("UPDATE key_versions SET destroy_due = 0 WHERE number = 1")
    with pytest.raises(StoreTampered):
        store.destroy_if_due(MAIL, 1, LATER)
    other = made.open()
    with pytest.raises(StoreTampered):
        other.load_key(MAIL)
    other.close()


# --- usage


def test_usage_adds_up_and_remembers_when(store: Store) -> None:
    assert store.usage.read(MAIL, [1]) == {}
    store.usage.record([UsageEntry(MAIL, 1, 64, 1000, sealed_at=NOW)])
    told = store.usage.record([UsageEntry(MAIL, 1, 64, 1000), UsageEntry(MAIL, 1, opened_at=LATER)])
    usage = store.usage.read(MAIL, [1, 2])[1]
    assert told == {(MAIL, 1): usage}
    assert (usage.messages, usage.plaintext_bytes) == (128, 2000)
    assert (usage.last_sealed_at, usage.last_opened_at) == (NOW, LATER)
    store.usage.record([UsageEntry(MAIL, 1, -28, -500, sealed_at=NOW - timedelta(days=1))])
    usage = store.usage.read(MAIL, [1])[1]
    assert (usage.messages, usage.plaintext_bytes, usage.last_sealed_at) == (100, 1500, NOW)


def test_usage_put_back_or_removed_is_refused(made: MadeStore, store: Store) -> None:
    store.usage.record([UsageEntry(MAIL, 1, 10, 10)])
    made.run("CREATE TABLE kept AS SELECT * FROM version_usage")
    store.usage.record([UsageEntry(MAIL, 1, 10, 10)])
    made.run("DELETE FROM version_usage")
    with pytest.raises(StoreTampered, match="usage of version 1"):
        store.usage.record([UsageEntry(MAIL, 1, 10, 10)])
    made.run("INSERT INTO version_usage SELECT * FROM kept")
    with pytest.raises(StoreTampered, match="gone back"):
        store.usage.read(MAIL, [1])


@pytest.mark.parametrize("column", ["last_sealed_at", "last_opened_at"])
def test_an_older_time_of_last_use_is_refused(made: MadeStore, store: Store, column: str) -> None:
    for moment in (NOW, LATER):
        used = {column.removeprefix("last_"): moment}
        store.usage.record([UsageEntry(MAIL, 1, 0, 0, **used)])
        if moment == NOW:
            made.run("CREATE TABLE kept AS SELECT * FROM version_usage")
    made.run("DELETE FROM version_usage")
    with pytest.raises(StoreTampered, match="usage of version 1"):
        store.usage.read(MAIL, [1])
    made.run("INSERT INTO version_usage SELECT * FROM kept")
    with pytest.raises(StoreTampered, match="gone back"):
        store.usage.read(MAIL, [1])


def test_usage_changed_by_hand_is_refused(made: MadeStore, store: Store) -> None:
    store.usage.record([UsageEntry(MAIL, 1, 10, 10)])
    made.run("UPDATE version_usage SET reserved_messages = 0")
    for act in (
        lambda: store.usage.read(MAIL, [1]),
        lambda: store.usage.record([UsageEntry(MAIL, 1, 1, 1)]),
        lambda: store.verify_page(MAIL, after=0, limit=10),
    ):
        with pytest.raises(StoreTampered, match="usage of version 1"):
            act()
    assert store.load_key(MAIL).current.material is not None, "the key itself is as it was"


# --- who serves


def enter(store: Store, pid: int, generation: int = 0, boot: str = "boot") -> bytes:
    sidecar_id = make_sidecar_id()
    store.sidecars.enter(
        sidecar_id, ProcessName("host", boot, pid, 1), generation, ("id",), lambda _: True
    )
    return sidecar_id


def test_sidecars_register_acknowledge_and_withdraw(store: Store) -> None:
    sidecar_id = make_sidecar_id()
    process = ProcessName("host", "boot", 42, 1)
    store.sidecars.enter(sidecar_id, process, 0, ("a", "b"), lambda _: True)
    (found,) = store.sidecars.list_all().live
    assert (found.host, found.pid, found.generation_seen) == ("host", 42, 0)
    assert found.root_key_ids == ("a", "b")
    store.sidecars.enter(sidecar_id, process, 7, ("b",), lambda _: True)
    roll = store.sidecars.list_all()
    (later,) = roll.live
    assert (later.generation_seen, later.root_key_ids) == (7, ("b",))
    assert later.registered_at == found.registered_at <= later.seen_at
    assert roll.now >= later.seen_at
    store.sidecars.withdraw(sidecar_id)
    assert store.sidecars.list_all().live == ()


def test_a_sidecar_that_is_gone_is_marked_by_another_of_the_same_boot(store: Store) -> None:
    enter(store, 1)
    enter(store, 2, boot="another")
    store.sidecars.enter(
        make_sidecar_id(),
        ProcessName("host", "boot", 3, 1),
        0,
        (),
        lambda process: process.pid != 1,
    )
    assert sorted(sidecar.pid for sidecar in store.sidecars.list_all().live) == [2, 3]


def test_a_register_changed_by_hand_is_refused(made: MadeStore, store: Store) -> None:
    enter(store, 1)
    made.run("UPDATE sidecars SET generation_seen = 99")
    roll = store.sidecars.list_all()
    assert (roll.sidecars, roll.strange) == ((), 1)
    enter(store, 2)
    assert [sidecar.pid for sidecar in store.sidecars.list_all().live] == [2]
