"""The store's surroundings go wrong: files, permissions, locks, disks, schemas."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.made_store import BANK, MAIL, NOW, MadeStore, make_root_key, make_store

from keyside_sidecar.errors import (
    StartupError,
    StoreError,
    StoreSchemaError,
    StoreUnavailable,
)
from keyside_sidecar.store import Store, changing, initialise_store, migrate_store, schema
from keyside_sidecar.store.location import locate_store
from keyside_sidecar.store.tables import metadata


@pytest.fixture
def made(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    made = make_store(tmp_path)
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    store.close()
    return made


def rotate(store: Store) -> int:
    return changing.rotate(
        store.session, MAIL, actor_uid=0, expected_current=0, now=NOW
    ).version.info.number


def test_all_files_of_a_store_are_private(made: MadeStore) -> None:
    old = os.umask(0)
    try:
        store = made.open()
        rotate(store)
        files = [made.path.with_name(f"keyside.db{suffix}") for suffix in ("", "-wal", "-shm")]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
        store.close()
    finally:
        os.umask(old)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_reach_is_refused(made: MadeStore, suffix: str, mode: int) -> None:
    file = made.path.with_name(f"keyside.db{suffix}")
    file.touch()
    file.chmod(mode)
    with pytest.raises(StartupError, match=f"mode {mode:04o}") as caught:
        made.open()
    assert "chmod 0600" in caught.value.remedy


def test_a_file_of_someone_else_is_refused(made: MadeStore) -> None:
    with pytest.raises(StartupError, match="belongs to uid"):
        Store.open(made.url, made.custodian, owner_uids=frozenset({os.geteuid() + 1}))


def test_a_directory_that_others_can_write_to_is_refused(made: MadeStore) -> None:
    made.path.parent.chmod(0o777)
    with pytest.raises(StartupError, match="someone else may replace"):
        made.open()
    made.path.parent.chmod(0o700)


def test_a_symbolic_link_is_refused(made: MadeStore) -> None:
    link = made.path.with_name("link.db")
    link.symlink_to(made.path)
    with pytest.raises(StartupError, match="not a regular file"):
        Store.open(f"sqlite:///{link}", made.custodian)


def test_a_missing_store_is_unavailable_and_is_not_made(made: MadeStore) -> None:
    made.path.unlink()
    with pytest.raises(StoreUnavailable, match="there is no store at") as caught:
        made.open()
    assert "keysided restore FILE" in caught.value.remedy
    assert "keysided init" in caught.value.remedy
    assert not made.path.exists()


@pytest.mark.parametrize(
    "url",
    ["sqlite:///relative.db", "sqlite://", "sqlite:////a.db?mode=ro", "mysql://u:pw@h/d", "x", ""],
)
def test_urls_that_are_not_supported_are_refused_without_being_repeated(url: str) -> None:
    """I7: a URL may hold a password."""
    with pytest.raises(StartupError) as caught:
        locate_store(url)
    assert "sqlite:////" in caught.value.remedy
    assert "pw" not in f"{caught.value}{caught.value.remedy}"


def test_initialising_never_overwrites_and_leaves_nothing_behind(made: MadeStore) -> None:
    before = made.path.read_bytes()
    files = sorted(made.path.parent.iterdir())
    with pytest.raises(StartupError, match="not overwritten") as caught:
        initialise_store(made.url, made.custodian, uid=os.geteuid(), gid=os.getegid())
    assert caught.value.exit_code == 73
    assert made.path.read_bytes() == before
    assert sorted(made.path.parent.iterdir()) == files


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_log_that_was_left_behind_is_not_overwritten_either(made: MadeStore, suffix: str) -> None:
    """It may hold the newest rotations of a store whose file is being moved."""
    made.path.unlink()
    made.path.with_name(f"keyside.db{suffix}").write_bytes(b"x")
    with pytest.raises(StartupError, match="not overwritten"):
        initialise_store(made.url, made.custodian, uid=os.geteuid(), gid=os.getegid())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown to another uid")
def test_a_store_made_by_root_belongs_to_the_account_it_is_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    custodian = make_root_key(tmp_path)
    os.chown(tmp_path, 4711, 4712)
    path = tmp_path / "keyside.db"
    initialise_store(f"sqlite:///{path}", custodian, uid=4711, gid=4712)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_nlink) == (4711, 4712, 1)
    Store.open(f"sqlite:///{path}", custodian, owner_uids=frozenset({4711})).close()


def test_deleted_underneath_is_unavailable_and_never_made_anew(made: MadeStore) -> None:
    store = made.open()
    kept = made.path.with_name("kept.db")
    store.close()
    made.path.rename(kept)
    for use in (store.read_meta, store.read_change_token, lambda: rotate(store)):
        with pytest.raises(StoreUnavailable):
            use()
    assert not made.path.exists()
    kept.rename(made.path)
    assert rotate(store) == 2, "it heals when the file is back"
    store.close()


def test_nothing_is_written_to_a_file_that_was_deleted_during_a_change(made: MadeStore) -> None:
    store = made.open()
    with pytest.raises(StoreUnavailable), store.session.changing():
        made.path.rename(made.path.with_name("moved.db"))
    made.path.with_name("moved.db").rename(made.path)
    assert rotate(store) == 2
    store.close()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at" * 99])
def test_replaced_by_something_else_is_an_error_of_ours(made: MadeStore, content: bytes) -> None:
    store = made.open()
    store.close()
    other = made.path.with_name("other")
    other.write_bytes(content)
    other.chmod(0o600)
    other.replace(made.path)
    for use in (store.read_meta, lambda: rotate(store), made.open):
        with pytest.raises(StoreError):
            use()


def test_a_lock_held_too_long_is_unavailable_for_changes_and_no_matter_for_reading(
    made: MadeStore,
) -> None:
    store = made.open(busy_timeout_s=0.1)
    with closing(sqlite3.connect(made.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            rotate(store)
        assert store.load_key(MAIL).info.current_number == 1
    assert rotate(store) == 2
    store.close()


def test_a_full_disk_is_unavailable_loses_nothing_and_heals(made: MadeStore) -> None:
    """A limit on file sizes stands in for the disk: the kernel refuses the same writes."""
    store = made.open()
    assert rotate(store) == 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = made.path.with_name("keyside.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal, limits[1]))
    try:
        with pytest.raises(StoreUnavailable):
            for _ in range(50):
                rotate(store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    current = store.load_key(MAIL).info.current_number
    assert rotate(store) == current + 1
    assert store.verify_page(MAIL, after=0, limit=1000) is None
    store.close()


def _use_read_only(made: MadeStore, uid: int) -> None:
    try:
        if os.geteuid() != uid:
            os.setgroups([])
            os.setresuid(uid, uid, uid)
        store = Store.open(made.url, made.custodian)
        assert store.list_keys() == []
        changing.create_key(store.session, MAIL, NOW)
    except StoreUnavailable:
        os._exit(0)
    finally:
        os._exit(1)


def test_a_file_that_can_not_be_written_is_unavailable() -> None:
    """Root may write everywhere, so as root this is tried under another uid."""
    uid = os.geteuid() or 65533
    with tempfile.TemporaryDirectory() as name:
        made = make_store(Path(name))
        for owned in (made.path.parent, made.path):
            os.chown(owned, uid, -1)
        made.path.chmod(0o400)
        child = os.fork()
        if child == 0:
            _use_read_only(made, uid)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_newer_schema_is_refused_with_the_way_out(made: MadeStore) -> None:
    store = made.open()
    made.run("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreSchemaError, match="newer keyside"):
        made.open()
    with pytest.raises(StoreSchemaError, match="newer keyside"):
        migrate_store(made.url)
    with pytest.raises(StoreSchemaError, match="newer keyside"):
        rotate(store)
    assert store.load_key(MAIL).info.current_number == 1, "reading rows that fit goes on"
    store.close()


def test_an_older_schema_names_the_command(
    made: MadeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9998"))
    monkeypatch.setattr(schema, "HEAD", "9998")
    with pytest.raises(StoreSchemaError, match="keysided migrate"):
        made.open()


def test_a_database_that_is_no_store_is_refused(made: MadeStore) -> None:
    made.run("DROP TABLE alembic_version")
    with pytest.raises(StoreSchemaError, match="not a Keyside store"):
        made.open()


def test_migrating_a_store_that_is_up_to_date_does_nothing(made: MadeStore) -> None:
    assert migrate_store(made.url) is None


def test_migrations_lead_to_the_tables_that_the_program_uses(made: MadeStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    store = made.open()
    with store.session.database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    store.close()
    config = Config()
    config.set_main_option("script_location", "keyside_sidecar.store:migrations")
    script = ScriptDirectory.from_config(config)
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(revisions)) == schema.REVISIONS


def test_serving_imports_no_alembic(made: MadeStore) -> None:
    program = f"""
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.keys import Keyring
from keyside_sidecar.store import Store, changing
custodian = FileCustodian.load(
    Path({str(made.path)!r} + ".root.key"), owner_uids=frozenset({{{os.geteuid()}}})
)
store = Store.open({made.url!r}, custodian)
now = datetime.now(UTC)
changing.rotate(store.session, "mail-credentials", actor_uid=0, expected_current=0, now=now)
found = {{name.partition(".")[0] for name in sys.modules}} & {{"alembic", "mako", "grpc"}}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_database_is_set_up_as_documented(made: MadeStore) -> None:
    store = made.open()
    with store.session.database.transaction() as connection:

        def ask(pragma: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()

        assert ask("journal_mode") == "wal"
        assert ask("foreign_keys") == 1
        assert ask("secure_delete") == 1
        assert ask("synchronous") == 2
        assert ask("trusted_schema") == 0
    store.close()


def test_no_material_and_no_statement_is_in_an_error(made: MadeStore) -> None:
    """I7: what SQLAlchemy would say holds the parameters; ours does not."""
    store = made.open()
    made.run("ALTER TABLE key_versions RENAME COLUMN wrapped TO gone")
    with pytest.raises(StoreUnavailable) as caught:
        changing.create_key(store.session, BANK, NOW)
    assert "INSERT" not in str(caught.value)
    cause: BaseException | None = caught.value.__cause__
    assert "bank-details" not in str(cause)
    store.close()
