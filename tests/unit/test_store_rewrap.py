"""A store that moves to another root key: all of it or nothing, while others use it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import (
    BANK,
    KINDS,
    LATER,
    MAIL,
    NOW,
    MadeStore,
    add_archived,
    make_store,
    make_store_of,
    set_state,
)
from tests.unit.test_store_backup import back_up, describe, read

from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian, name_next
from keyside_sidecar.custody.succession import Succession
from keyside_sidecar.errors import CustodyError, SidecarError, StoreTampered, StoreUnavailable
from keyside_sidecar.store.fleet import Fleet
from keyside_sidecar.store.rewrap import Rewrapped, rewrap_store
from keyside_sidecar.store.sidecars import ProcessName, make_sidecar_id
from keyside_sidecar.store.usage import UsageEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.store import Store

ME = frozenset({os.geteuid()})
HERE = ProcessName("here", "this boot", 1, 1)
FAR = ProcessName("far", "another boot", 2, 2)
TABLES = ["store_meta", "keys", "key_versions", "version_usage", "store_time", "sidecars"]


class Rotating:
    """A store with the files of its root key, as the command has them."""

    def __init__(self, made: MadeStore) -> None:
        self.made = made
        self.path = Path(f"{made.path}.root.key")
        self.files = Succession(self.path, os.geteuid(), os.getegid())
        self.old = self.load(self.path)

    @staticmethod
    def load(path: Path) -> FileCustodian:
        return FileCustodian.load(path, owner_uids=ME)

    def open(self) -> Store:
        """Open the store as a sidecar does that starts now."""
        return self.made.open(self.load(self.path))

    def begin(self) -> FileCustodian:
        self.files.begin()
        return self.load(name_next(self.path))

    def move(self, successor: Any = None, *, running: bool = True) -> Rewrapped:
        store = self.open()
        try:
            fleet = Fleet(store.session, HERE.boot, lambda _: running)
            return rewrap_store(store.session, successor or self.begin(), fleet)
        finally:
            store.close()

    def finish(self) -> str:
        """Move the store and put the files in place; return the new root key's id."""
        done = self.move()
        assert done.contents is not None
        key_id: str = done.contents.meta["root_key_id"]
        self.files.settle(key_id)
        return key_id

    def dump(self) -> list[Any]:
        return [sorted(self.made.run(f"SELECT * FROM {table}"), key=repr) for table in TABLES]


def fill(made: MadeStore) -> Rotating:
    store = made.open()
    for name in (MAIL, BANK):
        store.create_key(name, NOW)
        for _ in range(3):
            store.rotate(name, actor_uid=7, expected_current=0, now=LATER)
    set_state(store, MAIL, 1, "DESTROYED")
    store.disable(MAIL, 2, actor_uid=7, now=LATER)
    store.usage.record([UsageEntry(MAIL, 4, 12, 345, sealed_at=LATER)])
    store.observed.advance(store.observed.read(), 5_000_000)
    store.close()
    return Rotating(made)


@pytest.fixture(params=KINDS)
def rotating(request: pytest.FixtureRequest, tmp_path: Path) -> Rotating:
    return fill(make_store_of(request, tmp_path))


@pytest.fixture
def in_file(tmp_path: Path) -> Rotating:
    tmp_path.chmod(0o700)
    return fill(make_store(tmp_path))


def without_places(found: list[Any]) -> list[Any]:
    """Leave out what a move changes: generation and root key, and the state of the time's row."""
    return [found[1].observed_us, *found[2:]]


def enter(store: Store, process: ProcessName, *key_ids: str) -> bytes:
    sidecar_id = make_sidecar_id()
    store.sidecars.enter(sidecar_id, process, 1, key_ids, lambda _: True)
    return sidecar_id


def test_everything_is_there_under_the_new_root_key(rotating: Rotating) -> None:
    store = rotating.open()
    before = describe(store)
    store.close()
    key_id = rotating.finish()
    store = rotating.open()
    after = describe(store)
    assert without_places(after) == without_places(before)
    assert after[0].root_key_id == key_id != before[0].root_key_id
    assert after[0].generation == before[0].generation + 1
    assert after[0].store_id == before[0].store_id
    store.close()
    named = rotating.made.run("SELECT state, root_key_id, wrapped IS NULL FROM key_versions")
    for state, named_id, is_gone in named:
        assert (named_id, bool(is_gone)) == (
            (None, True) if state == "DESTROYED" else (key_id, False)
        )


def test_open_stores_follow_without_a_false_alarm(rotating: Rotating) -> None:
    """What a process remembers of the store still fits: it grew, and nothing went back."""
    store = rotating.open()
    me = enter(store, HERE, rotating.old.key_id, rotating.begin().key_id)
    expected = describe(store)
    seen = store.observed.read()
    assert rotating.move().contents is not None
    for _ in range(2):
        assert without_places(describe(store)) == without_places(expected)
        assert store.verify_page(MAIL, after=0, limit=99) is None
        now = store.observed.advance(seen, 1_000_000)
        assert now.observed_us in (5_000_000, 6_000_000), "one that was seen before is not moved"
        seen = store.observed.read()
        (usage,) = store.usage.record([UsageEntry(MAIL, 4, 1, 1)]).values()
        assert usage.messages in (13, 14)
        store.sidecars.enter(me, HERE, 9, store.list_root_keys(), lambda _: True)
        store.rotate(MAIL, actor_uid=7, expected_current=0, now=LATER)
        expected = describe(store)
        # Then the files are put in place, and it goes on.
        rotating.files.settle(store.read_meta().root_key_id)
    assert store.list_root_keys() == (store.read_meta().root_key_id,)
    assert [it.generation_seen for it in store.sidecars.list_all().sidecars] == [9]
    store.forget_checked()
    assert describe(store) == expected
    store.close()


def test_checked_indexes_are_kept_again_after_a_move(in_file: Rotating) -> None:
    """An index that could not be remembered would be read anew for every version."""
    store = in_file.open()
    store.find_version(MAIL, 2)
    in_file.finish()
    store.find_version(MAIL, 2)
    index = store.session.memory._indexes[MAIL]
    store.find_version(MAIL, 3)
    assert store.session.memory._indexes[MAIL] is index
    store.close()


def test_a_move_can_be_repeated(in_file: Rotating) -> None:
    store = in_file.open()
    before = describe(store)
    store.close()
    ids = [in_file.finish() for _ in range(3)]
    assert len({*ids, in_file.old.key_id}) == 4
    store = in_file.open()
    assert without_places(describe(store)) == without_places(before)
    store.close()


def test_a_store_that_belongs_to_it_already_is_left_alone(in_file: Rotating) -> None:
    successor = in_file.begin()
    assert in_file.move(successor).contents is not None
    before = in_file.dump()
    assert in_file.move(successor) == Rewrapped(None)
    assert in_file.dump() == before


def test_a_live_process_that_could_not_follow_keeps_it_from_being_done(rotating: Rotating) -> None:
    successor = rotating.begin()
    store = rotating.open()
    enter(store, HERE, rotating.old.key_id, successor.key_id)
    enter(store, FAR, rotating.old.key_id)
    store.close()
    before = rotating.dump()
    done = rotating.move(successor)
    assert done.contents is None
    assert [(it.host, it.pid) for it in done.lacking] == [("far", 2)]
    assert rotating.dump() == before


def test_one_that_is_gone_or_silent_is_not_waited_for(in_file: Rotating) -> None:
    successor = in_file.begin()
    store = in_file.open()
    enter(store, HERE, in_file.old.key_id)
    far = enter(store, FAR, in_file.old.key_id)
    with store.session.recording(_sidecars()) as reader:
        (row,) = [r for r in in_file.made.run("SELECT * FROM sidecars") if r[0] == far]
        columns = [column.name for column in _sidecars().columns]
        silent = {**dict(zip(columns, row, strict=True))}
        silent["seen_at"] -= 16_000_000
        silent["mac"] = reader.authenticator.compute_mac("sidecars", silent)
        statement = _sidecars().update().where(_sidecars().c.sidecar_id == far)
        reader.connection.execute(statement.values(**silent))
    fleet = Fleet(store.session, HERE.boot, lambda _: False)
    assert [(it.host, it.is_silent) for it in fleet.list_members()] == [("far", True)]
    store.close()
    assert in_file.move(successor, running=False).contents is not None
    store = in_file.open()
    assert len(store.sidecars.list_all().sidecars) == 2, "their rows were written anew as well"
    store.close()


def _sidecars() -> Any:
    from keyside_sidecar.store.tables import sidecars

    return sidecars


TAMPERED = {
    "a state": "UPDATE key_versions SET state = 'ARCHIVED' WHERE number = 2",
    "a wrapped key moved": "UPDATE key_versions SET wrapped = (SELECT wrapped FROM key_versions"
    " WHERE key_name = 'bank-details' AND number = 1) WHERE number = 3",
    "a version removed": "DELETE FROM key_versions WHERE number = 4",
    "a key's row": "UPDATE keys SET current_number = 1",
    "usage": "UPDATE version_usage SET reserved_messages = 0",
    "observed time": "UPDATE store_time SET observed = 7777777",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_i6_what_was_altered_is_not_signed_anew(in_file: Rotating, what: str) -> None:
    """Otherwise a rotation would make it genuine."""
    store = in_file.open()
    enter(store, HERE, in_file.old.key_id, in_file.begin().key_id)
    store.close()
    in_file.made.run(TAMPERED[what])
    before = in_file.dump()
    with pytest.raises(StoreTampered):
        in_file.move()
    assert in_file.dump() == before


def test_an_altered_row_of_the_register_is_neither_signed_anew_nor_in_the_way(
    in_file: Rotating,
) -> None:
    store = in_file.open()
    enter(store, HERE, in_file.old.key_id, in_file.begin().key_id)
    store.close()
    in_file.made.run("UPDATE sidecars SET generation_seen = 1000000")
    in_file.move()
    store = in_file.open()
    roll = store.sidecars.list_all()
    assert (roll.sidecars, roll.strange) == ((), 1)
    store.close()


class Faulty:
    """A custodian that goes wrong."""

    def __init__(self, real: FileCustodian, wrap: Callable[[bytes, bytes], bytes]) -> None:
        self.key_id = real.key_id
        self.find, self.derive, self.unwrap = real.find, real.derive, real.unwrap
        self.wrap = wrap


@pytest.mark.parametrize("fault", ["fails", "wraps another", "wraps nothing"])
def test_a_custodian_that_goes_wrong_changes_nothing(in_file: Rotating, fault: str) -> None:
    successor = in_file.begin()
    before = in_file.dump()
    calls = 0

    def wrap(plaintext: bytes, binding: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls < 5:
            return successor.wrap(plaintext, binding)
        if fault == "fails":
            raise CustodyError("out of order")
        wrong = bytes(32) if fault == "wraps another" else plaintext
        return successor.wrap(wrong, binding if fault == "wraps another" else b"")

    with pytest.raises(CustodyError):
        in_file.move(Faulty(successor, wrap))
    assert in_file.dump() == before
    store = in_file.open()
    describe(store)
    store.close()


def test_the_old_root_key_alone_opens_nothing_and_says_why(in_file: Rotating) -> None:
    in_file.finish()
    alone = FileCustodian(in_file.old._root_key)
    with pytest.raises(CustodyError, match="the store belongs to root key") as caught:
        in_file.made.open(alone)
    assert caught.value.remedy


def test_a_backup_from_before_needs_the_former_root_key(in_file: Rotating) -> None:
    before = back_up(in_file.made)
    in_file.finish()
    with pytest.raises(CustodyError, match="the backup belongs to root key"):
        read(before, in_file.load(in_file.path))
    former = in_file.path.with_name(f"{in_file.path.name}.{in_file.old.key_id}")
    assert read(before, in_file.load(former)).header.root_key_id == in_file.old.key_id


def test_a_store_put_back_as_it_was_before_is_refused(
    request: pytest.FixtureRequest, in_file: Rotating
) -> None:
    """By processes that run, and by the next that starts: it does not belong to its root key."""
    older = in_file.made.copy(request, "older.db").path
    store = in_file.open()
    describe(store)
    in_file.finish()
    describe(store)
    os.replace(older, in_file.made.path)  # noqa: PTH105
    for _ in range(2):
        with pytest.raises((StoreTampered, CustodyError, StoreUnavailable)):
            store.read_meta()
    store.close()
    with pytest.raises(CustodyError, match="the store belongs to root key"):
        in_file.open()


def test_a_named_root_key_is_not_believed(in_file: Rotating) -> None:
    """Whoever has the database can't make sidecars take the one that waits, or one of his own."""
    successor = in_file.begin()
    store = in_file.open()
    expected = describe(store)
    statement = "UPDATE store_meta SET root_key_id = ?"
    for name, error in ((successor.key_id, StoreTampered), ("0123456789abcdef", CustodyError)):
        in_file.made.run(statement, name)
        with pytest.raises(error):
            store.read_meta()
        with pytest.raises(error):
            in_file.open()
    in_file.made.run(statement, in_file.old.key_id)
    assert describe(store) == expected
    store.close()


def test_others_write_all_the_while_and_no_row_is_left_under_the_old_key(
    rotating: Rotating,
) -> None:
    """Each table that is written to beside the keys is locked, and nobody waits for ever."""
    opened = rotating.open()
    add_archived(opened, BANK, 150)
    opened.close()
    stop = threading.Event()
    errors: list[SidecarError] = []
    done: list[str] = []

    def keep(work: Callable[[Store], object], name: str) -> None:
        store = rotating.open()
        while not stop.is_set():
            try:
                work(store)
                done.append(name)
            except SidecarError as error:
                errors.append(error)
            # SQLite does not queue writers: who never pauses can keep all the others out for ever.
            time.sleep(0.002)
        store.close()

    ids = (rotating.old.key_id, rotating.begin().key_id)
    me = make_sidecar_id()
    works: dict[str, Callable[[Store], object]] = {
        "usage": lambda store: store.usage.record([UsageEntry(MAIL, 4, 1, 1)]),
        "time": lambda store: store.observed.advance(store.observed.read(), 1),
        "register": lambda store: store.sidecars.enter(me, HERE, 1, ids, lambda _: True),
        "rotate": lambda store: store.rotate(MAIL, actor_uid=7, expected_current=0, now=LATER),
    }
    threads = [threading.Thread(target=keep, args=(work, name)) for name, work in works.items()]
    for thread in threads:
        thread.start()
    while set(done) != set(works):
        time.sleep(0.01)
    assert rotating.move().contents is not None
    done.clear()
    while set(done) != set(works):
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert errors == []
    custodian = rotating.load(rotating.path)
    assert read(back_up(rotating.made, custodian), custodian).examine().keys == 2
    store = rotating.open()
    assert len(store.sidecars.list_all().sidecars) == 1
    store.close()


def test_i10_a_kill_at_any_instant_leaves_the_store_as_before_or_as_after(
    rotating: Rotating,
) -> None:
    opened = rotating.open()
    add_archived(opened, BANK, 50)
    expected = without_places(describe(opened))
    opened.close()
    successor = rotating.begin()
    began = time.monotonic()
    moved = {rotating.old.key_id: 0, successor.key_id: 0}
    for attempt in range(7):
        pid = os.fork()
        if pid == 0:
            try:
                rotating.move(successor)
            finally:
                os._exit(0)
        if attempt == 0:
            os.waitpid(pid, 0)
            took_s = time.monotonic() - began
        else:
            time.sleep(took_s * attempt / 6)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        store = rotating.open()
        moved[store.read_meta().root_key_id] += 1
        assert without_places(describe(store)) == expected
        store.close()
        if attempt == 0 or store_is_at(rotating, successor.key_id):
            # Back to the old one, and on the way with another.
            rotating.files.settle(successor.key_id)
            successor = rotating.begin()
            moved.setdefault(successor.key_id, 0)
    assert len(moved) > 2


def store_is_at(rotating: Rotating, key_id: str) -> bool:
    store = rotating.open()
    try:
        return store.read_meta().root_key_id == key_id
    finally:
        store.close()


def test_thousands_of_versions_take_seconds(in_file: Rotating) -> None:
    store = in_file.open()
    store.create_key(KeyName("old-archive"), NOW)
    add_archived(store, KeyName("old-archive"), 2_000)
    store.close()
    began = time.monotonic()
    assert in_file.move().contents is not None
    assert time.monotonic() - began < 3
