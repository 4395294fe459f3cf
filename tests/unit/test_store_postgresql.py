"""What is PostgreSQL's own: locks, notices, tokens, roles, and everything that a server can do."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from sqlalchemy import insert, select, text, update
from support.postgresql import DAEMON, running_server
from tests.unit.access_scene import Scene
from tests.unit.made_store import BANK, MAIL, NOW, MadeOnServer, make_root_key, make_store_on

from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.custody.root_key import RootKey
from keyside_sidecar.errors import (
    StartupError,
    StoreSchemaError,
    StoreTampered,
    StoreUnavailable,
)
from keyside_sidecar.store import Store, changing, initialise_store, migrate_store, schema
from keyside_sidecar.store import sidecars as register_module
from keyside_sidecar.store.database import open_database
from keyside_sidecar.store.fleet import Fleet
from keyside_sidecar.store.observed import ObservedTime
from keyside_sidecar.store.privileges import NEEDED, inspect_server
from keyside_sidecar.store.rewrap import rewrap_store
from keyside_sidecar.store.sidecars import ProcessName, SidecarRegister
from keyside_sidecar.store.tables import keys, metadata, sidecars, store_meta
from keyside_sidecar.store.usage import UsageBook, UsageEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgresql import Server

    from keyside_sidecar.store.database import Database

ME = ProcessName("host", "boot", 1, 1)


@pytest.fixture(scope="module")
def pattern(
    postgresql_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MadeOnServer]:
    """A store with one key; copied for each test, which is quick."""
    made = make_store_on(postgresql_server, tmp_path_factory.mktemp("pattern"))
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    store.close()
    yield made
    made.database.drop()


@pytest.fixture
def made(pattern: MadeOnServer, request: pytest.FixtureRequest) -> MadeOnServer:
    """The store, used by the daemon's role under its grants."""
    return pattern.copy(request, "keyside")


@pytest.fixture
def store(made: MadeOnServer) -> Iterator[Store]:
    store = made.open(busy_timeout_s=2)
    yield store
    store.close()


@contextlib.contextmanager
def opened(made: MadeOnServer, busy_timeout_s: float = 5.0) -> Iterator[Database]:
    database = open_database(made.url, frozenset(), busy_timeout_s)
    try:
        yield database
    finally:
        database.close()


def rotate(store: Store) -> int:
    done = changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
    return done.version.info.number


def use_everything(store: Store) -> None:
    """Do all that a sidecar does with a store, at least once."""
    session = store.session
    changing.create_key(session, BANK, NOW)
    number = rotate(store)
    UsageBook(session).record([UsageEntry(MAIL, number, messages=1)])
    UsageBook(session).record([UsageEntry(MAIL, number, messages=1)])
    time_ = ObservedTime(session)
    time_.advance(time_.advance(time_.read(), 5), 5)
    register = SidecarRegister(session)
    for _ in range(2):
        register.enter(b"\x01" * 16, ME, 1, ("0" * 16,), lambda _: True)
    register.withdraw(b"\x01" * 16)
    with mock.patch.object(register_module, "_REMOVE_AFTER_US", -1):
        register.enter(b"\x02" * 16, ME, 1, ("0" * 16,), lambda _: True)
    scene = Scene(store)
    scene.grant()
    scene.use()
    scene.revoke("otto")
    # The command that moves a store to another root key has the daemon's role as well.
    successor = FileCustodian(RootKey(os.urandom(32)))
    rewrap_store(session, successor, Fleet(session, ME.boot, lambda _: False))


# Writers and their locks


def test_a_writer_waits_for_the_one_before_it_and_sees_what_it_wrote(made: MadeOnServer) -> None:
    """The lock comes before the snapshot: nobody builds upon a state that is gone."""
    with opened(made) as first, opened(made) as second:
        locked = threading.Event()
        seen: list[int] = []

        def write_second() -> None:
            locked.wait()
            with second.transaction(lock=store_meta) as connection:
                seen.append(connection.execute(select(store_meta.c.generation)).scalar_one())

        thread = threading.Thread(target=write_second)
        thread.start()
        with first.transaction(lock=store_meta) as connection:
            locked.set()
            time.sleep(0.2)
            assert seen == []
            connection.execute(update(store_meta).values(generation=77))
        thread.join(10)
        assert seen == [77]


def test_writers_of_different_tables_do_not_wait_for_each_other(made: MadeOnServer) -> None:
    with opened(made, 0.2) as first, opened(made, 0.2) as second:  # noqa: SIM117
        with first.transaction(lock=store_meta), second.transaction(lock=sidecars):
            pass


def test_a_lock_held_too_long_is_unavailable_for_changes_and_no_matter_for_reading(
    made: MadeOnServer,
) -> None:
    store = made.open(busy_timeout_s=0.2)
    with opened(made) as other, other.transaction(lock=store_meta):
        with pytest.raises(StoreUnavailable, match="another process has been writing"):
            rotate(store)
        assert store.load_key(MAIL).info.current_number == 1
    assert rotate(store) == 2
    store.close()


def test_a_process_that_stops_while_it_writes_loses_its_lock(made: MadeOnServer) -> None:
    """As one does that gets SIGSTOP: the server ends its session after twice the patience."""
    store = made.open(busy_timeout_s=3)
    with (
        opened(made, 0.2) as other,
        pytest.raises(StoreUnavailable),
        other.transaction(lock=store_meta) as connection,
    ):
        connection.execute(update(store_meta).values(generation=99))
        assert rotate(store) == 2
    store.close()


def test_a_reader_sees_one_state_of_the_store(made: MadeOnServer, store: Store) -> None:
    with opened(made) as database, database.transaction() as connection:
        query = select(keys.c.current_number)
        assert connection.execute(query).scalar_one() == 1
        rotate(store)
        assert connection.execute(query).scalar_one() == 1


def test_a_reader_can_not_write(made: MadeOnServer) -> None:
    with (
        opened(made) as database,
        pytest.raises(StoreUnavailable, match="read-only"),
        database.transaction() as connection,
    ):
        connection.execute(update(store_meta).values(generation=99))


def test_a_row_that_the_schema_refuses_is_tampering_and_is_not_shown(made: MadeOnServer) -> None:
    """I7: the server's own message holds the row."""
    with opened(made) as database:
        with (
            pytest.raises(StoreTampered) as caught,
            database.transaction(lock=store_meta) as connection,
        ):
            row = connection.execute(select(keys)).one()._asdict()
            connection.execute(insert(keys).values(**row | {"name": "x", "current_number": 0}))
        assert caught.value.__suppress_context__
        assert "Failing row" not in str(caught.value)


# Notices and tokens


def wait_in_background(
    database: Database, timeout_s: float
) -> tuple[threading.Thread, list[float]]:
    """Wait for a change; the list gets how long it took."""
    database.wait_for_change(0)  # connects, and so returns at once
    took: list[float] = []
    begun = time.monotonic()

    def wait() -> None:
        database.wait_for_change(timeout_s)
        took.append(time.monotonic() - begun)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, took


def test_a_change_wakes_whoever_waits_at_once(made: MadeOnServer, store: Store) -> None:
    with opened(made) as database:
        assert database.announces_changes
        thread, took = wait_in_background(database, 20)
        time.sleep(0.1)
        rotate(store)
        committed = time.monotonic()
        thread.join(10)
        assert took
        assert time.monotonic() - committed < 0.5


def test_what_is_rolled_back_wakes_nobody(made: MadeOnServer) -> None:
    with opened(made) as database, opened(made) as other:
        thread, took = wait_in_background(database, 0.5)
        with (
            contextlib.suppress(ZeroDivisionError),
            other.transaction(lock=store_meta) as connection,
        ):
            other.announce(connection)
            raise ZeroDivisionError
        thread.join(10)
        assert took[0] >= 0.5


def test_closing_ends_a_wait(made: MadeOnServer) -> None:
    with opened(made) as database:
        thread, _ = wait_in_background(database, 20)
        database.close()
        thread.join(2)
        assert not thread.is_alive()


def test_waiting_says_when_the_server_is_away_and_heals(made: MadeOnServer) -> None:
    with opened(made) as database:
        database.wait_for_change(0)
        server = made.database.server
        server.stop()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                database.wait_for_change(5)
        server.start()
        begun = time.monotonic()
        database.wait_for_change(5)
        assert time.monotonic() - begun < 1, "something may have been missed meanwhile"


def test_the_token_moves_with_keys_and_versions_only(made: MadeOnServer, store: Store) -> None:
    with opened(made) as watching:
        token = watching.read_change_token()
        store.read_meta()
        register = SidecarRegister(store.session)
        register.enter(b"\x01" * 16, ME, 1, ("0" * 16,), lambda _: True)
        made.run("CREATE TABLE something_else (id int)")
        made.run("INSERT INTO something_else VALUES (1)")
        assert watching.read_change_token() == token
        rotate(store)
        assert watching.read_change_token() != token


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE key_versions SET state = 'DISABLED'",
        "DELETE FROM key_versions",
        "UPDATE keys SET last_number = 7",
        "TRUNCATE keys, key_versions",
    ],
)
def test_the_token_moves_when_rows_are_changed_by_hand(made: MadeOnServer, statement: str) -> None:
    with opened(made) as watching:
        token = watching.read_change_token()
        made.run(statement)
        deadline = time.monotonic() + 12
        while watching.read_change_token() == token:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_stores_clock_is_the_servers(made: MadeOnServer) -> None:
    with opened(made) as database, database.transaction() as connection:
        first, second = (database.read_time_us(connection) for _ in range(2))
        assert first < second, "it moves within a transaction"
        assert abs(second / 1e6 - time.time()) < 5


# The server goes away


def test_a_server_that_was_restarted_is_not_noticed(store: Store, made: MadeOnServer) -> None:
    """Connections of before are tried before they are used."""
    assert store.load_key(MAIL).info.current_number == 1
    made.database.server.restart()
    assert store.load_key(MAIL).info.current_number == 1
    made.database.server.restart()
    assert rotate(store) == 2
    made.database.server.restart()
    store.read_change_token()


def test_a_server_that_is_away_is_unavailable_at_once_and_heals(
    store: Store, made: MadeOnServer
) -> None:
    made.database.server.stop()
    begun = time.monotonic()
    for use in (store.read_meta, store.read_change_token, lambda: rotate(store)):
        with pytest.raises(StoreUnavailable, match="PostgreSQL keyside@"):
            use()
    with pytest.raises(StoreUnavailable):
        made.open()
    assert time.monotonic() - begun < 2
    made.database.server.start()
    assert rotate(store) == 2


def test_a_server_that_hangs_is_given_up(made: MadeOnServer) -> None:
    """Its kernel goes on answering for it, so that TCP would wait for ever."""
    store = made.open(busy_timeout_s=0.3)
    server = made.database.server
    server.freeze()
    try:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.read_meta()
        assert time.monotonic() - begun < 5
    finally:
        server.thaw()
    assert rotate(store) == 2
    store.close()


def test_a_session_that_an_administrator_ends_is_no_matter(
    store: Store, made: MadeOnServer
) -> None:
    store.read_meta()
    ending = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{DAEMON}'"
    assert made.run(ending)
    assert rotate(store) == 2
    with pytest.raises(StoreUnavailable), store.session.changing():
        made.run(ending)
    assert rotate(store) == 3


def test_what_was_committed_survives_the_servers_sudden_end(tmp_path: Path) -> None:
    """I10: fsync is on here; every rotation that was reported is there after each kill -9."""
    tmp_path.chmod(0o700)
    with running_server(keeps_data=True) as server:
        made = make_store_on(server, tmp_path)
        store = made.open()
        changing.create_key(store.session, MAIL, NOW)
        reported = 1
        for delay_s in (0.0, 0.013, 0.031, 0.057):
            killer = threading.Timer(delay_s, server.kill)
            killer.start()
            with pytest.raises(StoreUnavailable):
                for _ in itertools.count():
                    reported = rotate(store)
            killer.join()
            server.start()
            current = store.load_key(MAIL).info.current_number
            assert current in (reported, reported + 1), "at most one commit was not reported"
            store.forget_checked()
            assert store.verify_page(MAIL, after=0, limit=10_000) is None
        store.close()


def test_more_than_the_server_lets_in_is_unavailable(made: MadeOnServer) -> None:
    made.run(f"ALTER ROLE {DAEMON} CONNECTION LIMIT 0")
    try:
        with pytest.raises(StoreUnavailable, match="too many connections for role"):
            made.open()
    finally:
        made.run(f"ALTER ROLE {DAEMON} CONNECTION LIMIT -1")


def test_a_read_only_server_is_read_and_says_what_it_is(made: MadeOnServer) -> None:
    made.run(f"ALTER DATABASE {made.database.name} SET default_transaction_read_only = on")
    store = made.open()
    assert store.load_key(MAIL).info.current_number == 1
    with pytest.raises(StoreUnavailable, match="connect to the primary"):
        rotate(store)
    store.close()


def test_no_statement_is_in_an_error(made: MadeOnServer, store: Store) -> None:
    """I7: what the driver says repeats the statement and its parameters."""
    made.run("ALTER TABLE key_versions RENAME COLUMN wrapped TO gone")
    with pytest.raises(StoreUnavailable) as caught:
        changing.create_key(store.session, BANK, NOW)
    assert "INSERT" not in str(caught.value)
    assert "LINE" not in str(caught.value)
    assert caught.value.__suppress_context__


# Roles


PRIVILEGES = [(table, privilege) for table, some in NEEDED.items() for privilege in sorted(some)]


def test_the_daemons_role_can_do_all_that_a_sidecar_does(store: Store, made: MadeOnServer) -> None:
    use_everything(store)
    report = inspect_server(made.url)
    assert report is not None
    assert (report.role, report.missing, report.excess) == (DAEMON, (), ())
    assert (report.over_socket, report.tls, report.counts) == (True, None, True)


@pytest.mark.parametrize(("table", "privilege"), PRIVILEGES)
def test_each_privilege_is_needed(made: MadeOnServer, table: str, privilege: str) -> None:
    """Without any one of them, something that a sidecar does is refused, and it is named."""
    made.run(f"REVOKE {privilege} ON {table} FROM {DAEMON}")
    denied = f"permission denied for table {table} .*grants.sql"
    with pytest.raises(StoreUnavailable, match=denied), contextlib.ExitStack() as stack:
        store = made.open()
        stack.callback(store.close)
        use_everything(store)
    report = inspect_server(made.url)
    assert report is not None
    assert report.missing == (f"{privilege} on {table}",)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM keys",
        "DELETE FROM key_versions",
        "DELETE FROM store_meta",
        "DELETE FROM version_usage",
        "DELETE FROM store_time",
        "DELETE FROM access_requests",
        "DELETE FROM access_uses",
        "INSERT INTO store_meta SELECT * FROM store_meta",
        "UPDATE alembic_version SET version_num = '0'",
        "TRUNCATE key_versions",
        "DROP TABLE key_versions",
        "ALTER TABLE key_versions DROP CONSTRAINT key_versions_state",
        "DROP INDEX key_versions_one_current",
        "CREATE TRIGGER t BEFORE INSERT ON keys EXECUTE FUNCTION tsvector_update_trigger()",
        "CREATE TABLE mine (id int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE keys DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
    ],
)
def test_the_daemons_role_can_do_nothing_else(made: MadeOnServer, statement: str) -> None:
    with (
        opened(made) as database,
        pytest.raises(StoreUnavailable, match=r"permission denied|must be owner"),
        database.transaction(lock=store_meta) as connection,
    ):
        connection.execute(text(statement))


def test_a_role_that_may_do_too_much_is_found(made: MadeOnServer) -> None:
    made.run(f"GRANT DELETE ON keys TO {DAEMON}")
    made.run(f"GRANT CREATE ON SCHEMA public TO {DAEMON}")
    report = inspect_server(made.url)
    assert report is not None
    assert report.excess == ("it may make tables", "DELETE on keys")
    report = inspect_server(made.database.owner_url)
    assert report is not None
    assert report.excess[0] == "it may make tables"
    assert report.excess[1].startswith("it owns access_requests, access_uses, alembic_version")
    report = inspect_server(made.database.url_as("postgres"))
    assert report is not None
    assert "it is a superuser" in report.excess


# Making and migrating


def test_a_store_is_never_made_over_another(made: MadeOnServer) -> None:
    before = made.run("SELECT * FROM store_meta")
    with pytest.raises(StartupError, match="nothing was changed") as caught:
        initialise_store(made.database.owner_url, made.custodian, uid=0, gid=0)
    assert caught.value.exit_code == 73
    assert made.run("SELECT * FROM store_meta") == before


@pytest.mark.parametrize("table", ["alembic_version", "keys"])
def test_a_database_that_another_program_uses_is_refused(
    postgresql_server: Server, tmp_path: Path, table: str
) -> None:
    database = postgresql_server.make_database()
    database.run(f"CREATE TABLE {table} (id int)")
    tmp_path.chmod(0o700)
    with pytest.raises(StartupError, match=f"a table {table}"):
        initialise_store(database.owner_url, make_root_key(tmp_path), uid=0, gid=0)
    database.drop()


def test_of_two_that_make_a_store_at_once_the_second_waits_and_is_refused(
    postgresql_server: Server, tmp_path: Path
) -> None:
    database = postgresql_server.make_database()
    tmp_path.chmod(0o700)
    custodian = make_root_key(tmp_path)
    outcomes: list[str] = []

    def make() -> None:
        with pytest.raises(StartupError) as caught:
            initialise_store(database.owner_url, custodian, uid=0, gid=0)
        outcomes.append(str(caught.value))

    thread = threading.Thread(target=make)
    with opened_as_owner(database.owner_url) as first, first.founding() as connection:
        thread.start()
        time.sleep(0.2)
        assert outcomes == []
        connection.execute(text("CREATE TABLE store_meta (id int)"))
    thread.join(10)
    assert "a table store_meta" in outcomes[0]
    database.drop()


def test_a_database_with_another_encoding_is_refused(
    postgresql_server: Server, tmp_path: Path
) -> None:
    with postgresql_server.connect() as connection:
        connection.execute(
            "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        )
    tmp_path.chmod(0o700)
    url = f"postgresql+psycopg://postgres@/ascii?host={postgresql_server.socket_directory}"
    with pytest.raises(StartupError, match="needs UTF8"):
        initialise_store(url, make_root_key(tmp_path), uid=0, gid=0)


def test_a_role_that_may_not_make_tables_leaves_nothing(made: MadeOnServer, tmp_path: Path) -> None:
    database = made.database.server.make_database()
    database.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with pytest.raises(StoreUnavailable, match="permission denied for schema public"):
        initialise_store(database.url, make_root_key(tmp_path, "x.key"), uid=0, gid=0)
    assert database.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    database.drop()


def test_a_database_without_a_store_says_so(made: MadeOnServer) -> None:
    empty = made.database.server.make_database()
    for use in (lambda: Store.open(empty.url, made.custodian), lambda: migrate_store(empty.url)):
        with pytest.raises(StoreSchemaError, match="not a Keyside store"):
            use()
    empty.drop()


def test_migrations_lead_to_the_tables_that_the_program_uses(made: MadeOnServer) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with opened(made) as database, database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_store_of_the_first_schema_is_migrated_by_its_owner(
    made: MadeOnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import command

    database = made.database.server.make_database()
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        with opened_as_owner(database.owner_url) as founding, founding.founding() as connection:
            schema.upgrade(connection)
    database.run("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO PUBLIC")
    with pytest.raises(StoreSchemaError, match="keysided migrate"):
        Store.open(database.url, made.custodian)
    with pytest.raises(StoreUnavailable, match="must be owner"):
        migrate_store(database.url)
    assert migrate_store(database.owner_url) == "0001"
    assert migrate_store(database.owner_url) is None
    assert database.run("SELECT version_num FROM alembic_version") == [(schema.HEAD,)]
    database.drop()


@contextlib.contextmanager
def opened_as_owner(url: str) -> Iterator[Any]:
    database = open_database(url, frozenset(), 5.0)
    try:
        yield database
    finally:
        database.close()


# Triggers, which fire for the daemon's role


TRIGGER = (
    "CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$"
    " BEGIN {} RETURN NEW; END $$"
)


@pytest.mark.parametrize(
    ("table", "moment", "body"),
    [
        ("key_versions", "BEFORE INSERT", "NEW.made_by_uid := 5;"),
        ("key_versions", "BEFORE UPDATE", "NEW.state := 'DISABLED';"),
        ("store_meta", "BEFORE UPDATE", "NEW.keys_digest := OLD.keys_digest;"),
        ("store_meta", "AFTER UPDATE", "DELETE FROM store_meta;"),
    ],
)
def test_a_trigger_that_alters_what_is_written_is_refused_before_the_commit(
    made: MadeOnServer, store: Store, table: str, moment: str, body: str
) -> None:
    """All that a rotation writes is read back: no version is handed out that can't be kept."""
    made.run(TRIGGER.format(body))
    made.run(f"CREATE TRIGGER evil {moment} ON {table} FOR EACH ROW EXECUTE FUNCTION evil()")
    with pytest.raises(StoreTampered):
        rotate(store)
    assert made.run("SELECT max(number) FROM key_versions") == [(1,)]
    assert store.load_key(MAIL).info.current_number == 1


def test_a_store_on_sqlite_loads_no_driver() -> None:
    """And the configuration loads no SQLAlchemy."""
    program = """
import sys
import keyside_sidecar.config
assert "sqlalchemy" not in sys.modules
import keyside_sidecar.store.store
from keyside_sidecar.store.sqlite import SqliteDatabase
assert "psycopg" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
