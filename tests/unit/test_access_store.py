"""Requests and grants at rest: nobody changes them unnoticed; they go where the store goes (I6)."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import sqlite3
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from tests.unit.access_scene import HOST, HOUR_US, POLICY, WISH, MadeBoot, Scene, item
from tests.unit.api_scene import make_caller
from tests.unit.made_store import (
    KINDS,
    MAIL,
    NOW,
    MadeStore,
    make_store,
    make_store_of,
)
from tests.unit.test_store_backup import restore
from tests.unit.test_store_races import _open, begin, place
from tests.unit.test_store_rewrap import Rotating

from keyside_sidecar.access import grants
from keyside_sidecar.access.credential import hash_credential
from keyside_sidecar.access.facts import Facts
from keyside_sidecar.access.requests import AccessState, EndReason
from keyside_sidecar.errors import AccessRefused, StoreTampered
from keyside_sidecar.store.backup import write_backup
from keyside_sidecar.store.reader import Reader
from keyside_sidecar.store.tables import access_requests, access_uses, store_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from keyside_sidecar.access.grants import Usage
    from keyside_sidecar.access.requests import AccessId, AccessRequest, Moment
    from keyside_sidecar.store import Store
    from keyside_sidecar.store.access_reader import AccessPlace

CONTEXT = multiprocessing.get_context("forkserver")
COLUMNS = {
    table.name: [column.name for column in table.columns]
    for table in (access_requests, access_uses, store_meta)
}


@dataclass
class History:
    """A store with requests in every state, and what some rows once were.

    Args:
        made: Where it is.
        ids: The requests by what they are for.
        past: Rows as they were, by a name for that moment.
        credential: Of the active grant.
    """

    made: MadeStore
    ids: dict[str, AccessId] = field(default_factory=dict)
    past: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    credential: str = ""

    def read(self, name: str) -> tuple[Any, ...]:
        names = ", ".join(COLUMNS["access_requests"])
        ((*row,),) = self.made.run(
            f"SELECT {names} FROM access_requests WHERE id = ?", self.ids[name]
        )
        return tuple(row)

    def put_back(self, moment: str) -> None:
        """Write a row as it once was over what it is now."""
        row = self.past[moment]
        self.made.run("DELETE FROM access_requests WHERE id = ?", row[0])
        self.insert("access_requests", row)

    def insert(self, table: str, row: tuple[Any, ...]) -> None:
        names = COLUMNS[table]
        marks = ", ".join("?" for _ in names)
        self.made.run(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", *row)

    def dump(self, table: str) -> list[tuple[Any, ...]]:
        return self.made.run(f"SELECT {', '.join(COLUMNS[table])} FROM {table}")

    def use(self, number: int) -> tuple[Any, ...]:
        names = ", ".join(COLUMNS["access_uses"])
        ((*row,),) = self.made.run(
            f"SELECT {names} FROM access_uses WHERE request_id = ? AND number = ?",
            self.ids["active"],
            number,
        )
        return tuple(row)

    def copy(self, request: pytest.FixtureRequest) -> History:
        made = self.made.copy(request, "copy.db")
        shutil.copy2(f"{self.made.path}.root.key", f"{made.path}.root.key")
        return History(made, self.ids, self.past, self.credential)


def write_history(made: MadeStore) -> History:
    history = History(made)
    store = made.open()
    store.create_key(MAIL, NOW)
    scene = Scene(store)

    def remember(name: str, moment: str | None = None) -> None:
        history.ids[name] = scene.id
        if moment is not None:
            history.past[moment] = history.read(name)

    scene.ask()
    scene.deny("mia", "nö")
    remember("denied")
    scene.grant(duration_us=HOUR_US)
    remember("revoked", "the grant that was revoked, active")
    scene.use("anna", item(9))
    scene.revoke("otto")
    remember("revoked", "the grant that was revoked, ended")
    scene.grant()
    remember("active", "the active grant, not used yet")
    history.credential = scene.credential
    scene.use("anna", item(1, context={"tenant": "zürich"}), item(2))
    remember("active", "the active grant, used less")
    scene.use("anna", item(3))
    scene.ask()
    remember("pending", "the pending request, not approved yet")
    scene.approve("mia")
    remember("pending", "the pending request, approved at one level")
    scene.leave("mia", 200)
    with pytest.raises(AccessRefused):
        scene.approve("lea")
    store.close()
    return history


@pytest.fixture(scope="module", params=KINDS)
def pattern(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> History:
    return write_history(make_store_of(request, tmp_path_factory.mktemp("access")))


@pytest.fixture
def history(pattern: History) -> Iterator[History]:
    """The store, whose rows are afterwards what they were before: quicker than a copy."""
    saved = {table: pattern.dump(table) for table in COLUMNS}
    yield pattern
    for table, rows in saved.items():
        pattern.made.run(f"DELETE FROM {table}")
        for row in rows:
            pattern.insert(table, row)


@pytest.fixture
def opened(history: History) -> Iterator[Store]:
    store = history.made.open()
    yield store
    store.close()


def patrol(store: Store, limit: int = 2) -> None:
    """Check all rows, as the watch does, a few at once."""
    seen: AccessPlace | None = None
    while (seen := store.access.verify_page(seen, limit)) is not None:
        pass


def describe(store: Store) -> list[Any]:
    """Return all that a store says of requests, grants and uses."""
    found = store.access.list_open() + store.access.list_ended(before=None, limit=100)
    uses = [store.access.read_uses(request.id, limit=100) for request in found]
    by_id = [store.access.find(request.id) for request in found]
    return [found, uses, by_id == found]


def use(store: Store, credential: str, count: int = 1) -> Any:
    """Use a grant of anna's at a moment when it is active."""
    facts = Facts(POLICY, HOST, {1001: frozenset({100})})
    actor, items = make_caller(1001, gids=frozenset({100}), account="anna"), [item(1)] * count

    def decide(found: AccessRequest, moment: Moment) -> Usage:
        return grants.use(found, moment, facts, actor, items)

    return store.access.use(hash_credential(credential), decide, items)


def set_clock(store: Store, request: AccessRequest | None) -> None:
    """Make it the moment at which a grant began, in the same boot of its host."""
    assert request is not None
    store.session.boot_clock = MadeBoot(HOST)
    assert request.activated_us is not None
    database: Any = store.session.database
    moment_us = request.activated_us
    database.read_time_us = lambda _connection: moment_us


def test_an_untouched_store_reads(history: History, opened: Store) -> None:
    patrol(opened)
    states = {name: opened.access.find(one) for name, one in history.ids.items()}
    assert {name: found and str(found.state) for name, found in states.items()} == {
        "denied": "ENDED",
        "revoked": "ENDED",
        "active": "ACTIVE",
        "pending": "PENDING",
    }
    assert states["active"] is not None
    assert states["active"].used == 3


def alter(value: Any) -> list[Any]:
    """Values that are not the given one, of its own type and none."""
    if value is None:
        return [1, "x", b"x"]
    if isinstance(value, int):
        return [value + 1, None]
    if isinstance(value, str):
        return [value + " ", None]
    return [bytes([value[0] ^ 1]) + value[1:], None]


@pytest.mark.parametrize("table", ["access_requests", "access_uses"])
def test_any_column_of_any_row_changed_by_hand_is_refused(
    history: History, opened: Store, table: str
) -> None:
    """The error names the request or the use, where the row is still found as what it was."""
    made, tried = history.made, 0
    made.drop_checks()
    for column in COLUMNS[table]:
        by = "mac" if column != "mac" else ("id" if table == "access_requests" else "version")
        for place_, value in made.run(f"SELECT {by}, {column} FROM {table}"):
            for other in alter(value):
                try:
                    made.run(f"UPDATE {table} SET {column} = ? WHERE {by} = ?", other, place_)
                except (sqlite3.IntegrityError, psycopg.Error):
                    continue  # the schema itself does not take it
                if made.run(f"SELECT {column} FROM {table} WHERE {by} = ?", place_) == [(value,)]:
                    continue
                tried += 1
                with pytest.raises(StoreTampered):
                    patrol(opened)
                made.run(f"UPDATE {table} SET {column} = ? WHERE {by} = ?", value, place_)
    assert tried > len(COLUMNS[table])
    patrol(opened)


def drop(table: str, where: str) -> Callable[[History], object]:
    return lambda history: history.made.run(
        f"DELETE FROM {table} WHERE {where}".format(**history.ids)
    )


def move(history: History, name: str) -> None:
    history.made.run(
        "UPDATE access_requests SET id = 'ar-zzzzzzzzzzzz' WHERE id = ?", history.ids[name]
    )


def reopen(history: History, name: str) -> None:
    history.made.drop_checks()
    history.made.run(
        "UPDATE access_requests SET state = 'ACTIVE', ended_number = NULL WHERE id = ?",
        history.ids[name],
    )


def swap_uses(history: History) -> None:
    one, two = history.use(1), history.use(2)
    history.made.run("DELETE FROM access_uses WHERE request_id = ? AND number < 3", one[0])
    history.insert("access_uses", (one[0], 2, *one[2:]))
    history.insert("access_uses", (two[0], 1, *two[2:]))


def add_use(history: History) -> None:
    row = history.use(3)
    history.insert("access_uses", (row[0], 4, *row[2:]))


def forge_approval(history: History) -> None:
    ((levels,),) = history.made.run(
        "SELECT levels FROM access_requests WHERE id = ?", history.ids["pending"]
    )
    forged = json.loads(levels)
    forged[0]["approvals"][0]["struck"] = ""
    history.made.run(
        "UPDATE access_requests SET levels = ? WHERE id = ?",
        json.dumps(forged, separators=(",", ":")),
        history.ids["pending"],
    )


# What somebody does, and how the error names it.
CHANGES: dict[str, tuple[Callable[[History], object], str]] = {
    "a grant that was revoked is put back as it was": (
        lambda history: history.put_back("the grant that was revoked, active"),
        "{revoked}",
    ),
    "the used count is put back": (
        lambda history: history.put_back("the active grant, used less"),
        "set of open requests",
    ),
    "a grant is put back to before its first use": (
        lambda history: history.put_back("the active grant, not used yet"),
        "set of open requests",
    ),
    "an approval is put back": (
        lambda history: history.put_back("the pending request, approved at one level"),
        "set of open requests",
    ),
    "an approval is taken back": (
        lambda history: history.put_back("the pending request, not approved yet"),
        "set of open requests",
    ),
    "a struck approval is made to count": (forge_approval, "{pending}"),
    "a pending request deleted": (
        drop("access_requests", "id = '{pending}'"),
        "set of open requests",
    ),
    "a grant deleted": (drop("access_requests", "id = '{active}'"), "set of open requests"),
    "all open requests deleted": (
        drop("access_requests", "ended_number IS NULL"),
        "set of open requests",
    ),
    "an ended request deleted": (
        drop("access_requests", "id = '{denied}'"),
        "set of ended requests",
    ),
    "the request that ended last deleted": (
        drop("access_requests", "id = '{revoked}'"),
        "set of ended requests",
    ),
    "a grant moved to another id": (lambda history: move(history, "active"), "ar-zzzzzzzzzzzz"),
    "an ended request moved to another id": (
        lambda history: move(history, "denied"),
        "ar-zzzzzzzzzzzz",
    ),
    "an ended request opened again": (lambda history: reopen(history, "revoked"), "{revoked}"),
    "the first use deleted": (
        drop("access_uses", "request_id = '{active}' AND number = 1"),
        "uses",
    ),
    "the last use deleted": (drop("access_uses", "request_id = '{active}' AND number = 3"), "uses"),
    "all uses of an ended grant deleted": (drop("access_uses", "request_id = '{revoked}'"), "uses"),
    "two uses exchanged": (swap_uses, "use"),
    "a use added": (add_use, "use"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_put_back_moved_deleted_or_made_up_is_refused(
    history: History, opened: Store, name: str
) -> None:
    """By a process that has checked everything before, and by one that has not."""
    patrol(opened)
    change, place_ = CHANGES[name]
    change(history)
    fresh = history.made.open()
    for store in (opened, fresh):
        with pytest.raises(StoreTampered, match=place_.format(**history.ids)):
            patrol(store)
    fresh.close()


OF_OPEN_ROWS = [
    "a grant that was revoked is put back as it was",
    "the used count is put back",
    "a grant is put back to before its first use",
    "an approval is put back",
    "an approval is taken back",
    "a struck approval is made to count",
    "a pending request deleted",
    "a grant moved to another id",
    "an ended request opened again",
]


@pytest.mark.parametrize("name", OF_OPEN_ROWS)
def test_no_grant_is_used_and_nothing_told_beside_an_open_row_that_does_not_fit(
    history: History, opened: Store, name: str
) -> None:
    """The very next call, and not only the patrol: each checks all that is open."""
    set_clock(opened, opened.access.find(history.ids["active"]))
    CHANGES[name][0](history)
    before = history.made.run("SELECT generation FROM store_meta")
    with pytest.raises(StoreTampered):
        use(opened, history.credential)
    with pytest.raises(StoreTampered):
        opened.access.list_open()
    with pytest.raises(StoreTampered):
        opened.access.find(history.ids["pending"])
    assert history.made.run("SELECT generation FROM store_meta") == before


def test_a_use_that_was_taken_away_shows_where_it_is_told(history: History, opened: Store) -> None:
    history.made.run("DELETE FROM access_uses WHERE number = 2")
    with pytest.raises(StoreTampered, match="uses"):
        opened.access.read_uses(history.ids["active"], limit=10)


def test_an_ended_request_that_was_deleted_shows_in_the_list(
    history: History, opened: Store
) -> None:
    drop("access_requests", "id = '{denied}'")(history)
    with pytest.raises(StoreTampered, match="set of ended"):
        opened.access.list_ended(before=None, limit=10)


def test_a_mistake_of_our_own_is_refused_before_the_commit(history: History, opened: Store) -> None:
    """No decision makes uses out of nothing, or a request out of another."""
    before = describe(opened)
    for broken in ({"used": 7}, {"id": "ar-zzzzzzzzzzzz"}):
        with pytest.raises(RuntimeError):
            opened.access.change(history.ids["pending"], partial(_break, broken))
    assert describe(opened) == before


def _break(broken: dict[str, Any], found: AccessRequest, _moment: Moment) -> AccessRequest:
    return replace(found, **broken)


# --- several processes


def _use_up(where: Any, credential: str, started: Any, reports: Connection) -> None:
    store = _open(where)
    found = store.access.find_by_credential(hash_credential(credential))
    assert found is not None
    set_clock(store, found[0])
    started.wait()
    allowed = 0
    try:
        while True:
            counted = use(store, credential, 3)
            allowed += list(counted.verdicts).count(None)
    except AccessRefused as error:
        reports.send((allowed, error.reason))
    store.close()


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    return make_store_of(request, tmp_path)


def test_two_processes_never_use_a_grant_more_often_than_it_allows(made: MadeStore) -> None:
    """I9: each use is a compare-and-swap; together they make exactly as many as there are."""
    store = made.open()
    scene = Scene(store)
    grant = scene.grant(max_uses=50)
    store.close()
    started = CONTEXT.Event()
    children = [begin(_use_up, place(made), scene.credential, started) for _ in range(2)]
    started.set()
    answers = [reports.recv() for _, reports in children]
    for child, _ in children:
        child.join(60)
        assert child.exitcode == 0
    assert sum(allowed for allowed, _ in answers) == 50
    assert {reason for _, reason in answers} == {"GRANT_ENDED"}
    store = made.open()
    found = store.access.find(grant.id)
    assert found is not None
    assert (found.state, found.end_reason, found.used) == (AccessState.ENDED, EndReason.SPENT, 50)
    assert [one.number for one in store.access.read_uses(grant.id, limit=100)] == [*range(1, 51)]
    patrol(store)
    store.close()


def test_another_process_reads_no_key_again_because_of_a_request(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new generation, and no key in it that has changed."""
    writing, watching = made.open(), made.open()
    writing.create_key(MAIL, NOW)
    generation = watching.read_meta().generation
    token = watching.read_change_token()
    scene = Scene(writing)
    scene.grant(max_uses=2)
    monkeypatch.setattr(Reader, "read_keys", None)
    scene.use()
    assert watching.read_change_token() != token
    changes = watching.changed_since(generation)
    assert (changes.generation, changes.keys) == (generation + 6, ())
    assert watching.list_keys()[0].name == MAIL
    monkeypatch.undo()
    writing.rotate(MAIL, actor_uid=7, expected_current=1, now=NOW)
    assert watching.changed_since(generation).keys == (MAIL,)
    assert watching.load_key(MAIL).info.current_number == 2
    writing.close()
    watching.close()


# --- where the store goes


def test_a_restored_backup_has_every_request_and_an_accepted_rollback_ends_the_open_ones(
    history: History, opened: Store, request: pytest.FixtureRequest
) -> None:
    file = io.BytesIO()
    _, contents = write_backup(opened.session, "0.1.0", NOW, file.write)
    assert (contents.access_open, contents.access_ended) == (2, 2)
    restored = restore(request, history.made, file.getvalue())
    assert describe(restored) == describe(opened)
    patrol(restored)
    ended = restored.access.end_all(EndReason.STORE_ROLLED_BACK, "accepted by root")
    assert {one.after.id for one in ended} == {history.ids["active"], history.ids["pending"]}
    assert {str(one.after.end_reason) for one in ended} == {"STORE_ROLLED_BACK"}
    assert restored.access.list_open() == []
    numbers = [one.ended_number for one in restored.access.list_ended(before=None, limit=9)]
    assert numbers == [4, 3, 2, 1]
    patrol(restored)
    with pytest.raises(AccessRefused, match="GRANT_ENDED"):
        use(restored, history.credential)
    restored.close()


@pytest.mark.parametrize(
    "name",
    [
        "a grant that was revoked is put back as it was",
        "the used count is put back",
        "an ended request deleted",
        "a grant deleted",
        "the last use deleted",
        "all uses of an ended grant deleted",
        "a use added",
    ],
)
def test_no_backup_is_made_of_a_store_with_rows_that_do_not_fit(
    history: History, opened: Store, name: str
) -> None:
    CHANGES[name][0](history)
    with pytest.raises(StoreTampered):
        write_backup(opened.session, "0.1.0", NOW, io.BytesIO().write)


def test_a_new_root_key_takes_requests_and_grants_along(
    pattern: History, request: pytest.FixtureRequest
) -> None:
    """What was granted goes on; every row carries another MAC."""
    history = pattern.copy(request)
    store = history.made.open()
    before = describe(store)
    store.close()
    every_mac = "SELECT mac FROM access_requests UNION SELECT mac FROM access_uses"
    macs = set(history.made.run(every_mac))
    rotating = Rotating(history.made)
    rotating.finish()
    again = rotating.open()
    assert describe(again) == before
    patrol(again)
    assert macs.isdisjoint(history.made.run(every_mac))
    set_clock(again, again.access.find(history.ids["active"]))
    assert use(again, history.credential).after.used == 4
    patrol(again)
    again.close()


def test_however_many_have_ended_the_open_ones_are_found_by_an_index(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    made = make_store(tmp_path)
    store = made.open()
    scene = Scene(store)
    scene.ask()
    for where in (
        "ended_number IS NULL ORDER BY created_at, id",
        "ended_number < 9 ORDER BY ended_number DESC",
        "ended_number IS NOT NULL AND credential_hash = x'00'",
    ):
        (first, *_) = made.run(f"EXPLAIN QUERY PLAN SELECT * FROM access_requests WHERE {where}")
        assert first[3].startswith("SEARCH"), where
    store.close()


def test_a_request_without_uses_leaves_no_trace_of_a_credential(history: History) -> None:
    """The store holds a hash, and nothing that the credential could be made of."""
    columns = ", ".join(COLUMNS["access_requests"])
    rows = history.made.run(f"SELECT {columns} FROM access_requests")
    body = history.credential.removeprefix("ksc-")
    assert body not in repr(rows)
    assert hash_credential(history.credential) in {value for row in rows for value in row}
    assert all(json.loads(row[3])["reason"] == WISH.reason for row in rows)
