"""Moving a store to another root key: every version wrapped anew, every row's MAC made anew.

In one transaction, alone among all that write. Processes that read go on with what was there
before; with the next thing that they read they find the store's own row, and follow it to the new
root key (trust.py). Those that write wait, and then do the same: whoever writes to any table reads
the store's own row after it has got its lock, so no row is written under the old key afterwards.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, update

from keyside_sidecar.errors import CustodyError, StoreTampered
from keyside_sidecar.store import schema
from keyside_sidecar.store.authentication import Authenticator, bind_material
from keyside_sidecar.store.examination import (
    PAGE,
    Contents,
    Examination,
    read_rows,
)
from keyside_sidecar.store.reader import Reader
from keyside_sidecar.store.sidecars import read_register
from keyside_sidecar.store.tables import (
    access_requests,
    access_uses,
    keys,
    sidecars,
    store_meta,
    store_time,
    version_usage,
)
from keyside_sidecar.store.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Table

    from keyside_sidecar.custody import Custodian
    from keyside_sidecar.store.fleet import Fleet, Member
    from keyside_sidecar.store.records import OpenedVersion
    from keyside_sidecar.store.session import Session

    Row = Mapping[str, Any]

# Written to beside the keys, each by whoever holds its lock and no other (Session.recording): so
# the order in which they are locked here, after the store's own, can't lead to a deadlock.
_BESIDE = (sidecars, store_time, version_usage)


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """What came of it.

    Args:
        contents: The store as it is now; None where nothing was changed.
        lacking: The live processes that can't use the new root key, which kept it from being done;
            where there are none, the store belongs to the new root key already.
    """

    contents: Contents | None
    lacking: tuple[Member, ...] = ()


def rewrap_store(session: Session, successor: Custodian, fleet: Fleet) -> Rewrapped:
    """Move a store to another root key: all of it or, if a live process could not follow, nothing.

    Every row is checked before, and everything that was written is read back, checked and unwrapped
    before it is committed.

    Args:
        session: The store's.
        successor: Keeps the new root key.
        fleet: The processes that use the store.

    Raises:
        StoreUnavailable: The store is away, or others write for too long. Nothing was changed,
            unless the error came from the commit itself, which is then whole or not there.
        StoreTampered: A row does not fit; nothing was changed.
        CustodyError: A version does not unwrap; nothing was changed.
    """
    mark = session.memory.mark()
    with session.database.transaction(lock=store_meta) as connection:
        _lock_beside(connection)
        schema.require_head(connection)
        reader = Reader(connection, session.trust, mark)
        snapshot = session.memory.load_snapshot(reader)
        if snapshot.meta["root_key_id"] == successor.key_id:
            return Rewrapped(None)
        lacking = tuple(
            member
            for member in fleet.list_within(reader)
            if not member.is_silent and successor.key_id not in member.root_key_ids
        )
        if lacking:
            return Rewrapped(None, lacking)
        before = _Materials()
        rewrapping = _Rewrapping(session.trust, successor, connection, before)
        rewrapping.run()
        after = _Materials(before.key)
        examination = Examination(Trust(successor, snapshot.meta["store_id"]))
        for table, row in read_rows(connection):
            after.take(examination.take(table, row))
        contents = examination.finish()
        _, strange = read_register(connection, examination.trusted.authenticator)
        if strange != rewrapping.strange:
            raise StoreTampered("register of sidecars")
        if after.digest() != before.digest():
            raise CustodyError(
                "what was wrapped anew did not unwrap to what it was; nothing was changed",
                remedy="check this host's memory and the root key's custodian",
            )
        session.database.announce(connection)
    session.database.scrub()
    return Rewrapped(contents)


def _lock_beside(connection: Connection) -> None:
    """Lock what is written to beside the keys, before anything is read; SQLite has one lock."""
    if connection.dialect.name == "postgresql":
        prepare = connection.dialect.identifier_preparer.format_table
        names = ", ".join(prepare(table) for table in _BESIDE)
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")


class _Materials:
    """Compares the material of all versions without keeping it: an HMAC under a passing key."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key or os.urandom(32)
        self._mac = hmac.new(self.key, digestmod="sha256")

    def take(self, opened: OpenedVersion | None) -> None:
        if opened is not None:
            info = opened.info
            material = b"" if opened.material is None else opened.material.material
            self._mac.update(f"{info.key_name} {info.number} {len(material)} ".encode())
            self._mac.update(info.version_id + material)

    def digest(self) -> bytes:
        return self._mac.digest()


class _Rewrapping:
    """Goes through all rows once: each is checked under the old key, and written under the new."""

    def __init__(
        self, trust: Trust, successor: Custodian, connection: Connection, materials: _Materials
    ) -> None:
        self._connection = connection
        self._successor = successor
        self._materials = materials
        self._examination = Examination(trust)
        self._meta: Row = {}
        self._keys: dict[str, Row] = {}
        self._totals: dict[str, int] = {}
        self._uses_totals: dict[str, int] = {}
        self._access_total = 0
        self._writing: tuple[Table, list[dict[str, Any]]] = (store_meta, [])
        self.strange = 0

    def run(self) -> None:
        for table, row in read_rows(self._connection):
            opened = self._examination.take(table, row)
            self._materials.take(opened)
            if table is store_meta:
                self._meta = row
                self._authenticator = Authenticator(self._successor, row["store_id"])
            elif table is keys:
                self._keys[row["name"]] = row
                self._totals[row["name"]] = 0
            elif opened is not None:
                mac = self._write(table, row, self._wrap(opened))
                self._totals[row["key_name"]] += self._authenticator.compute_term(mac)
            elif table is access_uses:
                term = self._authenticator.compute_term(self._write(table, row, {}))
                known = self._uses_totals.get(row["request_id"], 0)
                self._uses_totals[row["request_id"]] = known + term
            elif table is access_requests:
                self._write_request(row)
            else:
                self._write(table, row, {})
        self._examination.finish()
        # A row that somebody altered stays as it is, and goes on not authenticating.
        trusted = self._examination.trusted
        register, self.strange = read_register(self._connection, trusted.authenticator)
        for row in register:
            self._write(sidecars, row, {})
        self._write_above()
        self._flush()

    def _wrap(self, opened: OpenedVersion) -> Row:
        info, key = opened.info, opened.material
        changed = {"generation": self._meta["generation"] + 1}
        if key is None:
            return changed
        binding = bind_material(self._meta["store_id"], info.key_name, info.number, info.version_id)
        return {
            **changed,
            "wrapped": self._successor.wrap(key.material, binding),
            "root_key_id": self._successor.key_id,
        }

    def _write_request(self, row: Row) -> None:
        total = self._uses_totals.pop(row["id"], None)
        digest = None if total is None else self._authenticator.seal_sum(total)
        mac = self._write(access_requests, row, {"uses_digest": digest})
        if row["ended_number"] is None:
            self._access_total += self._authenticator.compute_term(mac)

    def _write_above(self) -> None:
        """Write the rows that hold digests: the keys', and then the store's own."""
        generation = self._meta["generation"] + 1
        total = 0
        for name, row in self._keys.items():
            digest = self._authenticator.seal_sum(self._totals[name])
            mac = self._write(keys, row, {"versions_digest": digest, "generation": generation})
            total += self._authenticator.compute_term(mac)
        access = self._meta["access_digest"]
        if access is not None:
            access = self._authenticator.seal_sum(self._access_total)
        changed = {
            "keys_digest": self._authenticator.seal_sum(total),
            "access_digest": access,
            "root_key_id": self._successor.key_id,
            "generation": generation,
        }
        self._write(store_meta, self._meta, changed)

    def _write(self, table: Table, row: Row, changed: Row) -> bytes:
        """Have a row written, sooner or later, and return its new MAC."""
        mac = self._authenticator.compute_mac(table.name, {**row, **changed})
        same_row = {f"old_{column.name}": row[column.name] for column in table.primary_key}
        if self._writing[0] is not table or len(self._writing[1]) == PAGE:
            self._flush()
            self._writing = (table, [])
        self._writing[1].append({**same_row, "old_mac": row["mac"], **changed, "mac": mac})
        return mac

    def _flush(self) -> None:
        table, rows = self._writing
        # Not all versions have the same columns written: destroyed ones have nothing to wrap.
        for shape in {tuple(row) for row in rows}:
            same_row = [column == bindparam(f"old_{column.name}") for column in table.primary_key]
            self._connection.execute(
                update(table).where(*same_row, table.c.mac == bindparam("old_mac")),
                [row for row in rows if tuple(row) == shape],
            )
        self._writing = (table, [])
