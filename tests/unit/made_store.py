"""A root key, a store and their like, made for one test."""

from __future__ import annotations

import os
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

    from keyside_sidecar.custody import Custodian

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


def make_root_key(directory: Path, name: str = "root.key") -> FileCustodian:
    create_root_key_file(directory / name, os.geteuid(), os.getegid())
    return FileCustodian.load(directory / name, owner_uids=frozenset({os.geteuid()}))


def make_store(directory: Path, name: str = "keyside.db") -> MadeStore:
    made = MadeStore(directory / name, make_root_key(directory, f"{name}.root.key"))
    initialise_store(made.url, made.custodian, uid=os.geteuid(), gid=os.getegid(), now=NOW)
    return made


class CountingCustodian:
    """Counts what is unwrapped."""

    def __init__(self, custodian: Custodian) -> None:
        self._custodian = custodian
        self.unwrapped = 0

    @property
    def key_id(self) -> str:
        return self._custodian.key_id

    def wrap(self, plaintext: bytes, binding: bytes) -> bytes:
        return self._custodian.wrap(plaintext, binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        self.unwrapped += 1
        return self._custodian.unwrap(wrapped, binding)

    def derive(self, label: bytes, context: bytes = b"") -> bytes:
        return self._custodian.derive(label, context)


def add_archived(store: Store, name: KeyName, count: int) -> None:
    """Give a key many versions in one transaction, as years of rotations would."""
    with store._writing() as draft:
        key = draft.snapshot.keys[name]
        first = key["last_number"] + 1
        added = [
            {**store._wrapping.make_version(name, number, NOW, None)[0], "state": "ARCHIVED"}
            for number in range(first, first + count)
        ]
        draft.change.change_key(key, {"last_number": first + count - 1}, added=added)
        draft.finish(name)


def set_state(store: Store, name: KeyName, number: int, state: str) -> None:
    """Put a version into a state, with all that authenticates it."""
    with store._writing() as draft:
        key = draft.snapshot.keys[name]
        row = draft.reader.read_version(key, draft.reader.read_index(key), number)
        gone = {"wrapped": None, "root_key_id": None} if state == "DESTROYED" else {}
        draft.change.change_key(key, {}, replaced=[(row, {"state": state, **gone})])
        draft.finish(name)
