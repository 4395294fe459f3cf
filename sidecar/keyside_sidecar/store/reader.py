"""Rows, read within one transaction and believed only where their authentication fits."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.tables import key_versions, keys, store_meta, store_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from keyside_sidecar.store.authentication import Authenticator
    from keyside_sidecar.store.material import Wrapping
    from keyside_sidecar.store.snapshot import Mark
    from keyside_sidecar.store.trust import Trust, Trusted

    Row = Mapping[str, Any]

_TAG_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class VersionIndex:
    """Which row of each version of one key is the right one.

    A row with a valid MAC may still be an older copy of itself. Its term (authentication.py) tells:
    64 bits of it are kept here, 80 kB for ten thousand versions. Nobody outside can compute terms,
    so an older copy that fits would be an accident of probability 2**-64.

    Args:
        key_name: Which key.
        key_mac: The ``keys`` row under whose digest this was checked.
        generation: That row's generation.
        tags: Of version 1, 2, 3 …
    """

    key_name: str
    key_mac: bytes
    generation: int
    tags: array[int]


class Reader:
    """Reads within the transaction that ``connection`` is in.

    ``read_meta`` comes first: it finds the root key that the store belongs to at this moment.

    Args:
        connection: In a transaction.
        trust: Finds root keys.
        mark: What this process knew when the transaction began.
        since: The same, of the tables outside the store's generation (witness.py).
    """

    def __init__(self, connection: Connection, trust: Trust, mark: Mark, since: int = 0) -> None:
        self.mark = mark
        self.since = since
        self.connection = connection
        self._trust = trust
        self._trusted: Trusted | None = None

    @property
    def authenticator(self) -> Authenticator:
        """Checks the rows of the store as it is in this transaction."""
        return self._found().authenticator

    @property
    def wrapping(self) -> Wrapping:
        """Unwraps the material of the store as it is in this transaction."""
        return self._found().wrapping

    def read_meta(self) -> Row:
        """Return the store's own row.

        Raises:
            StoreTampered: It was altered, is another store's, or isn't there.
            CustodyError: It names a root key that the custodian does not have.
        """
        row = read_meta_unverified(self.connection)
        self._trusted = self._trust.use(row["root_key_id"])
        self.authenticator.verify(store_meta.name, row, "own row")
        return row

    def read_keys(self, meta: Row) -> dict[str, Row]:
        """Return every ``keys`` row by name.

        Raises:
            StoreTampered: One was altered, removed, added or put back from the past.
        """
        rows = [row._asdict() for row in self.connection.execute(select(keys))]
        total = 0
        for row in rows:
            self.authenticator.verify(keys.name, row, f"row of key {row['name']!a}")
            total += self.authenticator.compute_term(row["mac"])
        if not self.authenticator.fits(meta["keys_digest"], total):
            raise StoreTampered("set of keys")
        return {row["name"]: row for row in rows}

    def read_index(self, key: Row) -> VersionIndex:
        """Check that the versions of ``key`` are the ones that it had when it was last written.

        Reads the MAC of each row and nothing else; a row's columns are checked when it is read.

        Raises:
            StoreTampered: A version was removed, added or put back from the past.
        """
        statement = (
            select(key_versions.c.mac)
            .where(key_versions.c.key_name == key["name"])
            .order_by(key_versions.c.number)
        )
        place = f"set of versions of key {key['name']}"
        tags = array("Q")
        total = 0
        for mac in self.connection.execute(statement).scalars():
            if not isinstance(mac, bytes):
                raise StoreTampered(place)
            term = self.authenticator.compute_term(mac)
            total += term
            tags.append(term & _TAG_MASK)
        if len(tags) != key["last_number"] or not self.authenticator.fits(
            key["versions_digest"], total
        ):
            raise StoreTampered(place)
        return VersionIndex(key["name"], key["mac"], key["generation"], tags)

    def read_version(self, key: Row, index: VersionIndex, number: int) -> Row:
        """Return one version's row; ``number`` is 1 to the key's last number.

        Raises:
            StoreTampered: It was altered, moved, removed or put back from the past.
        """
        rows = self.read_versions(key, index, [number])
        if not rows:
            raise StoreTampered(f"version {number} of key {key['name']}")
        return rows[0]

    def read_versions(self, key: Row, index: VersionIndex, numbers: Iterable[int]) -> list[Row]:
        """Return the rows of those ``numbers`` (a few hundred at most) that exist, in order.

        Raises:
            StoreTampered: As for :meth:`read_version`.
        """
        statement = (
            select(key_versions)
            .where(key_versions.c.key_name == key["name"], key_versions.c.number.in_(list(numbers)))
            .order_by(key_versions.c.number)
        )
        rows = [row._asdict() for row in self.connection.execute(statement)]
        return self._check(key, index, rows)

    def read_page(self, key: Row, index: VersionIndex, *, before: int, limit: int) -> list[Row]:
        """Return at most ``limit`` rows with numbers below ``before``, newest first.

        Raises:
            StoreTampered: As for :meth:`read_version`.
        """
        statement = (
            select(key_versions)
            .where(key_versions.c.key_name == key["name"], key_versions.c.number < before)
            .order_by(key_versions.c.number.desc())
            .limit(limit)
        )
        rows = [row._asdict() for row in self.connection.execute(statement)]
        expected = range(before - 1, max(before - 1 - limit, 0), -1)
        if [row["number"] for row in rows] != list(expected):
            raise StoreTampered(f"set of versions of key {key['name']}")
        return self._check(key, index, rows)

    def list_scheduled(self, key: Row, index: VersionIndex) -> list[Row]:
        """Return the rows of the versions whose destruction is scheduled, in order.

        Raises:
            StoreTampered: As for :meth:`read_version`.
        """
        statement = (
            select(key_versions)
            .where(key_versions.c.key_name == key["name"], key_versions.c.destroy_due.is_not(None))
            .order_by(key_versions.c.number)
        )
        rows = [row._asdict() for row in self.connection.execute(statement)]
        if len(rows) != (key["scheduled_count"] or 0):
            raise StoreTampered(f"set of scheduled destructions of key {key['name']}")
        return self._check(key, index, rows)

    def read_time(self) -> Row | None:
        """Return the row of the observed time; None where none was written yet.

        Raises:
            StoreTampered: It was altered.
        """
        found = self.connection.execute(select(store_time)).one_or_none()
        if found is None:
            return None
        row = found._asdict()
        self.authenticator.verify(store_time.name, row, "observed time")
        return row

    def _found(self) -> Trusted:
        if self._trusted is None:
            raise RuntimeError("read_meta comes first")
        return self._trusted

    def _check(self, key: Row, index: VersionIndex, rows: Sequence[Row]) -> list[Row]:
        for row in rows:
            number = row["number"]
            place = f"version {number!a} of key {key['name']}"
            self.authenticator.verify(key_versions.name, row, place)
            tag = self.authenticator.compute_term(row["mac"]) & _TAG_MASK
            if not 1 <= number <= len(index.tags) or index.tags[number - 1] != tag:
                raise StoreTampered(place)
        return list(rows)


def read_meta_unverified(connection: Connection) -> Row:
    """Return the store's own row without checking it: its ids say how it must be checked.

    Raises:
        StoreTampered: There is not exactly one.
    """
    rows = connection.execute(select(store_meta)).all()
    if len(rows) != 1:
        raise StoreTampered("own row")
    return rows[0]._asdict()
