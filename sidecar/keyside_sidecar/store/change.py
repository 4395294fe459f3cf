"""One change to the store, with everything that has to change along with it.

Every change moves the store to its next generation by compare-and-swap on the store's own row, so
that two of them can't be made from the same state; every row that it writes carries the new
generation and MAC; every digest above such a row follows.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, update

from keyside_sidecar.errors import StoreContended, StoreTampered
from keyside_sidecar.store.observed import read_observed_us
from keyside_sidecar.store.snapshot import Snapshot
from keyside_sidecar.store.tables import (
    access_requests,
    access_uses,
    key_versions,
    keys,
    store_meta,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Table

    from keyside_sidecar.store.authentication import Authenticator
    from keyside_sidecar.store.reader import Reader, VersionIndex
    from keyside_sidecar.store.witness import Witness

    Row = Mapping[str, Any]


class Change:
    """Writes rows within one transaction; ``finish`` must come last.

    Args:
        connection: In a writing transaction.
        authenticator: Of the root key that the store belongs to.
        snapshot: Loaded in the same transaction.

    Raises:
        StoreContended: Another sidecar changed the store meanwhile; nothing was changed.
    """

    def __init__(
        self, connection: Connection, authenticator: Authenticator, snapshot: Snapshot
    ) -> None:
        self._connection = connection
        self._authenticator = authenticator
        self._meta = snapshot.meta
        self.replaced: list[int] = []
        self._observed_us: int = snapshot.meta["observed_floor"] or 0
        self._keys_total = authenticator.open_sum(snapshot.meta["keys_digest"])
        access_digest = snapshot.meta["access_digest"]
        self._access_total = 0 if access_digest is None else authenticator.open_sum(access_digest)
        self._access_ended: int = snapshot.meta["access_ended"] or 0
        self._touched: set[str] = set()
        self.generation: int = snapshot.meta["generation"] + 1
        swapped = connection.execute(
            update(store_meta)
            .where(store_meta.c.generation == snapshot.meta["generation"])
            .values(generation=self.generation)
        )
        if swapped.rowcount != 1:
            raise StoreContended("another sidecar changed the store at the same time; try again")

    def add_key(self, columns: Row, version: Row) -> None:
        """Insert a key and its first version.

        Args:
            columns: The key's, but for digest, generation and MAC.
            version: The version's, but for generation and MAC.
        """
        row = self._seal(key_versions, version)
        digest = self._authenticator.seal_sum(self._authenticator.compute_term(row["mac"]))
        key = self._seal(keys, {**columns, "versions_digest": digest})
        self._connection.execute(insert(keys).values(**key))
        self._connection.execute(insert(key_versions).values(**row))
        self._keys_total += self._authenticator.compute_term(key["mac"])
        self._touched.add("keys_digest")

    def change_key(
        self,
        key: Row,
        columns: Row,
        *,
        replaced: Iterable[tuple[Row, Row]] = (),
        added: Iterable[Row] = (),
    ) -> Row:
        """Change a key together with its versions, and return the key's new row.

        Args:
            key: The key's row as it was.
            columns: Those of the key's that change.
            replaced: Versions' rows as they were, each with the columns that change. These are
                written first, so that there is never a moment with two current versions.
            added: New versions, but for generation and MAC.

        Raises:
            StoreTampered: A row is no longer what it was within this transaction.
        """
        term = self._authenticator.compute_term
        total = self._authenticator.open_sum(key["versions_digest"])
        for old, changed in replaced:
            new = self._seal(key_versions, {**old, **changed})
            self._replace(key_versions, old, new)
            self.replaced.append(new["number"])
            total += term(new["mac"]) - term(old["mac"])
        for version in added:
            row = self._seal(key_versions, version)
            self._connection.execute(insert(key_versions).values(**row))
            total += term(row["mac"])
        digest = self._authenticator.seal_sum(total)
        changed_key = self._seal(keys, {**key, **columns, "versions_digest": digest})
        self._replace(keys, key, changed_key)
        self._keys_total += term(changed_key["mac"]) - term(key["mac"])
        self._touched.add("keys_digest")
        return changed_key

    def add_access(self, columns: Row) -> Row:
        """Insert a request for access, and return its row.

        Args:
            columns: All of its columns, but for generation and MAC; it has not ended.
        """
        row = self._seal(access_requests, columns)
        self._connection.execute(insert(access_requests).values(**row))
        self._access_total += self._authenticator.compute_term(row["mac"])
        self._touched.add("access_digest")
        return row

    def change_access(self, old: Row, columns: Row, uses: Iterable[Row] = ()) -> Row:
        """Change a request for access that has not ended, and return its new row.

        Args:
            old: Its row as it was.
            columns: All of its columns, but for uses_digest, generation and MAC. In state ENDED it
                is given its number in the order of ending.
            uses: New uses of the grant, but for their MACs.

        Raises:
            StoreTampered: The row is no longer what it was within this transaction.
        """
        term = self._authenticator.compute_term
        changed = {**columns, "uses_digest": self._add_uses(old["uses_digest"], uses)}
        ended = columns["state"] == "ENDED"
        if ended:
            self._access_ended += 1
            changed["ended_number"] = self._access_ended
        new = self._seal(access_requests, changed)
        self._replace(access_requests, old, new)
        self._access_total += (0 if ended else term(new["mac"])) - term(old["mac"])
        self._touched.add("access_digest")
        return new

    def _add_uses(self, digest: bytes | None, uses: Iterable[Row]) -> bytes | None:
        rows = [self._seal(access_uses, use) for use in uses]
        if not rows:
            return digest
        self._connection.execute(insert(access_uses), rows)
        total = 0 if digest is None else self._authenticator.open_sum(digest)
        total += sum(self._authenticator.compute_term(row["mac"]) for row in rows)
        return self._authenticator.seal_sum(total)

    def note_observed(self, observed_us: int) -> None:
        """Have the store remember the observed time that this change is based on."""
        self._observed_us = max(self._observed_us, observed_us)

    def finish(self) -> Row:
        """Write the store's own row, and return it.

        A digest of what was not touched stays as it is, to the byte: whoever has checked the keys
        under it need not do so again (snapshot.py).
        """
        totals = {"keys_digest": self._keys_total, "access_digest": self._access_total}
        digests = {name: self._authenticator.seal_sum(totals[name]) for name in self._touched}
        counts = {
            "observed_floor": self._observed_us or None,
            "access_ended": self._access_ended or None,
        }
        meta = self._seal(store_meta, {**self._meta, **digests, **counts})
        self._connection.execute(update(store_meta).values(**meta))
        return meta

    def _seal(self, table: Table, columns: Row) -> Row:
        row = {**columns, "generation": self.generation}
        # Every column by name, so that the row is what a reader will see.
        row = {column.name: row.get(column.name) for column in table.columns}
        row["mac"] = self._authenticator.compute_mac(table.name, row)
        return row

    def _replace(self, table: Table, old: Row, new: Row) -> None:
        same_row = [column == old[column.name] for column in table.primary_key]
        result = self._connection.execute(
            update(table).where(*same_row, table.c.mac == old["mac"]).values(**new)
        )
        if result.rowcount != 1:
            raise StoreTampered(f"row in {table.name}")


class Draft:
    """A change under way in a transaction, with what it was made from and what it leads to.

    Args:
        reader: In a writing transaction.
        snapshot: Loaded in the same transaction.
        witness: What this process has seen beside the store's generation.
    """

    def __init__(self, reader: Reader, snapshot: Snapshot, witness: Witness) -> None:
        self.reader = reader
        self.snapshot = snapshot
        self._witness = witness
        self.after: Snapshot | None = None
        self.checked: VersionIndex | None = None

    @cached_property
    def change(self) -> Change:
        """The change; the first use claims the store's next generation."""
        change = Change(self.reader.connection, self.reader.authenticator, self.snapshot)
        change.note_observed(self.observed_us)
        return change

    @cached_property
    def observed_us(self) -> int:
        """The store's observed time, in microseconds.

        Raises:
            StoreTampered: It was altered, removed, or has gone back.
        """
        return read_observed_us(self.reader, self.snapshot.meta, self._witness)

    def finish(self, name: str) -> None:
        """Close the change of one key, read back what was written, and check that it is that.

        The store's own row, every ``keys`` row, the set of the key's versions, its current version
        and the replaced ones. Rows that the change didn't touch are checked when they are read.

        Raises:
            StoreTampered: What was written does not read back as it should.
        """
        meta = self.change.finish()
        # The row itself, not only one that fits: that may be the one before.
        if self.reader.read_meta() != meta:
            raise StoreTampered("own row")
        self.after = Snapshot(meta, self.reader.read_keys(meta))
        self.key = self.after.keys[name]
        self.checked = self.index = self.reader.read_index(self.key)
        self.current = self.reader.read_version(self.key, self.index, self.key["current_number"])
        for number in self.change.replaced:
            self.reader.read_version(self.key, self.index, number)

    def finish_access(self) -> Row:
        """Close the change of requests for access; read the store's own row back, and return it.

        Whoever changed them reads them back; the keys are as they were.

        Raises:
            StoreTampered: What was written does not read back as it should.
        """
        meta = self.change.finish()
        if self.reader.read_meta() != meta:
            raise StoreTampered("own row")
        self.after = Snapshot(meta, self.snapshot.keys)
        return meta
