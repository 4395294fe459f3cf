"""A root key, a store and their like, made for one test."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian, create_root_key_file
from keyside_sidecar.store import Store, initialise_store

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from support.postgresql import Database, Server

    from keyside_sidecar.custody import Custodian

KINDS = ["sqlite", "postgresql"]

MAIL = KeyName("mail-credentials")
BANK = KeyName("bank-details")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


@dataclass(frozen=True)
class MadeStore:
    """Where a store is, and what it takes to open it or to change it behind its back."""

    path: Path
    custodian: Custodian

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def open(self, custodian: Custodian | None = None, busy_timeout_s: float = 5.0) -> Store:
        return Store.open(self.url, custodian or self.custodian, busy_timeout_s=busy_timeout_s)

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Do as someone would who has the database, but not the root key."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            return connection.execute(statement, values).fetchall()

    def drop_checks(self) -> None:
        """Let rows be written that the schema would refuse; ``run`` does so anyway here."""

    def copy(self, request: pytest.FixtureRequest, name: str) -> MadeStore:  # noqa: ARG002
        """Return a copy as it is now; nobody may be connected to this one."""
        shutil.copy(self.path, self.path.with_name(name))
        return MadeStore(self.path.with_name(name), self.custodian)

    def make_another(self, request: pytest.FixtureRequest, name: str) -> MadeStore:  # noqa: ARG002
        """Return a new, empty store of the same root key."""
        other = MadeStore(self.path.with_name(name), self.custodian)
        _initialise(other.url, self.custodian)
        return other


@dataclass(frozen=True)
class MadeOnServer(MadeStore):
    """A store in a PostgreSQL database. ``path`` only says where its root key lies."""

    database: Database

    @property
    def url(self) -> str:
        return self.database.url

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.database.run(statement.replace("?", "%s"), *values)

    def drop_checks(self) -> None:
        """Let rows be written that the schema would refuse."""
        found = self.run(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid <> 0"
        )
        for table, name in found:
            self.run(f"ALTER TABLE {table} DROP CONSTRAINT {name}")

    def copy(self, request: pytest.FixtureRequest, name: str) -> MadeOnServer:
        """Return a copy as it is now; nobody may be connected to this one."""
        database = self.database.server.make_database(template=self.database.name)
        request.addfinalizer(database.drop)
        return MadeOnServer(self.path.with_name(name), self.custodian, database)

    def make_another(self, request: pytest.FixtureRequest, name: str) -> MadeOnServer:
        """Return a new, empty store of the same root key."""
        database = self.database.server.make_database()
        request.addfinalizer(database.drop)
        other = MadeOnServer(self.path.with_name(name), self.custodian, database)
        _initialise(database.owner_url, self.custodian)
        database.grant()
        return other


def make_root_key(directory: Path, name: str = "root.key") -> FileCustodian:
    create_root_key_file(directory / name, os.geteuid(), os.getegid())
    return FileCustodian.load(directory / name, owner_uids=frozenset({os.geteuid()}))


def make_store(directory: Path, name: str = "keyside.db") -> MadeStore:
    made = MadeStore(directory / name, make_root_key(directory, f"{name}.root.key"))
    _initialise(made.url, made.custodian)
    return made


def _initialise(url: str, custodian: Custodian) -> None:
    initialise_store(url, custodian, uid=os.geteuid(), gid=os.getegid(), now=NOW)


def make_store_on(server: Server, directory: Path) -> MadeOnServer:
    """Make a store as its owner, for the daemon's role."""
    path = directory / "keyside"
    made = MadeOnServer(
        path, make_root_key(directory, f"{path.name}.root.key"), server.make_database()
    )
    _initialise(made.database.owner_url, made.custodian)
    made.database.grant()
    return made


def make_store_of(request: pytest.FixtureRequest, directory: Path) -> MadeStore:
    """Make a store of the kind that a fixture's parameter names, one of ``KINDS``."""
    directory.chmod(0o700)
    if request.param == "sqlite":
        return make_store(directory)
    pattern: MadeOnServer = request.getfixturevalue("empty_store_on_server")
    made = pattern.copy(request, "keyside")
    # Its root key's file is where another process looks for it.
    path = directory / "keyside"
    shutil.copy2(pattern.path.with_name("keyside.root.key"), f"{path}.root.key")
    return MadeOnServer(path, made.custodian, made.database)


class CountingCustodian:
    """Counts what is unwrapped."""

    def __init__(self, custodian: Custodian) -> None:
        self._custodian = custodian
        self.unwrapped = 0

    @property
    def key_id(self) -> str:
        return self._custodian.key_id

    def find(self, key_id: str) -> Custodian:
        return self._custodian.find(key_id)

    def list_ids(self) -> tuple[str, ...]:
        return self._custodian.list_ids()

    def require_kept(self) -> None:
        self._custodian.require_kept()

    def wrap(self, plaintext: bytes, binding: bytes) -> bytes:
        return self._custodian.wrap(plaintext, binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        self.unwrapped += 1
        return self._custodian.unwrap(wrapped, binding)

    def derive(self, label: bytes, context: bytes = b"") -> bytes:
        return self._custodian.derive(label, context)


def add_archived(store: Store, name: KeyName, count: int) -> None:
    """Give a key many versions in one transaction, as years of rotations would."""
    with store.session.changing() as draft:
        key = draft.snapshot.keys[name]
        first = key["last_number"] + 1
        added = [
            {
                **draft.reader.wrapping.make_version(name, number, NOW, None, 0)[0],
                "state": "ARCHIVED",
            }
            for number in range(first, first + count)
        ]
        draft.change.change_key(key, {"last_number": first + count - 1}, added=added)
        draft.finish(name)


def set_state(store: Store, name: KeyName, number: int, state: str) -> None:
    """Put a version into a state, with all that authenticates it."""
    with store.session.changing() as draft:
        key = draft.snapshot.keys[name]
        row = draft.reader.read_version(key, draft.reader.read_index(key), number)
        gone = {"wrapped": None, "root_key_id": None} if state == "DESTROYED" else {}
        draft.change.change_key(key, {}, replaced=[(row, {"state": state, **gone})])
        draft.finish(name)
