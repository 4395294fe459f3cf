"""A reader written from docs/custody.md alone finds every version from root key and store."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.test_second_reader import load

from keyside.envelope import VersionKey, seal
from keyside.names import KeyName, VersionNumber
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.custody.root_key import RootKey
from keyside_sidecar.errors import CustodyError
from keyside_sidecar.store import Store
from keyside_sidecar.store.authentication import Authenticator, bind_material, encode_row
from keyside_sidecar.store.backup import write_backup
from keyside_sidecar.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
READER = ROOT / "tests/vectors/second_reader.py"
VECTORS = ROOT / "tests/vectors"
FORMATS = ["store_v1", "store_v2", "store_v3", "store_v4"]
PAGE = (ROOT / "docs/custody.md").read_text("utf-8")
CONTEXT = {"mailbox": "zürich=42"}
reader = load("tests/vectors/second_reader.py")
Unsound = reader.Unsound


def copy_store(form: str, directory: Path) -> Path:
    directory.chmod(0o700)
    for file in ("root.key", "keyside.db"):
        shutil.copyfile(VECTORS / form / file, directory / file)
        (directory / file).chmod(0o600)
    return directory / "keyside.db"


def open_custodian(directory: Path) -> FileCustodian:
    return FileCustodian.load(directory / "root.key", owner_uids=frozenset({os.geteuid()}))


def make_backup(directory: Path) -> Path:
    """Return a backup of the newest format's store."""
    store = Store.open(f"sqlite:///{copy_store('store_v4', directory)}", open_custodian(directory))
    path = directory / "backup"
    with path.open("wb") as file:
        write_backup(store.session, "1.0.0", datetime.now(UTC), file.write)
    store.close()
    return path


# --- opening, in an interpreter in which nothing of ours is

# What runs the reader, and then says whether anything of ours was imported meanwhile.
CLEAN = """
import runpy, sys
path = sys.argv.pop(1)
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as end:
    code = end.code
names = {name.partition(".")[0] for name in sys.modules}
ours = names & {"keyside", "keyside_sidecar", "sqlalchemy", "tests"}
sys.exit(f"imported: {ours}" if ours else code)
"""


def run_reader(root_key: Path, store: Path, envelope: bytes) -> bytes:
    pairs = [word for name, value in CONTEXT.items() for word in ("--context", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, READER, root_key, store, *pairs],
        input=envelope,
        capture_output=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def seal_under(known: dict[str, Any]) -> bytes:
    """Return an envelope under a version that is known otherwise."""
    version = VersionKey(
        KeyName(known["key_name"]),
        VersionNumber(known["number"]),
        bytes.fromhex(known["version_id"]),
        bytes.fromhex(known["material"]),
    )
    return seal(version, known["material"].encode(), CONTEXT)


@pytest.mark.parametrize("form", FORMATS)
def test_every_version_of_every_frozen_store_is_found(form: str) -> None:
    known = json.loads((VECTORS / form / "known.json").read_text("ascii"))
    found = reader.read_versions(VECTORS / form / "root.key", VECTORS / form / "keyside.db")
    assert {
        (it["key_name"], it["number"], bytes.fromhex(it["version_id"])): it["material"]
        for it in known["versions"]
    } == {place: material.hex() for place, material in found.items()}
    for version in known["versions"]:
        opened = reader.open_envelope(found, seal_under(version), CONTEXT)
        assert opened.decode() == version["material"]


@pytest.mark.parametrize("form", FORMATS)
def test_envelope_opens_from_root_key_file_and_sqlite_file(form: str) -> None:
    known = json.loads((VECTORS / form / "known.json").read_text("ascii"))["versions"][-1]
    place = VECTORS / form
    opened = run_reader(place / "root.key", place / "keyside.db", seal_under(known))
    assert opened.decode() == known["material"]


def test_envelope_opens_from_root_key_file_and_backup(tmp_path: Path) -> None:
    backup = make_backup(tmp_path)
    known = json.loads((VECTORS / "store_v4/known.json").read_text("ascii"))["versions"]
    assert len(reader.read_versions(tmp_path / "root.key", backup)) == len(known)
    opened = run_reader(tmp_path / "root.key", backup, seal_under(known[0]))
    assert opened.decode() == known[0]["material"]


def test_second_reader_shares_no_code_with_keyside() -> None:
    source = READER.read_text("utf-8")
    assert not re.search(r"^\s*(from|import)\s+(keyside|tests|sqlalchemy)", source, re.MULTILINE)


# --- what was altered is not used


def alter(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            assert connection.execute(statement, values).rowcount
        connection.commit()


def list_columns() -> list[tuple[str, str]]:
    """Return each column of each table that has a row in the newest frozen store."""
    with closing(sqlite3.connect(VECTORS / "store_v4/keyside.db")) as connection:
        filled = {
            table.name
            for table in metadata.sorted_tables
            if connection.execute(f"SELECT 1 FROM {table.name}").fetchone()
        }
    assert {"store_meta", "keys", "key_versions", "access_requests", "access_uses"} <= filled
    return [
        (table.name, column.name)
        for table in metadata.sorted_tables
        for column in table.columns
        if table.name in filled and table.name != "sidecars"
    ]


@pytest.mark.parametrize(("table", "column"), list_columns())
def test_row_with_any_column_changed_is_refused(tmp_path: Path, table: str, column: str) -> None:
    path = copy_store("store_v4", tmp_path)
    place = f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1"
    changed = f"CASE typeof({column}) WHEN 'integer' THEN {column} + 1000 WHEN 'null' THEN 7 "
    changed += f"WHEN 'text' THEN {column} || 'x' ELSE CAST({column} || x'00' AS BLOB) END"
    alter(path, f"UPDATE {table} SET {column} = {changed} WHERE rowid = ({place})")
    with pytest.raises(Unsound):
        reader.read_versions(tmp_path / "root.key", path)


ALTERED = {
    "a key removed": ["DELETE FROM keys WHERE name = 'bank-details'"],
    "a key removed, with its versions": [
        "DELETE FROM keys WHERE name = 'bank-details'",
        "DELETE FROM key_versions WHERE key_name = 'bank-details'",
    ],
    "a version removed": ["DELETE FROM key_versions WHERE number = 1"],
    "the newest version removed": [
        "DELETE FROM key_versions WHERE key_name = 'mail-credentials' AND number = 3"
    ],
    "a version under another number": ["UPDATE key_versions SET number = 9 WHERE number = 1"],
    "two versions' material exchanged": [
        (
            "UPDATE key_versions SET wrapped = (SELECT o.wrapped FROM key_versions o WHERE "
            "o.number = 2 AND o.key_name = key_versions.key_name) WHERE number = 1"
        )
    ],
    "an integer that became a fraction": ["UPDATE keys SET created_at = created_at + 0.5"],
    "an integer that became a text": ["UPDATE store_time SET tick = 'x'"],
    "a use removed": ["DELETE FROM access_uses WHERE number = 2"],
    "a request removed": ["DELETE FROM access_requests WHERE id = 'ar-aaaaaaaaaaaa'"],
    "a request that has ended removed": ["DELETE FROM access_requests WHERE state = 'ENDED'"],
    "observed time removed": ["DELETE FROM store_time"],
    "the store's own row removed": ["DELETE FROM store_meta"],
}


@pytest.mark.parametrize("name", ALTERED)
def test_store_with_rows_removed_or_moved_is_refused(tmp_path: Path, name: str) -> None:
    path = copy_store("store_v4", tmp_path)
    if name == "observed time removed":  # (which a store without a floor need not have)
        with closing(sqlite3.connect(path)) as connection:
            floor = connection.execute("SELECT observed_floor FROM store_meta").fetchone()[0]
        if not floor:
            assert reader.read_versions(tmp_path / "root.key", path)
            return
    alter(path, *ALTERED[name])
    with pytest.raises(Unsound):
        reader.read_versions(tmp_path / "root.key", path)


def test_older_rows_put_back_are_refused(tmp_path: Path) -> None:
    """Each is genuine; together they are not the store."""
    path = copy_store("store_v4", tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        former = connection.execute("SELECT * FROM key_versions").fetchall()
    store = Store.open(f"sqlite:///{path}", open_custodian(tmp_path))
    store.disable(KeyName("mail-credentials"), 1, actor_uid=0, now=datetime.now(UTC))
    store.close()
    assert reader.read_versions(tmp_path / "root.key", path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM key_versions")
        marks = ", ".join("?" * len(former[0]))
        connection.executemany(f"INSERT INTO key_versions VALUES ({marks})", former)
        connection.commit()
    with pytest.raises(Unsound, match="the versions of mail-credentials"):
        reader.read_versions(tmp_path / "root.key", path)


def test_row_of_the_register_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    path = copy_store("store_v4", tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO sidecars VALUES (x'00', 'h', 'b', 1, 1, 1, 1, 1, 'k', NULL, x'00')"
        )
        connection.commit()
    assert reader.read_versions(tmp_path / "root.key", path)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda it: it[:-1],
    "without its last line": lambda it: it[: it.rindex(b'{"mac"')],
    "without a row": lambda it: it.replace(b'{"keys":', b"", 1),
    "with something after its end": lambda it: it + b"{}\n",
    "with another byte": lambda it: it.replace(b"CURRENT", b"CURRENS", 1),
    "of another store": lambda it: re.sub(rb'"store_id":"..', b'"store_id":"00', it, count=1),
    "of another generation": lambda it: re.sub(rb'"generation":', b'"generation":1', it, count=1),
    "with another code": lambda it: re.sub(rb'"mac":"..(.*)\n$', rb'"mac":"AA\1\n', it),
    "with its code spelled otherwise": lambda it: it[:-5] + bytes([it[-5] ^ 1]) + it[-4:],
    "nothing": lambda _it: b"",
}


@pytest.mark.parametrize("name", SPOILED)
def test_backup_that_was_altered_is_refused(tmp_path: Path, name: str) -> None:
    backup = make_backup(tmp_path)
    spoiled = SPOILED[name](backup.read_bytes())
    assert spoiled != backup.read_bytes()
    backup.write_bytes(spoiled)
    with pytest.raises(Unsound):
        reader.read_versions(tmp_path / "root.key", backup)


def test_another_root_key_is_refused_and_the_right_one_named(tmp_path: Path) -> None:
    backup = make_backup(tmp_path)
    body = b"KEYSIDE-ROOT-KEY-1:" + base64.urlsafe_b64encode(bytes(32)).rstrip(b"=")
    line = body + b":" + hashlib.sha256(body).hexdigest()[:16].encode() + b"\n"
    (tmp_path / "root.key").write_bytes(line)
    for place in (tmp_path / "keyside.db", backup):
        with pytest.raises(Unsound, match="the root key 6f6ba82213db9789 is needed"):
            reader.read_versions(tmp_path / "root.key", place)


# --- the root key's file

LINE = (VECTORS / "store_v1/root.key").read_bytes()
FILES = {
    "as it is": (LINE, True),
    "without its end": (LINE[:-1], False),
    "with two ends": (LINE + b"\n", False),
    "with a carriage return": (LINE[:-1] + b"\r\n", False),
    "with something in front": (b" " + LINE, False),
    "of another number": (LINE.replace(b"KEY-1:", b"KEY-2:"), False),
    "with another letter": (LINE.replace(b"AAEC", b"AAED"), False),
    "with another digit": (LINE.replace(b":7cb", b":8cb"), False),
    "with capitals in its digits": (LINE.replace(b":7cb", b":7CB"), False),
    "with padding": (LINE.replace(b"Hh8:", b"Hh8=:"), False),
    "cut": (LINE[:40], False),
    "empty": (b"", False),
}


def respell(line: bytes) -> bytes:
    """Return the same key with an unused bit set, and digits that fit."""
    body = line[:61] + b"9"
    return body + b":" + hashlib.sha256(body).hexdigest()[:16].encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "good"), [*FILES.values(), (respell(LINE), False)], ids=[*FILES, "spelled otherwise"]
)
def test_root_key_file_has_one_form(tmp_path: Path, line: bytes, *, good: bool) -> None:
    """Keyside and the second reader take the same."""
    tmp_path.chmod(0o700)
    path = tmp_path / "root.key"
    path.write_bytes(line)
    path.chmod(0o600)
    for read, refused in (
        (lambda: reader.read_root_key(line), Unsound),
        (lambda: open_custodian(tmp_path), CustodyError),
    ):
        if good:
            assert read()
        else:
            with pytest.raises(refused):
                read()


# --- the page


def read_example() -> dict[str, str]:
    """Return the example's values by name; what stands by itself under what stands before it."""
    block = re.search(r"^## An example\n.*?```text\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert block
    found: dict[str, str] = {}
    name = ""
    for line in block[1].splitlines():
        if part := re.fullmatch(r"([a-z][a-z -]*?)  +([0-9a-f]+)", line):
            name = part[1]
            found[name] = part[2]
        elif part := re.fullmatch(r" +([0-9a-f]+)", line):
            found[name] += part[1]
        elif line.startswith(("KEYSIDE", "{")):
            found[name] = found.get(name, "") + line + "\n"
        else:
            name = line
    return found


def test_example_in_the_page_is_computed_by_the_second_reader() -> None:
    example = read_example()
    root_key = reader.read_root_key(example["the file"].encode())
    assert root_key == bytes(range(32))
    store_id = bytes(range(0x40, 0x50))
    assert reader.name_root_key(root_key).hex() == example["root key id"]
    for label in ("store-mac", "store-set", "backup"):
        assert reader.derive_from_root(root_key, label, store_id).hex() == example[label]
    salt = bytes.fromhex(example["salt"])
    assert reader.derive_from_root(root_key, "root-wrap", salt).hex() == example["root-wrap"]
    place = "mail-credentials", 258, bytes.fromhex(example["version id"])
    wrapped = bytes.fromhex(example["wrapped"])
    material = reader.unwrap_version(root_key, store_id, place, wrapped)
    assert material.hex() == example["version"]
    row = {"id": 1, "observed": 86_400_000_000, "tick": 8640}
    meta = {"store_id": store_id, "root_key_id": example["root key id"]}
    store = reader.Store(root_key, {"store_meta": [meta]})
    assert reader.encode_row(store_id, "store_time", row).hex() == example["encoded"]
    assert store.compute_mac("store_time", row).hex() == example["mac"]
    term = store.compute_term(bytes.fromhex(example["mac"]))
    assert f"{term:064x}" == example["term"]
    assert store.seal(bytes.fromhex(example["nonce"]), term).hex() == example["digest"]
    backup = example["a backup of that row alone (a real one has more)"].encode()
    *lines, last = backup.splitlines(keepends=True)
    key = bytes.fromhex(example["backup"])
    code = reader.hmac.digest(key, b"".join(lines), "sha256")
    assert json.loads(last) == {"mac": base64.b64encode(code).decode()}
    [kept] = json.loads(lines[1]).values()
    assert base64.b64decode(kept.pop("mac")).hex() == example["mac"]
    assert kept == row


def test_example_in_the_page_is_computed_by_keyside(monkeypatch: pytest.MonkeyPatch) -> None:
    example = read_example()
    store_id = bytes(range(0x40, 0x50))
    root_key = FileCustodian(RootKey(bytes(range(32))))
    assert root_key.key_id == example["root key id"]
    for label in ("store-mac", "store-set", "backup"):
        derived = root_key.derive(f"keyside/v1/{label}".encode(), store_id)
        assert derived.hex() == example[label]
    binding = bind_material(store_id, "mail-credentials", 258, bytes.fromhex(example["version id"]))
    assert binding.hex() == example["binding"]
    monkeypatch.setattr(os, "urandom", lambda _length: bytes.fromhex(example["salt"]))
    wrapped = root_key.wrap(bytes.fromhex(example["version"]), binding)
    assert wrapped.hex() == example["wrapped"]
    row = {"id": 1, "observed": 86_400_000_000, "tick": 8640}
    authenticator = Authenticator(root_key, store_id)
    assert encode_row(store_id, "store_time", row).hex() == example["encoded"]
    assert authenticator.compute_mac("store_time", row).hex() == example["mac"]
    term = authenticator.compute_term(bytes.fromhex(example["mac"]))
    assert f"{term:064x}" == example["term"]
    monkeypatch.setattr(os, "urandom", lambda _length: bytes.fromhex(example["nonce"]))
    assert authenticator.seal_sum(term).hex() == example["digest"]


def test_page_names_every_label_that_the_code_derives_under() -> None:
    """And no other."""
    table = PAGE[PAGE.index("| label | context | gives |") : PAGE.index("These are all.")]
    sources = ROOT / "sidecar/keyside_sidecar"
    used = {
        label
        for path in [*sources.glob("custody/*.py"), *sources.glob("store/*.py")]
        for label in re.findall(r'b"keyside/v1/([a-z-]+)"', path.read_text("utf-8"))
    }
    assert set(re.findall(r"^\| `keyside/v1/([a-z-]+)`", table, re.MULTILINE)) == used
    elsewhere = [
        path.name
        for path in sources.rglob("*.py")
        if path.parent.name not in {"custody", "store"}
        and re.search(r"custodian\.derive\(|\.derive\(b?\"", path.read_text("utf-8"))
    ]
    assert elsewhere == []


def test_page_names_every_table_and_all_columns_of_bytes() -> None:
    rows = PAGE[PAGE.index("| table | a row of it |") : PAGE.index("To open envelopes")]
    assert re.findall(r"^\| `([a-z_]+)`", rows, re.MULTILINE) == [
        *("store_meta", "keys", "key_versions", "version_usage", "sidecars", "store_time"),
        *("access_requests", "access_uses"),
    ]
    assert {table.name for table in metadata.sorted_tables} == set(reader.TABLES)
    said = PAGE[PAGE.index("Bytes are the columns") : PAGE.index("There are no lines for")]
    in_backups = {
        column.name
        for table in metadata.sorted_tables
        for column in table.columns
        if table.name != "sidecars" and column.type.python_type is bytes
    }
    assert set(re.findall(r"`([a-z_0-9]+)`", said)) == in_backups
    assert in_backups | {"sidecar_id"} == reader.BYTES


def test_backup_lines_are_as_the_page_says(tmp_path: Path) -> None:
    lines = io.BytesIO(make_backup(tmp_path).read_bytes()).readlines()
    assert list(json.loads(lines[0])) == [
        *("keyside_backup", "program", "schema", "store_id", "generation", "root_key_id"),
        "made_at",
    ]
    tables = [next(iter(json.loads(line))) for line in lines[1:-1]]
    order = re.search(r"The rows come by table, (.*?), and within", PAGE)
    assert order
    told = re.findall(r"`([a-z_]+)`", order[1])
    assert tables == sorted(tables, key=told.index)
    assert list(json.loads(lines[-1])) == ["mac"]
