"""Backups: they hold all of a store, at one moment, and nothing that anybody else has made."""

from __future__ import annotations

import base64
import gc
import hmac
import io
import json
import os
import re
import shutil
import signal
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from tests.unit.made_store import (
    BANK,
    KINDS,
    LATER,
    MAIL,
    NOW,
    MadeOnServer,
    MadeStore,
    add_archived,
    make_root_key,
    make_store,
    make_store_of,
    set_state,
)

from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.custody.root_key import RootKey
from keyside_sidecar.errors import CustodyError, SidecarError, StartupError, StoreTampered
from keyside_sidecar.store import Store, schema
from keyside_sidecar.store.backup import Backup, Header, write_backup
from keyside_sidecar.store.examination import TABLES
from keyside_sidecar.store.initialise import NewPostgresqlStore, make_file
from keyside_sidecar.store.location import locate_store
from keyside_sidecar.store.usage import UsageEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.custody import Custodian

VECTORS = Path(__file__).resolve().parent.parent / "vectors"


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    return fill(make_store_of(request, tmp_path))


@pytest.fixture
def in_file(tmp_path: Path) -> MadeStore:
    tmp_path.chmod(0o700)
    return fill(make_store(tmp_path))


def fill(made: MadeStore) -> MadeStore:
    """Give a store two keys with versions in all states, usage and observed time."""
    store = made.open()
    for name in (MAIL, BANK):
        store.create_key(name, NOW)
        for _ in range(3):
            store.rotate(name, actor_uid=7, expected_current=0, now=LATER)
    set_state(store, MAIL, 1, "DESTROYED")
    store.disable(MAIL, 2, actor_uid=7, now=LATER)
    store.schedule_destruction(BANK, 1, actor_uid=7, now=LATER, after_s=8e5)
    store.usage.record([UsageEntry(MAIL, 4, 12, 345, sealed_at=LATER), UsageEntry(BANK, 2, 1, 1)])
    store.observed.advance(store.observed.read(), 5_000_000)
    store.close()
    return made


def back_up(made: MadeStore, custodian: Custodian | None = None) -> bytes:
    store = made.open(custodian)
    try:
        file = io.BytesIO()
        write_backup(store.session, "0.1.0", NOW, file.write)
        return file.getvalue()
    finally:
        store.close()


def read(content: bytes, custodian: Custodian) -> Backup:
    backup = Backup.open(io.BytesIO(content), custodian)
    backup.examine()
    return backup


def describe(store: Store) -> list[Any]:
    """Return all that a store holds, with the material of its versions."""
    found: list[Any] = [store.read_meta(), store.observed.read()]
    for info in store.list_keys():
        numbers = range(1, info.version_count + 1)
        opened = [store.find_version(info.name, number) for number in numbers]
        materials = [it.material.material if it.material else None for it in opened]
        usage = store.usage.read(info.name, numbers)
        found += [info, [it.info for it in opened], materials, usage]
    return found


def restore(request: pytest.FixtureRequest, made: MadeStore, content: bytes) -> Store:
    backup = read(content, made.custodian)
    if isinstance(made, MadeOnServer):
        database = made.database.server.make_database()
        request.addfinalizer(database.drop)
        location = locate_store(database.owner_url)
        with NewPostgresqlStore(location) as new:  # type: ignore[arg-type]
            new.fill(backup.write_into)
        database.grant()
        return Store.open(database.url, made.custodian)
    path = made.path.with_name("restored.db")
    make_file(path, os.geteuid(), os.getegid(), backup.write_into)
    return Store.open(f"sqlite:///{path}", made.custodian)


def sign(lines: list[bytes], made: MadeStore) -> bytes:
    """Return lines as a backup that only the root key can make."""
    body = b"".join(lines)
    store_id = bytes.fromhex(json.loads(lines[0])["store_id"])
    key = made.custodian.derive(b"keyside/v1/backup", store_id)
    mac = base64.b64encode(hmac.digest(key, body, "sha256"))
    return body + b'{"mac":"' + mac + b'"}\n'


def refuse(content: bytes, custodian: Custodian, message: str, code: int = 65) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        read(content, custodian)
    assert caught.value.exit_code == code
    assert caught.value.remedy


def test_a_restored_store_holds_everything_that_was_there(
    request: pytest.FixtureRequest, made: MadeStore
) -> None:
    store = made.open()
    expected = describe(store)
    store.close()
    restored = restore(request, made, back_up(made))
    assert describe(restored) == expected
    restored.rotate(MAIL, actor_uid=7, expected_current=4, now=LATER)
    for name in (MAIL, BANK):
        assert restored.verify_page(name, after=0, limit=100) is None
    restored.close()


def test_a_backup_is_of_one_moment_though_the_store_changes_meanwhile(
    request: pytest.FixtureRequest, made: MadeStore
) -> None:
    store, other = made.open(), made.open()
    expected = describe(store)
    written: list[bytes] = []

    def write(piece: bytes) -> None:
        written.append(piece)
        if len(written) % 5 == 0:
            other.rotate(BANK, actor_uid=7, expected_current=0, now=LATER)
            other.usage.record([UsageEntry(MAIL, 4, 1, 1)])

    write_backup(store.session, "0.1.0", NOW, write)
    assert other.read_meta().generation > expected[0].generation + 2
    store.close()
    other.close()
    restored = restore(request, made, b"".join(written))
    assert describe(restored) == expected
    restored.close()


TAMPERED = {
    "a state": "UPDATE key_versions SET state = 'ARCHIVED' WHERE number = 2",
    "a schedule": "UPDATE key_versions SET destroy_due = NULL",
    "a wrapped key moved": "UPDATE key_versions SET wrapped = (SELECT wrapped FROM key_versions"
    " WHERE key_name = 'bank-details' AND number = 1) WHERE number = 3",
    "a version removed": "DELETE FROM key_versions WHERE number = 3 AND key_name = 'bank-details'",
    "the last version removed": "DELETE FROM key_versions WHERE number = 4",
    "a key's row": "UPDATE keys SET current_number = 1",
    "the store's row": "UPDATE store_meta SET generation = generation + 1",
    "usage": "UPDATE version_usage SET reserved_messages = 0",
    "usage of no version": "INSERT INTO version_usage SELECT key_name, 99, 1, 1, 1, 1, 1, 1, mac"
    " FROM version_usage WHERE number = 4",
    "observed time": "UPDATE store_time SET observed = 7777777",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_i6_a_tampered_store_gives_no_backup(in_file: MadeStore, what: str) -> None:
    in_file.run(TAMPERED[what])
    with pytest.raises(StoreTampered):
        back_up(in_file)


def test_i6_an_older_copy_of_a_row_gives_no_backup(made: MadeStore) -> None:
    select_row = "SELECT state, disabled_at, disabled_by_uid, generation, mac FROM key_versions"
    where = f"WHERE key_name = '{MAIL}' AND number = 3"
    (old,) = made.run(f"{select_row} {where}")
    store = made.open()
    store.disable(MAIL, 3, actor_uid=7, now=LATER)
    store.close()
    columns = "state = ?, disabled_at = ?, disabled_by_uid = ?, generation = ?, mac = ?"
    made.run(f"UPDATE key_versions SET {columns} {where}", *old)
    with pytest.raises(StoreTampered, match="set of versions"):
        back_up(made)


def test_i11_any_altered_byte_is_refused(in_file: MadeStore) -> None:
    content = back_up(in_file)
    for position in range(len(content)):
        for bit in (1, 128) if position % 7 == 0 else (1,):
            altered = bytearray(content)
            altered[position] ^= bit
            with pytest.raises((StartupError, CustodyError)):
                Backup.open(io.BytesIO(altered), in_file.custodian)


def test_a_backup_that_is_cut_short_says_so(in_file: MadeStore) -> None:
    content = back_up(in_file)
    for length in range(1, len(content)):
        with pytest.raises(StartupError, match="cut short") as caught:
            Backup.open(io.BytesIO(content[:length]), in_file.custodian)
        assert caught.value.exit_code == 65
    refuse(b"", in_file.custodian, "cut short")


def test_a_backup_that_goes_on_after_its_end_says_so(in_file: MadeStore) -> None:
    content = back_up(in_file)
    for extension in (b"\n", b"x", b"{}\n", content, content.splitlines(keepends=True)[-1]):
        refuse(content + extension, in_file.custodian, "something was added")


def test_a_backup_spliced_from_two_is_refused(in_file: MadeStore) -> None:
    """Both are whole, and of the same store."""
    first = back_up(in_file).splitlines(keepends=True)
    store = in_file.open()
    store.enable(MAIL, 2)
    store.close()
    second = back_up(in_file).splitlines(keepends=True)
    assert len(first) == len(second)
    for position in range(1, len(first)):
        if first[position] != second[position]:
            spliced = [*first[:position], second[position], *first[position + 1 :]]
            refuse(b"".join(spliced), in_file.custodian, "altered")
            refuse(b"".join(first[:position] + second[position:]), in_file.custodian, "altered")


@pytest.mark.parametrize("change", ["removed", "doubled", "swapped"])
def test_lines_removed_doubled_or_swapped_are_refused(in_file: MadeStore, change: str) -> None:
    lines = back_up(in_file).splitlines(keepends=True)
    for at in range(1, len(lines) - 2):
        replaced = {
            "removed": [lines[at + 1]],
            "doubled": [lines[at], lines[at], lines[at + 1]],
            "swapped": [lines[at + 1], lines[at]],
        }[change]
        changed = [*lines[:at], *replaced, *lines[at + 2 :]]
        refuse(b"".join(changed), in_file.custodian, "altered")
        if change == "doubled" or (change == "removed" and lines[at].startswith(b'{"key')):
            # Nor does whoever has the root key make something of it that is no sound store.
            with pytest.raises(StartupError):
                read(sign(changed[:-1], in_file), in_file.custodian)


def test_another_root_keys_backup_says_which_it_needs(in_file: MadeStore, tmp_path: Path) -> None:
    other = make_root_key(tmp_path, "other.key")
    with pytest.raises(CustodyError, match=f"belongs to root key {in_file.custodian.key_id}"):
        read(back_up(in_file), other)


def test_what_is_no_backup_says_so(in_file: MadeStore) -> None:
    for content in (b"SQLite format 3\0", b"{}\n", b'{"mac":"x"}\n', in_file.path.read_bytes()):
        refuse(content, in_file.custodian, "not a Keyside backup")


def test_newer_formats_and_schemas_say_so(in_file: MadeStore) -> None:
    header, *rows, _ = back_up(in_file).splitlines(keepends=True)
    newer = header.replace(b'_backup":1', b'_backup":2')
    refuse(sign([newer, *rows], in_file), in_file.custodian, "does not know", 78)
    newer = re.sub(rb'"schema":"\d+"', b'"schema":"9999"', header)
    refuse(sign([newer, *rows], in_file), in_file.custodian, "has the schema 9999", 78)


def _edit(pattern: bytes, by: bytes) -> Callable[[list[bytes]], None]:
    def edit(lines: list[bytes]) -> None:
        edited = [re.sub(pattern, by, line, count=1) for line in lines]
        assert edited != lines
        lines[:] = edited

    return edit


WRONG = {
    "a column twice": _edit(rb'^(\{"keys":\{)', rb'\1"name":"x",'),
    "an unknown column": _edit(rb'^(\{"keys":\{)', rb'\1"owner":"x",'),
    "an unknown table": _edit(rb'^\{"keys"', rb'{"users"'),
    "a table more in a line": _edit(rb'^(\{"keys".*\})\}$', rb'\1,"x":{}}'),
    "a column missing": _edit(rb'"created_at":\d+,', b""),
    "a text for a number": _edit(rb'"current_number":(\d+)', rb'"current_number":"\1"'),
    "a fraction": _edit(rb'"current_number":(\d+)', rb'"current_number":\1.0'),
    "a truth": _edit(rb'"current_number":\d+', rb'"current_number":true'),
    "a number of any size": _edit(rb'"generation":\d+', rb'"generation":99999999999999999999'),
    "a number for a text": _edit(rb'"state":"\w+"', rb'"state":1'),
    "no base64": _edit(rb'"mac":"..', rb'"mac":"%%'),
    "base64 that is not its own": _edit(rb'"mac":"(.*)="', rb'"mac":"\1"'),
    "half a character": _edit(rb'"state":"\w+"', rb'"state":"\\ud800"'),
    "a blank": _edit(rb'^\{"keys":', rb'{ "keys":'),
    "no object": _edit(rb'^\{"keys":(.*)\}$', rb"[\1]"),
    "nested without end": _edit(rb'^\{"keys":(.*)\}$', b"[" * 9000),
    "a NULL said": _edit(rb',"versions_digest"', rb',"pending_number":null,"versions_digest"'),
    "another store": _edit(rb'"store_id":"....', rb'"store_id":"abcd'),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_root_key_does_not_make_nonsense_a_backup(in_file: MadeStore, what: str) -> None:
    """The parser believes nothing: each of these carries a valid authentication code."""
    lines = back_up(in_file).splitlines(keepends=True)[:-1]
    WRONG[what](lines)
    with pytest.raises(StartupError) as caught:
        read(sign(lines, in_file), in_file.custodian)
    assert caught.value.exit_code == 65


def test_a_line_that_never_ends_is_not_read(in_file: MadeStore) -> None:
    header, *_ = back_up(in_file).splitlines(keepends=True)
    refuse(header + b"x" * (9 << 20), in_file.custodian, "a line is too long")
    refuse(header[:-2] + b" " * (9 << 20), in_file.custodian, "altered or damaged")


def test_a_backup_that_changes_while_it_is_restored_leaves_no_store(in_file: MadeStore) -> None:
    content = back_up(in_file)
    file = io.BytesIO(content)
    backup = Backup.open(file, in_file.custodian)
    backup.examine()
    file.getbuffer()[-100] ^= 1
    path = in_file.path.with_name("restored.db")
    before = sorted(in_file.path.parent.iterdir())
    with pytest.raises(SidecarError):
        make_file(path, os.geteuid(), os.getegid(), backup.write_into)
    assert sorted(in_file.path.parent.iterdir()) == before


def test_nothing_is_restored_over_a_store(in_file: MadeStore) -> None:
    backup = read(back_up(in_file), in_file.custodian)
    before = in_file.path.read_bytes()
    with pytest.raises(StartupError, match="not overwritten") as caught:
        make_file(in_file.path, os.geteuid(), os.getegid(), backup.write_into)
    assert caught.value.exit_code == 73
    assert in_file.path.read_bytes() == before


def test_an_older_schemas_backup_is_restored(tmp_path: Path) -> None:
    """Columns and tables that it does not have are NULL and empty."""
    tmp_path.chmod(0o700)
    known = json.loads((VECTORS / "store_v1" / "known.json").read_text())
    custodian = FileCustodian(RootKey(bytes.fromhex(known["root_key"])))
    shutil.copy(VECTORS / "store_v1" / "keyside.db", tmp_path / "v1.db")
    lines = []
    with create_engine(f"sqlite:///{tmp_path}/v1.db").connect() as connection:
        assert schema.read_revision(connection) == "0001"
        for table in TABLES:
            there = connection.exec_driver_sql(f"PRAGMA table_info({table.name})").all()
            columns = [table.c[row[1]] for row in there]
            if not columns:
                continue
            for row in connection.execute(select(*columns).order_by(*table.primary_key)):
                cells = {
                    name: base64.b64encode(v).decode() if isinstance(v, bytes) else v
                    for name in table.c.keys()  # noqa: SIM118  (iterating gives the columns)
                    if (v := row._asdict().get(name)) is not None
                }
                if table.name == "store_meta":
                    meta = row
                lines.append(
                    json.dumps({table.name: cells}, separators=(",", ":")).encode() + b"\n"
                )
    header = Header(
        "0.1.0", "0001", meta.store_id, meta.generation, meta.root_key_id, "2026-01-31T12:00:00Z"
    )
    content = sign([header.encode(), *lines], MadeStore(tmp_path / "v1.db", custodian))
    backup = read(content, custodian)
    make_file(tmp_path / "new.db", os.geteuid(), os.getegid(), backup.write_into)
    store = Store.open(f"sqlite:///{tmp_path}/new.db", custodian)
    assert store.list_keys()
    for info in store.list_keys():
        assert store.load_key(info.name).current.material is not None
    store.close()


def test_a_kill_at_any_instant_of_a_restore_leaves_a_whole_store_or_none(
    in_file: MadeStore,
) -> None:
    content = back_up(in_file)
    path = in_file.path.with_name("restored.db")
    whole = 0
    began = time.monotonic()
    make_file(path, os.geteuid(), os.getegid(), read(content, in_file.custodian).write_into)
    took_s = time.monotonic() - began
    for attempt in range(12):
        path.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            try:
                backup = read(content, in_file.custodian)
                make_file(path, os.geteuid(), os.getegid(), backup.write_into)
            finally:
                os._exit(0)
        time.sleep(took_s * (attempt + 1) / 11)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if path.exists():
            whole += 1
            store = Store.open(f"sqlite:///{path}", in_file.custodian)
            assert len(describe(store)) == 10
            store.close()
    assert whole < 12


def test_memory_does_not_grow_with_the_number_of_versions(in_file: MadeStore) -> None:
    store = in_file.open()
    peaks = []
    for count in (1001, 500):
        add_archived(store, BANK, count)
        store.forget_checked()
        gc.collect()
        tracemalloc.start()
        header, contents = write_backup(store.session, "0.1.0", NOW + timedelta(1), len)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert contents.versions > count
        assert header.made_at == "2026-02-01T12:00:00Z"
    store.close()
    assert peaks[1] < peaks[0] * 1.3
