"""Key versions at rest: what the rest of the sidecar may ask of the store, and change in it.

Synchronous; every method is one transaction, may be called from any thread, and raises

* ``StoreUnavailable`` where the database is away (missing, locked, full, read-only, damaged);
* ``StoreTampered`` where something in it was changed without the root key (authentication.py) or
  has gone back in time (snapshot.py). Nothing that did not fit is ever returned or built upon;
* ``StoreSchemaError`` where a newer program has migrated it meanwhile.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from keyside.names import KeyName
from keyside_sidecar.errors import CustodyError, RotationConflict, StoreTampered, UnknownVersion
from keyside_sidecar.store import schema
from keyside_sidecar.store.authentication import Authenticator
from keyside_sidecar.store.change import Draft
from keyside_sidecar.store.database import Database
from keyside_sidecar.store.location import parse_store_url
from keyside_sidecar.store.material import Wrapping, describe_key, describe_version
from keyside_sidecar.store.reader import Reader, read_meta_unverified
from keyside_sidecar.store.records import (
    Changes,
    KeyInfo,
    LoadedKey,
    OpenedVersion,
    StoredRotation,
    StoreMeta,
    VersionInfo,
    VersionState,
    from_microseconds,
)
from keyside_sidecar.store.snapshot import Memory, Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from keyside_sidecar.custody import Custodian

    Row = Mapping[str, Any]

# SQLite takes 32,766 variables in a statement, but a short statement is compiled once and kept.
_NUMBERS_AT_ONCE: Final = 256


class Store:
    """A store that is open. Open it after forking; use :meth:`open`.

    Args:
        database: Its connections.
        custodian: Keeps the root key.
        meta: The store's own row, not checked yet.
    """

    def __init__(self, database: Database, custodian: Custodian, meta: Row) -> None:
        self._database = database
        self._authenticator = Authenticator(custodian, meta["store_id"])
        self._wrapping = Wrapping(custodian, meta["store_id"])
        self._authenticator.verify("store_meta", meta, "own row")
        self._memory = Memory(meta)

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
            url: ``sqlite:////absolute/path``.
            custodian: Keeps the root key.
            owner_uids: Whose the file may be; by default the running account's.
            busy_timeout_s: How long to wait for another process's write, in seconds.

        Raises:
            StartupError: The URL is not supported, or others can read or replace the file.
            StoreUnavailable: The file is missing or can't be used.
            StoreSchemaError: Its schema is older or newer than this program's.
            CustodyError: It belongs to another root key.
            StoreTampered: Its own row was altered.
        """
        path = parse_store_url(url)
        owners = frozenset({os.geteuid()}) if owner_uids is None else owner_uids
        database = Database(path, owners, busy_timeout_s)
        try:
            with database.transaction() as connection:
                schema.require_head(connection)
                meta = read_meta_unverified(connection)
            _require_root_key(meta, custodian, path)
            return cls(database, custodian, meta)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the store's connections."""
        self._database.close()

    def read_meta(self) -> StoreMeta:
        """Return what the store says of itself."""
        with self._reading() as (_, snapshot):
            meta = snapshot.meta
        return StoreMeta(
            store_id=meta["store_id"],
            generation=meta["generation"],
            root_key_id=meta["root_key_id"],
            created_at=from_microseconds(meta["created_at"]),
        )

    def list_keys(self) -> list[KeyInfo]:
        """Return every key, by name."""
        with self._reading() as (reader, snapshot):
            return [
                describe_key(key, self._read_current(reader, key))
                for _, key in sorted(snapshot.keys.items())
            ]

    def load_key(self, name: KeyName) -> LoadedKey:
        """Return a key with its current version, unwrapped.

        Raises:
            KeyError: There is no such key.
            CustodyError: The version does not unwrap.
        """
        with self._reading() as (reader, snapshot):
            key = snapshot.keys[name]
            current = self._read_current(reader, key)
        return LoadedKey(describe_key(key, current), self._wrapping.open_version(current))

    def describe_key(self, name: KeyName) -> KeyInfo:
        """Return what there is to say of a key.

        Raises:
            KeyError: There is no such key.
        """
        with self._reading() as (reader, snapshot):
            key = snapshot.keys[name]
            return describe_key(key, self._read_current(reader, key))

    def find_version(self, name: KeyName, number: int) -> OpenedVersion:
        """Return one version, unwrapped where its material is still there.

        Raises:
            UnknownVersion: The key, or that number of it, does not exist.
            CustodyError: The version does not unwrap.
        """
        with self._reading() as (reader, snapshot):
            key = snapshot.keys.get(name)
            if key is None or not 1 <= number <= key["last_number"]:
                raise UnknownVersion(name, number)
            index = self._memory.load_index(reader, key)
            row = reader.read_version(key, index, number)
        return self._wrapping.open_version(row)

    def describe_versions(self, name: KeyName, numbers: Collection[int]) -> list[VersionInfo]:
        """Return what there is to say of those of ``numbers`` that exist, ascending.

        Raises:
            KeyError: There is no such key.
        """
        wanted = sorted(numbers)
        with self._reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self._memory.load_index(reader, key)
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
        with self._reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self._memory.load_index(reader, key)
            end = key["last_number"] + 1
            rows = reader.read_page(
                key, index, before=end if before is None else min(before, end), limit=limit
            )
            return [describe_version(row) for row in rows]

    def verify_page(self, name: KeyName, *, after: int, limit: int) -> int | None:
        """Check at most ``limit`` versions of a key from ``after`` + 1 on.

        Returns:
            The number to continue after; None when the last version was checked.

        Raises:
            KeyError: There is no such key.
        """
        with self._reading() as (reader, snapshot):
            key = snapshot.keys[name]
            index = self._memory.load_index(reader, key)
            last = min(after + limit, key["last_number"])
            reader.read_page(key, index, before=last + 1, limit=last - after)
            return None if last == key["last_number"] else last

    def forget_checked(self) -> None:
        """Check keys and sets of versions anew at the next use, not only what has changed."""
        self._memory.forget()

    def read_change_token(self) -> object:
        """Return something that compares equal as long as nobody has written; cheap."""
        return self._database.read_data_version()

    def changed_since(self, generation: int) -> Changes:
        """Return the store's generation, and which keys have changed since ``generation``."""
        with self._reading() as (_, snapshot):
            changed = [n for n, key in snapshot.keys.items() if key["generation"] > generation]
            return Changes(snapshot.meta["generation"], tuple(KeyName(n) for n in sorted(changed)))

    def create_key(self, name: KeyName, now: datetime, made_by_uid: int | None = None) -> bool:
        """Make a key with version 1, unless it exists; of several calls at once, one does.

        Args:
            name: The key's.
            now: The time, aware.
            made_by_uid: The operator's uid; None where the configuration asks for the key.

        Returns:
            Whether it was this call that made it.

        Raises:
            CustodyError: What was wrapped did not unwrap; nothing was changed.
        """
        with self._reading() as (_, snapshot):
            if name in snapshot.keys:
                return False
        with self._writing() as draft:
            if name in draft.snapshot.keys:
                return False
            version, material = self._wrapping.make_version(name, 1, now, made_by_uid)
            key = {"name": name, "created_at": version["created_at"]}
            draft.change.add_key(key | {"current_number": 1, "last_number": 1}, version)
            draft.finish(name)
            self._wrapping.require_opens(draft.current, material)
        return True

    def rotate(
        self, name: KeyName, *, actor_uid: int | None, expected_current: int, now: datetime
    ) -> StoredRotation:
        """Make a new current version and archive its predecessor: both, or neither (I10).

        Args:
            name: The key.
            actor_uid: The operator's uid; None where the sidecar does it by itself.
            expected_current: The number that must be current; 0 for whichever is.
            now: The time, aware.

        Raises:
            KeyError: There is no such key.
            RotationConflict: Another version is current; nothing was changed.
            CustodyError: What was wrapped did not unwrap; nothing was changed.
        """
        with self._writing() as draft:
            key = draft.snapshot.keys[name]
            if expected_current not in (0, key["current_number"]):
                raise RotationConflict(name, expected_current, key["current_number"])
            current = self._read_current(draft.reader, key)
            number = key["last_number"] + 1
            version, material = self._wrapping.make_version(name, number, now, actor_uid)
            archived = {"state": str(VersionState.ARCHIVED), "archived_at": version["created_at"]}
            draft.change.change_key(
                key,
                {"current_number": number, "last_number": number},
                replaced=[(current, archived)],
                added=[version],
            )
            draft.finish(name)
            opened = self._wrapping.require_opens(draft.current, material)
            info = describe_key(draft.key, draft.current)
        return StoredRotation(info, opened, describe_version({**current, **archived}))

    @contextmanager
    def _reading(self) -> Iterator[tuple[Reader, Snapshot]]:
        mark = self._memory.mark()
        with self._database.transaction() as connection:
            reader = Reader(connection, self._authenticator, mark)
            try:
                yield reader, self._memory.load_snapshot(reader)
            except StoreTampered:
                # A newer program's rows don't fit either: that is no tampering.
                schema.require_head(connection)
                raise

    @contextmanager
    def _writing(self) -> Iterator[Draft]:
        mark = self._memory.mark()
        with self._database.transaction(write=True) as connection:
            # Migrated since this process started? Its rows would lack the new columns.
            schema.require_head(connection)
            reader = Reader(connection, self._authenticator, mark)
            snapshot = self._memory.load_snapshot(reader)
            draft = Draft(connection, self._authenticator, reader, snapshot)
            yield draft
        if draft.after is not None:
            self._memory.remember(draft.reader, draft.after, draft.index)

    def _read_current(self, reader: Reader, key: Row) -> Row:
        return reader.read_version(key, self._memory.load_index(reader, key), key["current_number"])


def _require_root_key(meta: Row, custodian: Custodian, path: Path) -> None:
    # Not checked yet: an altered id gives the wrong reason here, but never an open store.
    if meta["root_key_id"] != custodian.key_id:
        raise CustodyError(
            f"the store {path} belongs to root key {meta['root_key_id']!a}, and the configured "
            f"one is {custodian.key_id}",
            remedy="configure the root key that the store was made with, or its backup",
        )
