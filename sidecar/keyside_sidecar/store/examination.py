"""Going through every row of a store: for a backup, before and after a restore or a new root key.

What a sidecar checks when it reads a row, and more: that all rows together make one sound store. In
a fixed order and in pages, so that memory does not grow with the number of versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select, tuple_

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.access_reader import ENDED_SET, OPEN_SET
from keyside_sidecar.store.access_rows import decode_request, name_request
from keyside_sidecar.store.records import VersionState
from keyside_sidecar.store.tables import (
    access_requests,
    access_uses,
    key_versions,
    keys,
    store_meta,
    store_time,
    version_usage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Table

    from keyside_sidecar.store.authentication import Authenticator
    from keyside_sidecar.store.records import OpenedVersion
    from keyside_sidecar.store.trust import Trust, Trusted

    Row = Mapping[str, Any]

# What a store consists of, in an order in which each row can be checked, and written. The register
# of sidecars is not among them: it says who runs, not what is kept.
TABLES: Final = (
    store_meta,
    store_time,
    keys,
    key_versions,
    version_usage,
    access_uses,
    access_requests,
)
PAGE: Final = 500
_VERSION_ID_LENGTH: Final = 16


def read_table(connection: Connection, table: Table) -> Iterator[Row]:
    """Yield the rows of a table by primary key, unchecked; check each before asking for the next.

    Rows may be changed meanwhile, but for their primary keys.
    """
    place = tuple_(*table.primary_key)
    statement = select(table).order_by(*table.primary_key).limit(PAGE)
    page = connection.execute(statement).all()
    while page:
        yield from (row._asdict() for row in page)
        if len(page) < PAGE:
            return
        last = tuple(getattr(page[-1], column.name) for column in table.primary_key)
        page = connection.execute(statement.where(place > last)).all()


def read_rows(connection: Connection) -> Iterator[tuple[Table, Row]]:
    """Yield every row of ``TABLES``, in the order that :class:`Examination` expects."""
    for table in TABLES:
        for row in read_table(connection, table):
            yield table, row


@dataclass(frozen=True, slots=True)
class Contents:
    """What was gone through.

    Args:
        meta: The store's own row.
        keys: How many keys there are.
        versions: How many versions, in any state.
        destroyed: How many of them are destroyed.
        scheduled: Key and number of those whose destruction is scheduled.
        access_open: How many requests for access, grants among them, have not ended.
        access_ended: How many have.
    """

    meta: Row
    keys: int
    versions: int
    destroyed: int
    scheduled: tuple[str, ...] = ()
    access_open: int = 0
    access_ended: int = 0


class _Key:
    """One key, and what was seen of its versions so far."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.count = 0
        self.total = 0
        self.last_used = 0


class _Access:
    """What was seen of requests for access, and of uses whose request is still to come."""

    def __init__(self) -> None:
        self.open = 0
        self.total = 0
        self.ended: set[int] = set()
        self.uses: dict[str, tuple[int, int]] = {}


class Examination:
    """Checks the rows of one store as they come, one by one and then all together.

    Args:
        trust: Finds the root key.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._trusted: Trusted | None = None
        self._meta: Row | None = None
        self._observed_us: int | None = None
        self._scheduled: list[str] = []
        self._stage = 0
        self._keys: dict[str, _Key] = {}
        self._keys_total = 0
        self._destroyed = 0
        self._access = _Access()

    @property
    def trusted(self) -> Trusted:
        """What belongs to the root key of the store; known once its own row was taken."""
        if self._trusted is None:
            raise StoreTampered("own row")
        return self._trusted

    def take(self, table: Table, row: Row) -> OpenedVersion | None:
        """Check the next row; return what it holds if it is a version.

        Args:
            table: One of ``TABLES``, none before an earlier one.
            row: All of its columns.

        Raises:
            StoreTampered: It doesn't fit.
            CustodyError: The root key isn't there, or the version does not unwrap.
        """
        stage = TABLES.index(table)
        while self._stage < stage:
            self._end_stage()
        if self._stage > stage:
            raise StoreTampered("order of rows")
        if table is store_meta:
            self._take_meta(row)
        elif table is store_time:
            self._verify(table, row, "observed time")
            if self._observed_us is not None:
                raise StoreTampered("observed time")
            self._observed_us = row["observed"]
        elif table is keys:
            self._take_key(row)
        elif table is key_versions:
            return self._take_version(row)
        elif table is version_usage:
            self._take_usage(row)
        elif table is access_uses:
            self._take_use(row)
        else:
            self._take_request(row)
        return None

    def finish(self) -> Contents:
        """Check that the rows taken are all that there are.

        Raises:
            StoreTampered: Some were removed, added, or put back from the past.
        """
        while self._stage < len(TABLES):
            self._end_stage()
        if self._meta is None:
            raise StoreTampered("own row")
        counts = [key.count for key in self._keys.values()]
        return Contents(
            self._meta,
            len(counts),
            sum(counts),
            self._destroyed,
            tuple(self._scheduled),
            self._access.open,
            len(self._access.ended),
        )

    def _end_stage(self) -> None:
        table = TABLES[self._stage]
        self._stage += 1
        authenticator = self.trusted.authenticator
        floor_us = (self._meta or {}).get("observed_floor") or 0
        if table is store_time and (self._observed_us or 0) < floor_us:
            raise StoreTampered("observed time, which has gone back,")
        if table is keys and (
            self._meta is None
            or not authenticator.fits(self._meta["keys_digest"], self._keys_total)
        ):
            raise StoreTampered("set of keys")
        if table is key_versions:
            for name, key in self._keys.items():
                if key.count != key.row["last_number"] or not authenticator.fits(
                    key.row["versions_digest"], key.total
                ):
                    raise StoreTampered(f"set of versions of key {name}")
        if table is access_requests:
            self._end_access(authenticator)

    def _end_access(self, authenticator: Authenticator) -> None:
        meta, access = self._meta or {}, self._access
        digest = meta.get("access_digest")
        fits = access.open == 0 if digest is None else authenticator.fits(digest, access.total)
        if not fits:
            raise StoreTampered(OPEN_SET)
        # Each is one of 1 to this many, and no two are the same.
        if len(access.ended) != self._count_ended():
            raise StoreTampered(ENDED_SET)
        for access_id in access.uses:
            raise StoreTampered(f"set of uses of {access_id!a}")

    def _verify(self, table: Table, row: Row, place: str) -> None:
        self.trusted.authenticator.verify(table.name, row, place)

    def _take_meta(self, row: Row) -> None:
        if self._meta is not None:
            raise StoreTampered("own row")
        self._trusted = self._trust.use(row["root_key_id"])
        self._verify(store_meta, row, "own row")
        self._meta = row

    def _take_key(self, row: Row) -> None:
        place = f"row of key {row['name']!a}"
        self._verify(keys, row, place)
        last, pending = row["last_number"], row["pending_number"]
        sound = (
            1 <= row["current_number"] <= last
            and (pending is None or 1 <= pending <= last)
            and row["name"] not in self._keys
            and self._is_of_this_age(row)
        )
        if not sound:
            raise StoreTampered(place)
        self._keys[row["name"]] = _Key(row)
        self._keys_total += self.trusted.authenticator.compute_term(row["mac"])

    def _take_version(self, row: Row) -> OpenedVersion:
        place = f"version {row['number']!a} of key {row['key_name']!a}"
        self._verify(key_versions, row, place)
        key = self._keys.get(row["key_name"])
        if key is None or row["number"] != key.count + 1 or not self._is_of_this_age(row):
            raise StoreTampered(place)
        state, number, wrapped = row["state"], row["number"], row["wrapped"]
        under = None if wrapped is None else self.trusted.custodian.key_id
        sound = (
            (state == VersionState.CURRENT) == (number == key.row["current_number"])
            and (state == VersionState.PENDING) == (number == key.row["pending_number"])
            and (state == VersionState.DESTROYED) == (wrapped is None)
            and row["root_key_id"] == under
            and len(row["version_id"]) == _VERSION_ID_LENGTH
        )
        if not sound:
            raise StoreTampered(place)
        key.count += 1
        key.total += self.trusted.authenticator.compute_term(row["mac"])
        self._destroyed += wrapped is None
        if row["destroy_due"] is not None:
            self._scheduled.append(f"{row['key_name']} {number}")
        try:
            return self.trusted.wrapping.open_version(row)
        except ValueError:  # a state or a name that no version has
            raise StoreTampered(place) from None

    def _take_usage(self, row: Row) -> None:
        place = f"usage of version {row['number']!a} of key {row['key_name']!a}"
        self._verify(version_usage, row, place)
        key = self._keys.get(row["key_name"])
        if key is None or not key.last_used < row["number"] <= key.count:
            raise StoreTampered(place)
        key.last_used = row["number"]

    def _take_use(self, row: Row) -> None:
        access_id = row["request_id"]
        self._verify(access_uses, row, f"use {row['number']!a} of {access_id!a}")
        count, total = self._access.uses.get(access_id, (0, 0))
        if row["number"] != count + 1:
            raise StoreTampered(f"set of uses of {access_id!a}")
        term = self.trusted.authenticator.compute_term(row["mac"])
        self._access.uses[access_id] = count + 1, total + term

    def _take_request(self, row: Row) -> None:
        place = name_request(row["id"])
        self._verify(access_requests, row, place)
        decode_request(row)
        authenticator, number = self.trusted.authenticator, row["ended_number"]
        count, total = self._access.uses.pop(row["id"], (0, 0))
        digest = row["uses_digest"]
        fits = count == 0 if digest is None else authenticator.fits(digest, total)
        if count != row["used"] or not fits:
            raise StoreTampered(f"set of uses of {row['id']}")
        if not self._is_of_this_age(row) or (row["state"] == "ENDED") != (number is not None):
            raise StoreTampered(place)
        if number is None:
            self._access.open += 1
            self._access.total += authenticator.compute_term(row["mac"])
        elif 1 <= number <= self._count_ended() and number not in self._access.ended:
            self._access.ended.add(number)
        else:
            raise StoreTampered(place)

    def _count_ended(self) -> int:
        return (self._meta or {}).get("access_ended") or 0

    def _is_of_this_age(self, row: Row) -> bool:
        return self._meta is not None and row["generation"] <= self._meta["generation"]
