"""I6: someone who has the database, but not the root key, changes it by hand."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from tests.unit.made_store import (
    BANK,
    KINDS,
    MAIL,
    NOW,
    MadeOnServer,
    MadeStore,
    make_store,
    make_store_on,
    set_state,
)

from keyside_sidecar.errors import CustodyError, StoreError, StoreTampered
from keyside_sidecar.store import Store, changing, initialise_store
from keyside_sidecar.store.authentication import Authenticator, bind_material, encode_row
from keyside_sidecar.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.postgresql import Server

# The tables whose rows the store's digests hold together.
DIGESTED = ("store_meta", "keys", "key_versions")
COLUMNS = [(t.name, c.name) for t in metadata.sorted_tables for c in t.columns]
SQLITE_ONLY = pytest.mark.parametrize("made", ["sqlite"], indirect=True)


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    """Two keys: three versions of one, two of the other."""
    if request.param == "postgresql":
        pattern: MadeOnServer = request.getfixturevalue("pattern")
        return pattern.copy(request, "keyside")
    tmp_path.chmod(0o700)
    made = make_store(tmp_path)
    fill(made)
    # One file that can be copied: the last connection has folded the log into it.
    assert not made.path.with_name("keyside.db-wal").exists()
    return made


@pytest.fixture(scope="module")
def pattern(
    postgresql_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MadeOnServer]:
    """What every test on PostgreSQL begins with; copied, which is quick."""
    made = make_store_on(postgresql_server, tmp_path_factory.mktemp("pattern"))
    fill(made)
    yield made
    made.database.drop()


def fill(made: MadeStore) -> None:
    store = made.open()
    for name, rotations in ((MAIL, 2), (BANK, 1)):
        changing.create_key(store.session, name, NOW)
        for _ in range(rotations):
            changing.rotate(store.session, name, actor_uid=7, expected_current=0, now=NOW)
    store.close()


def read_all(store: Store) -> None:
    store.forget_checked()
    for info in store.list_keys():
        store.verify_page(info.name, after=0, limit=100)


def read_afresh(made: MadeStore) -> None:
    store = made.open()
    try:
        read_all(store)
    finally:
        store.close()


def refuse(made: MadeStore) -> None:
    with pytest.raises(StoreTampered):
        read_afresh(made)


def alter(value: Any) -> list[Any]:
    """Values that are not the given one, of its own type and of others."""
    if value is None:
        return [1, b"\x01"]
    if isinstance(value, int):
        return [value + 1, None, float(value) + 0.5, str(value) + "x", b"\x01"]
    if isinstance(value, str):
        return [value + "x", None, value.encode(), value.upper() + "\x00", b"\xff\xfe"]
    flipped = bytes([value[0] ^ 1]) + value[1:]
    return [flipped, value[:-1], value + b"\x00", None, 10**15, value.hex()]


def test_an_untouched_store_reads(made: MadeStore) -> None:
    read_afresh(made)


@pytest.mark.parametrize(("table", "column"), [c for c in COLUMNS if c[0] in DIGESTED])
def test_any_column_of_any_row_changed_by_hand_is_refused(
    made: MadeStore, table: str, column: str
) -> None:
    """Every column of every row, to another value, another type and NULL."""
    made.drop_checks()
    # Any other column finds the row again.
    by = {"keys": "name", "key_versions": "version_id", "store_meta": "id"}[table]
    if column == by:
        by = "mac"
    rows = made.run(f"SELECT {by}, {column} FROM {table}")
    tried = 0
    for place, value in rows:
        for other in alter(value):
            try:
                made.run(f"UPDATE {table} SET {column} = ? WHERE {by} = ?", other, place)
            except (sqlite3.IntegrityError, psycopg.Error):  # the schema itself does not take it
                continue
            if made.run(f"SELECT {column} FROM {table} WHERE {by} = ?", place) == [(value,)]:
                continue  # the column's type turned it back into what it was
            tried += 1
            with pytest.raises((StoreTampered, CustodyError)) as caught:
                read_afresh(made)
            if (table, column) != ("store_meta", "root_key_id"):
                assert caught.type is StoreTampered
            made.run(f"UPDATE {table} SET {column} = ? WHERE {by} = ?", value, place)
    assert tried
    read_afresh(made)


def swap(made: MadeStore, *columns: str) -> None:
    one, two = ("mail-credentials", 1), ("mail-credentials", 2)
    for column in columns:
        query = f"SELECT {column} FROM key_versions WHERE key_name = ? AND number = ?"
        ((first,),), ((second,),) = made.run(query, *one), made.run(query, *two)
        change = f"UPDATE key_versions SET {column} = ? WHERE key_name = ? AND number = ?"
        made.run(change, second, *one)
        made.run(change, first, *two)


def renumber(made: MadeStore) -> None:
    for old, new in ((1, 99), (2, 1), (99, 2)):
        made.run("UPDATE key_versions SET number = ? WHERE number = ?", new, old)


def forge(made: MadeStore, table: str, where: str, **changed: Any) -> None:
    """Add a copy of a row with some columns changed."""
    columns = [c for t, c in COLUMNS if t == table]
    names = ", ".join(columns)
    (row,) = made.run(f"SELECT {names} FROM {table} WHERE {where}")
    marks = ", ".join("?" for _ in columns)
    values = {**dict(zip(columns, row, strict=True)), **changed}
    made.run(f"INSERT INTO {table} ({names}) VALUES ({marks})", *values.values())


def forge_version(made: MadeStore) -> None:
    where = "key_name = 'mail-credentials' AND number = 3"
    forge(made, "key_versions", where, number=4, version_id=os.urandom(16), state="ARCHIVED")


CHANGES: dict[str, Callable[[MadeStore], object]] = {
    "wrapped keys of two versions swapped": lambda made: swap(made, "wrapped"),
    "wrapped keys and MACs swapped": lambda made: swap(made, "wrapped", "mac"),
    "MACs swapped": lambda made: swap(made, "mac"),
    "versions renumbered": renumber,
    "a version moved to the other key": lambda made: (
        made.run("DROP INDEX key_versions_one_current"),
        made.run("UPDATE key_versions SET key_name = 'bank-details' WHERE number = 3"),
    ),
    "an archived version deleted": lambda made: made.run(
        "DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number = 1"
    ),
    "the newest version deleted": lambda made: made.run(
        "DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number = 3"
    ),
    "a version added": forge_version,
    "a key deleted": lambda made: made.run("DELETE FROM keys WHERE name = 'bank-details'"),
    "a key and its versions deleted": lambda made: (
        made.run("DELETE FROM key_versions WHERE key_name = 'bank-details'"),
        made.run("DELETE FROM keys WHERE name = 'bank-details'"),
    ),
    "a key added": lambda made: forge(made, "keys", "name = 'bank-details'", name="forged"),
    "all keys deleted": lambda m: (m.run("DELETE FROM key_versions"), m.run("DELETE FROM keys")),
    "the store's row deleted": lambda made: made.run("DELETE FROM store_meta"),
    "a disabled state written": lambda made: made.run(
        "UPDATE key_versions SET state = 'DISABLED' WHERE number = 1"
    ),
    "a version destroyed": lambda made: made.run(
        "UPDATE key_versions SET state = 'DESTROYED', wrapped = NULL WHERE number = 1"
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rows_swapped_moved_deleted_or_made_up_are_refused(made: MadeStore, name: str) -> None:
    CHANGES[name](made)
    refuse(made)


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"the store's row deleted"}))
def test_a_store_that_is_open_refuses_them_as_well(made: MadeStore, name: str) -> None:
    store = made.open()
    read_all(store)
    CHANGES[name](made)
    with pytest.raises(StoreTampered):
        read_all(store)
    store.close()


def put_back(made: MadeStore, table: str, where: str, old: MadeStore) -> None:
    columns = [c for t, c in COLUMNS if t == table]
    names = ", ".join(columns)
    copy = old.run(f"SELECT {names} FROM {table} WHERE {where}")
    assert copy
    made.run(f"DELETE FROM {table} WHERE {where}")
    for row in copy:
        marks = ", ".join("?" for _ in columns)
        made.run(f"INSERT INTO {table} ({names}) VALUES ({marks})", *row)


@pytest.fixture
def past(made: MadeStore, request: pytest.FixtureRequest) -> MadeStore:
    """A copy of the store from before the last rotation."""
    past = made.copy(request, "past.db")
    store = made.open()
    changing.rotate(store.session, MAIL, actor_uid=7, expected_current=3, now=NOW)
    store.close()
    return past


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("key_versions", "key_name = 'mail-credentials' AND number = 3"),
        ("keys", "name = 'mail-credentials'"),
        ("store_meta", "id = 1"),
    ],
)
def test_an_older_copy_of_a_row_put_back_is_refused(
    made: MadeStore, past: MadeStore, table: str, where: str
) -> None:
    """Its MAC is valid; the digest of its set is not of it."""
    made.run("DROP INDEX key_versions_one_current")
    put_back(made, table, where, past)
    refuse(made)


def test_a_running_process_refuses_an_older_copy_of_a_version_that_it_has_checked(
    made: MadeStore, request: pytest.FixtureRequest
) -> None:
    """Its MAC is valid and the set is not read again: 64 bits of its term tell."""
    past = made.copy(request, "past.db")
    store = made.open()
    set_state(store, MAIL, 1, "DISABLED")
    assert store.find_version(MAIL, 1).info.state == "DISABLED"
    put_back(made, "key_versions", "key_name = 'mail-credentials' AND number = 1", past)
    for read in (
        lambda: store.find_version(MAIL, 1),
        lambda: store.describe_versions(MAIL, [1]),
        lambda: store.list_versions(MAIL, before=2, limit=1),
        lambda: store.verify_page(MAIL, after=0, limit=1),
    ):
        with pytest.raises(StoreTampered, match="version 1 of key mail-credentials"):
            read()
    assert store.find_version(MAIL, 2).material is not None, "the others are what they were"
    store.close()


def test_a_running_process_refuses_a_version_from_the_future(
    made: MadeStore, request: pytest.FixtureRequest
) -> None:
    """A row with a valid MAC of a copy that went on, at a number that this store has not given."""
    ahead = made.copy(request, "ahead.db")
    other = ahead.open()
    changing.rotate(other.session, MAIL, actor_uid=7, expected_current=3, now=NOW)
    other.close()
    store = made.open()
    store.find_version(MAIL, 1)
    made.run("DROP INDEX key_versions_one_current")
    put_back(made, "key_versions", "key_name = 'mail-credentials' AND number = 4", ahead)
    with pytest.raises(StoreTampered, match="version 4"):
        store.describe_versions(MAIL, [4])
    store.close()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_running_process_notices_a_version_missing_from_a_page(
    made: MadeStore, number: int
) -> None:
    """The rows that are left fit, and the set is not read again: the numbers tell."""
    store = made.open()
    store.find_version(MAIL, 1)
    made.run("DELETE FROM key_versions WHERE key_name = ? AND number = ?", MAIL, number)
    with pytest.raises(StoreTampered, match="set of versions"):
        store.list_versions(MAIL, before=None, limit=100)
    with pytest.raises(StoreTampered, match="set of versions"):
        store.verify_page(MAIL, after=0, limit=100)
    with pytest.raises(StoreTampered, match=f"version {number} of"):
        store.find_version(MAIL, number)
    store.close()


def test_a_change_that_miscounts_its_versions_is_refused_before_the_commit(
    made: MadeStore,
) -> None:
    """A mistake of our own: the digest fits, and nobody would ever find the version."""
    store = made.open()
    with pytest.raises(StoreTampered, match="set of versions"), store.session.changing() as draft:
        version, _ = draft.reader.wrapping.make_version(MAIL, 4, NOW, None, 0)
        key = draft.snapshot.keys[MAIL]
        draft.change.change_key(key, {}, added=[{**version, "state": "PENDING"}])
        draft.finish(MAIL)
    assert made.run("SELECT max(number) FROM key_versions") == [(3,)]
    store.close()


def test_an_older_key_with_its_older_versions_put_back_is_refused(
    made: MadeStore, past: MadeStore
) -> None:
    made.run("DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number = 4")
    put_back(made, "key_versions", "key_name = 'mail-credentials' AND number = 3", past)
    put_back(made, "keys", "name = 'mail-credentials'", past)
    refuse(made)


def test_a_running_process_refuses_a_store_whose_rows_all_went_back(
    made: MadeStore, past: MadeStore
) -> None:
    """I10: every row fits every other; only the generation tells."""
    store = made.open()
    assert store.load_key(MAIL).info.current_number == 4
    for table in reversed(DIGESTED):
        made.run(f"DELETE FROM {table}")
    for table in DIGESTED:
        put_back(made, table, "1 = 1", past)
    with pytest.raises(StoreTampered, match="older"):
        store.read_meta()
    with pytest.raises(StoreTampered, match="older"):
        changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    store.close()


@SQLITE_ONLY
def test_a_running_process_refuses_a_store_that_went_back_whole(made: MadeStore) -> None:
    """I10: an older copy of the whole store fits in itself; the generation tells."""
    past = made.path.with_name("past.db")
    shutil.copy(made.path, past)
    store = made.open()
    changing.rotate(store.session, MAIL, actor_uid=7, expected_current=3, now=NOW)
    newest = made.path.with_name("newest.db")
    made.run("VACUUM INTO ?", str(newest))
    newest.chmod(0o600)
    past.replace(made.path)
    for side in ("-wal", "-shm"):
        made.path.with_name(f"keyside.db{side}").unlink(missing_ok=True)
    with pytest.raises(StoreTampered, match="older"):
        store.read_meta()
    with pytest.raises(StoreTampered, match="older"):
        changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    newest.replace(made.path)
    for side in ("-wal", "-shm"):
        made.path.with_name(f"keyside.db{side}").unlink(missing_ok=True)
    assert store.load_key(MAIL).info.current_number == 4
    store.close()


@SQLITE_ONLY
def test_a_running_process_refuses_a_fork_with_the_same_generation(made: MadeStore) -> None:
    """Two copies of one store that each went on by one are not the same store."""
    past = made.path.with_name("past.db")
    shutil.copy(made.path, past)
    other = MadeStore(past, made.custodian).open()
    changing.rotate(other.session, BANK, actor_uid=7, expected_current=0, now=NOW)
    other.close()
    store = made.open()
    changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    store.session.database.close()
    past.replace(made.path)
    with pytest.raises(StoreTampered, match="different"):
        store.read_meta()
    store.close()


@SQLITE_ONLY
def test_a_running_process_refuses_another_store_of_the_same_root_key(made: MadeStore) -> None:
    """MACs are bound to the store."""
    store = made.open()
    other = made.path.with_name("other.db")
    initialise_store(f"sqlite:///{other}", made.custodian, uid=os.geteuid(), gid=os.getegid())
    other.replace(made.path)
    with pytest.raises(StoreError):
        store.read_meta()
    store.close()


def test_a_row_of_another_store_under_the_same_root_key_is_refused(
    made: MadeStore, request: pytest.FixtureRequest
) -> None:
    other = made.make_another(request, "other.db")
    theirs = other.open()
    changing.create_key(theirs.session, MAIL, NOW)
    theirs.close()
    made.run("DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number > 1")
    put_back(made, "key_versions", "key_name = 'mail-credentials' AND number = 1", other)
    put_back(made, "keys", "name = 'mail-credentials'", other)
    refuse(made)


def test_a_change_does_not_launder_what_is_wrong_below_it(made: MadeStore) -> None:
    """A rotation on a set of versions that does not fit is refused, and writes nothing."""
    made.run("DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number = 1")
    before = made.run("SELECT * FROM key_versions ORDER BY 1, 2")
    store = made.open()
    with pytest.raises(StoreTampered):
        changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    assert made.run("SELECT * FROM key_versions ORDER BY 1, 2") == before
    assert store.load_key(BANK).info.current_number == 2, "the other key is sound"
    changing.rotate(store.session, BANK, actor_uid=7, expected_current=0, now=NOW)
    with pytest.raises(StoreTampered):
        store.load_key(MAIL)
    store.close()


@SQLITE_ONLY
def test_a_trigger_that_alters_what_is_written_is_refused_before_the_commit(
    made: MadeStore,
) -> None:
    made.run(
        "CREATE TRIGGER evil AFTER INSERT ON key_versions BEGIN"
        " UPDATE key_versions SET made_by_uid = 0 WHERE number = NEW.number; END"
    )
    store = made.open()
    with pytest.raises(StoreTampered):
        changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    assert made.run("SELECT max(number) FROM key_versions") == [(3,)]
    store.close()


OWN_ROW = "CREATE TRIGGER evil AFTER UPDATE OF mac ON store_meta BEGIN UPDATE store_meta SET"
# With its valid MAC. The change has claimed the next generation before it writes the rest.
THE_ROW_BEFORE = "generation = OLD.generation - 1, keys_digest = OLD.keys_digest, mac = OLD.mac"
PREDECESSOR = (
    "CREATE TRIGGER evil AFTER UPDATE OF mac ON key_versions WHEN NEW.state = 'ARCHIVED' BEGIN"
    " UPDATE key_versions SET {} WHERE key_name = NEW.key_name AND number = NEW.number; END"
)


@SQLITE_ONLY
@pytest.mark.parametrize(
    "trigger",
    [
        f"{OWN_ROW} keys_digest = randomblob(48); END",
        f"{OWN_ROW} created_at = 0; END",
        f"{OWN_ROW} {THE_ROW_BEFORE}; END",
        "CREATE TRIGGER evil AFTER UPDATE OF mac ON store_meta BEGIN DELETE FROM store_meta; END",
        PREDECESSOR.format("wrapped = randomblob(81)"),
        PREDECESSOR.format("state = 'DISABLED'"),
        PREDECESSOR.format("number = 99"),
    ],
)
def test_a_trigger_on_the_stores_row_or_the_predecessor_is_refused_before_the_commit(
    made: MadeStore, trigger: str
) -> None:
    """All that a rotation writes is read back: no version is handed out that can't be kept."""
    tables = ("store_meta", "keys", "key_versions")
    before = [made.run(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    made.run(trigger)
    store = made.open()
    with pytest.raises(StoreTampered):
        changing.rotate(store.session, MAIL, actor_uid=7, expected_current=0, now=NOW)
    assert [made.run(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == before
    assert store.load_key(MAIL).info.current_number == 3
    store.close()
    read_afresh(made)


@SQLITE_ONLY
def test_an_authenticator_shows_nothing_of_its_keys(made: MadeStore) -> None:
    """I7: no secret in a repr, a pickle or a copy."""
    authenticator = Authenticator(made.custodian, bytes(16))
    assert repr(authenticator) == f"Authenticator(store_id={bytes(16).hex()})"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled or copied"):
            leak(authenticator)


def test_wrapped_material_is_bound_to_store_key_number_and_version_id() -> None:
    """The wrapped key itself is bound to its place, not only its row."""
    bindings = {
        bind_material(store, name, number, vid)
        for store in (bytes(16), b"\x01" * 16)
        for name in ("a", "ab")
        for number in (1, 2)
        for vid in (bytes(16), b"\x01" * 16)
    }
    assert len(bindings) == 16


def test_the_encoding_tells_apart_what_looks_alike() -> None:
    """Injective: no two different rows give the same bytes."""
    rows: list[tuple[str, dict[str, int | str | bytes | None]]] = [
        ("t", {}),
        ("tt", {}),
        ("t", {"a": 1}),
        ("t", {"a": "1"}),
        ("t", {"a": b"1"}),
        ("t", {"a": -1}),
        ("t", {"a": ""}),
        ("t", {"a": b""}),
        ("t", {"ab": "c"}),
        ("t", {"a": "bc"}),
        ("t", {"a": "b", "c": "d"}),
        ("t", {"a": "bcd"}),
        ("t", {"a": "d", "c": "b"}),
    ]
    assert len({encode_row(bytes(16), *row) for row in rows}) == len(rows)


@SQLITE_ONLY
def test_columns_that_are_null_do_not_count(made: MadeStore) -> None:
    """A migration that adds nullable columns leaves old rows' MACs valid."""
    authenticator = Authenticator(made.custodian, bytes(16))
    row: dict[str, int | str | bytes | None] = {"name": "a", "generation": 1}
    mac = authenticator.compute_mac("keys", row)
    assert authenticator.compute_mac("keys", {**row, "mac": b"x", "added_later": None}) == mac
    assert authenticator.compute_mac("keys", {**row, "added_later": 0}) != mac


@pytest.mark.parametrize("value", [1.0, True, 1 << 63, -(1 << 63) - 1])
def test_values_that_no_column_has_are_refused(value: Any) -> None:
    with pytest.raises(StoreTampered):
        encode_row(bytes(16), "t", {"a": value})


@SQLITE_ONLY
def test_digests_hide_their_sums(made: MadeStore) -> None:
    """Two digests of the same rows differ, and both fit."""
    authenticator = Authenticator(made.custodian, bytes(16))
    total = sum(authenticator.compute_term(bytes([n]) * 32) for n in range(5))
    one, two = authenticator.seal_sum(total), authenticator.seal_sum(total)
    assert one != two
    assert len(one) == 48
    assert authenticator.fits(one, total)
    assert authenticator.fits(two, total)
    assert not authenticator.fits(one, total + 1)
    assert authenticator.open_sum(authenticator.seal_sum(-1)) == (1 << 256) - 1
