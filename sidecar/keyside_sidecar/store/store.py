"""Key versions at rest: what the rest of the sidecar may ask of the store, and change in it.

Synchronous; every method is one transaction, may be called from any thread, and raises

* ``StoreUnavailable`` where the database is away (missing, locked, full, read-only, damaged);
* ``StoreTampered`` where something in it was changed without the root key (authentication.py) or
  has gone back in time (snapshot.py). Nothing that did not fit is ever returned or built upon;
* ``StoreSchemaError`` where a newer program has migrated it meanwhile;
* ``CustodyError`` where it has moved to a root key that the custodian does not have.

What can be done to keys and versions stands in changing.py, usage in usage.py, people's access in
elevation.py, the register of processes in sidecars.py, and observed time in observed.py.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from keyside.names import KeyName
from keyside_sidecar.errors import CustodyError, UnknownVersion
from keyside_sidecar.store import changing, schema
from keyside_sidecar.store.database import open_database
from keyside_sidecar.store.elevation import AccessBook
from keyside_sidecar.store.material import describe_key, describe_version
from keyside_sidecar.store.observed import ObservedTime
from keyside_sidecar.store.reader import read_meta_unverified
from keyside_sidecar.store.records import (
    Changes,
    KeyInfo,
    LoadedKey,
    OpenedVersion,
    StoreMeta,
    VersionInfo,
    from_microseconds,
)
from keyside_sidecar.store.session import Session
from keyside_sidecar.store.sidecars import SidecarRegister
from keyside_sidecar.store.snapshot import Memory
from keyside_sidecar.store.trust import Trust
from keyside_sidecar.store.usage import UsageBook

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.store.database import Database
    from keyside_sidecar.store.reader import Reader

    Row = Mapping[str, Any]

# SQLite takes 32,766 variables in a statement, but a short statement is compiled once and kept.
_NUMBERS_AT_ONCE: Final = 256


class Store:
    """A store that is open. Open it after forking; use :meth:`open`.

    Args:
        database: Its connections.
        trust: Its root key.
        meta: The store's own row, not checked yet.
    """

    def __init__(self, database: Database, trust: Trust, meta: Row) -> None:
        trust.use(meta["root_key_id"]).authenticator.verify("store_meta", meta, "own row")
        self.session = Session(database, trust, Memory(meta))
        self.usage = UsageBook(self.session)
        self.sidecars = SidecarRegister(self.session)
        self.observed = ObservedTime(self.session)
        self.access = AccessBook(self.session)
        # Each of these is documented in changing.py.
        self.create_key = partial(changing.create_key, self.session)
        self.rotate = partial(changing.rotate, self.session)
        self.roll_over = partial(changing.roll_over, self.session)
        self.make_pending = partial(changing.make_pending, self.session)
        self.disable = partial(changing.disable, self.session)
        self.enable = partial(changing.enable, self.session)
        self.schedule_destruction = partial(changing.schedule_destruction, self.session)
        self.cancel_destruction = partial(changing.cancel_destruction, self.session)
        self.destroy_if_due = partial(changing.destroy_if_due, self.session)

    @classmethod
    def open(
        cls,
        url: str,
        custodian: Custodian,
        *,
        owner_uids: frozenset[int] | None = None,
        busy_timeout_s: float = 5.0,
    ) -> Self:
        """Open the store that ``url`` names, and check who can read it, its schema and root key.

        Args:
            url: ``sqlite:////absolute/path`` or ``postgresql+psycopg://…``.
            custodian: Keeps the root key, or finds it.
            owner_uids: Whose a file may be; by default the running account's.
            busy_timeout_s: How long to wait for another process's write, in seconds.

        Raises:
            StartupError: The URL is not supported, or others can read or replace the file.
            StoreUnavailable: The store is missing or can't be used.
            StoreSchemaError: Its schema is older or newer than this program's.
            CustodyError: It belongs to another root key.
            StoreTampered: Its own row was altered.
        """
        owners = frozenset({os.geteuid()}) if owner_uids is None else owner_uids
        database = open_database(url, owners, busy_timeout_s)
        try:
            with database.transaction() as connection:
                schema.require_head(connection)
                meta = read_meta_unverified(connection)
            return cls(database, Trust(_find_root_key(meta, custodian), meta["store_id"]), meta)
        except BaseException:
            database.close()
            raise

    @property
    def announces_changes(self) -> bool:
        """Whether :meth:`wait_for_change` wakes by itself."""
        return self.session.database.announces_changes

    @property
    def patrol_floor_s(self) -> float:
        """How soon after one another all rows may be gone through, in seconds."""
        return self.session.database.patrol_floor_s

    def close(self) -> None:
        """Close the store's connections."""
        self.session.database.close()

    def read_meta(self) -> StoreMeta:
        """Return what the store says of itself."""
        with self.session.reading() as (_, snapshot):
            meta = snapshot.meta
        return StoreMeta(
            store_id=meta["store_id"],
            generation=meta["generation"],
            root_key_id=meta["root_key_id"],
            created_at=from_microseconds(meta["created_at"]),
        )

    def list_keys(self) -> list[KeyInfo]:
        """Return every key, by name."""
        with self.session.reading() as (reader, snapshot):
            return [
                describe_key(key, self._read_current(reader, key))
                for _, key in sorted(snapshot.keys.items())
            ]

    def list_creation_times(self) -> list[datetime]:
        """Return when each key was made."""
        with self.session.reading() as (_, snapshot):
            return [from_microseconds(key["created_at"]) for key in snapshot.keys.values()]

    def load_key(self, name: KeyName) -> LoadedKey:
        """Return a key with its current version and its successor, unwrapped.

        Raises:
            KeyError: There is no such key.
            CustodyError: A version does not unwrap.
        """
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self.session.memory.load_index(reader, key)
            current = reader.read_version(key, index, key["current_number"])
            pending = None
            if key["pending_number"] is not None:
                pending = reader.read_version(key, index, key["pending_number"])
            scheduled = reader.list_scheduled(key, index)
            wrapping = reader.wrapping
        return LoadedKey(
            describe_key(key, current),
            wrapping.open_version(current),
            None if pending is None else wrapping.open_version(pending),
            tuple(describe_version(row) for row in scheduled),
        )

    def describe_key(self, name: KeyName) -> KeyInfo:
        """Return what there is to say of a key.

        Raises:
            KeyError: There is no such key.
        """
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys[name]
            return describe_key(key, self._read_current(reader, key))

    def find_version(self, name: KeyName, number: int) -> OpenedVersion:
        """Return one version, unwrapped where its material is still there.

        Raises:
            UnknownVersion: The key, or that number of it, does not exist.
            CustodyError: The version does not unwrap.
        """
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys.get(name)
            if key is None or not 1 <= number <= key["last_number"]:
                raise UnknownVersion(name, number)
            index = self.session.memory.load_index(reader, key)
            row = reader.read_version(key, index, number)
            wrapping = reader.wrapping
        return wrapping.open_version(row)

    def describe_versions(self, name: KeyName, numbers: Collection[int]) -> list[VersionInfo]:
        """Return what there is to say of those of ``numbers`` that exist, ascending.

        Raises:
            KeyError: There is no such key.
        """
        wanted = sorted(numbers)
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self.session.memory.load_index(reader, key)
            return [
                describe_version(row)
                for start in range(0, len(wanted), _NUMBERS_AT_ONCE)
                for row in reader.read_versions(
                    key, index, wanted[start : start + _NUMBERS_AT_ONCE]
                )
            ]

    def list_versions(self, name: KeyName, *, before: int | None, limit: int) -> list[VersionInfo]:
        """Return a page of a key's versions, newest first.

        Args:
            name: The key.
            before: Only versions with smaller numbers; None begins with the newest.
            limit: At most so many.

        Raises:
            KeyError: There is no such key.
        """
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self.session.memory.load_index(reader, key)
            end = key["last_number"] + 1
            rows = reader.read_page(
                key, index, before=end if before is None else min(before, end), limit=limit
            )
            return [describe_version(row) for row in rows]

    def verify_page(self, name: KeyName, *, after: int, limit: int) -> int | None:
        """Check at most ``limit`` versions of a key from ``after`` + 1 on, and their usage.

        Returns:
            The number to continue after; None when the last version was checked.

        Raises:
            KeyError: There is no such key.
        """
        with self.session.reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self.session.memory.load_index(reader, key)
            last = min(after + limit, key["last_number"])
            reader.read_page(key, index, before=last + 1, limit=last - after)
            self.usage.read_within(reader, name, range(after + 1, last + 1))
            return None if last == key["last_number"] else last

    def forget_checked(self) -> None:
        """Check keys and sets of versions anew at the next use, not only what has changed."""
        self.session.memory.forget()

    def read_change_token(self) -> object:
        """Return something that compares equal as long as nobody has written; cheap."""
        return self.session.database.read_change_token()

    def wait_for_change(self, timeout_s: float) -> None:
        """Wait until another process says that it has changed something, or until the time is up.

        Only where :attr:`announces_changes`.
        """
        self.session.database.wait_for_change(timeout_s)

    def changed_since(self, generation: int) -> Changes:
        """Return the store's generation, and which keys have changed since ``generation``."""
        with self.session.reading() as (_, snapshot):
            changed = [n for n, key in snapshot.keys.items() if key["generation"] > generation]
            return Changes(snapshot.meta["generation"], tuple(KeyName(n) for n in sorted(changed)))

    def list_root_keys(self) -> tuple[str, ...]:
        """Return the ids of the root keys that this process could use, its store's first."""
        custodian = self.session.trust.custodian
        return (custodian.key_id, *(k for k in custodian.list_ids() if k != custodian.key_id))

    def _read_current(self, reader: Reader, key: Row) -> Row:
        index = self.session.memory.load_index(reader, key)
        return reader.read_version(key, index, key["current_number"])


def _find_root_key(meta: Row, custodian: Custodian) -> Custodian:
    # Not checked yet: an altered id gives the wrong reason here, but never an open store.
    if meta["root_key_id"] == custodian.key_id:
        return custodian
    try:
        return custodian.find(meta["root_key_id"])
    except CustodyError as error:
        raise CustodyError(
            f"the store belongs to root key {meta['root_key_id']!a}, and the configured one is "
            f"{custodian.key_id}",
            remedy="configure the root key that the store was made with, or last rotated to",
        ) from error
