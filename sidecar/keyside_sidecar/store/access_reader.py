"""Reading requests for access, believed only where their authentication fits.

Requests that have not ended are a set that the store's own row holds a digest of, as it does of the
keys: no older copy of one fits, and none can be left out. Requests that have ended never change
again. Each carries its place in the order of ending, 1, 2, 3 …, and the store's own row says how
many there are: so none can be left out there either, and however many there are, reading the open
ones costs the same. The uses of a grant are numbered likewise, and the row of the request holds
their number and their digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, tuple_

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.access_rows import name_request
from keyside_sidecar.store.tables import access_requests, access_uses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement

    from keyside_sidecar.store.reader import Reader

    Row = Mapping[str, Any]

OPEN_SET = "set of open requests for access"
ENDED_SET = "set of ended requests for access"


@dataclass(frozen=True, slots=True)
class AccessPlace:
    """How far a check of all rows has come.

    Args:
        ended: The last ended request that was checked; None once all were.
        use: The last use that was checked, by request and number.
    """

    ended: int | None = 0
    use: tuple[str, int] = ("", 0)


def read_open(reader: Reader, meta: Row) -> dict[str, Row]:
    """Return every row that has not ended, by id, oldest first.

    Raises:
        StoreTampered: One was altered, removed, added or put back from the past.
    """
    statement = (
        select(access_requests)
        .where(access_requests.c.ended_number.is_(None))
        .order_by(access_requests.c.created_at, access_requests.c.id)
    )
    rows = [row._asdict() for row in reader.connection.execute(statement)]
    term = reader.authenticator.compute_term
    terms = {}
    for row in rows:
        reader.authenticator.verify(access_requests.name, row, name_request(row["id"]))
        terms[row["id"]] = term(row["mac"])
    digest, total = meta["access_digest"], sum(terms.values())
    if digest is None:
        if rows:
            raise StoreTampered(name_request(rows[0]["id"]))
    elif not reader.authenticator.fits(digest, total):
        for access_id, one in terms.items():
            if reader.authenticator.fits(digest, total - one):  # it alone is too many
                raise StoreTampered(name_request(access_id))
        raise StoreTampered(OPEN_SET)
    return {row["id"]: row for row in rows}


def read_ended(reader: Reader, meta: Row, which: ColumnElement[bool]) -> Row | None:
    """Return the one row of those that have ended which fulfils a condition; None for none.

    Raises:
        StoreTampered: It was altered.
    """
    statement = select(access_requests).where(access_requests.c.ended_number.is_not(None), which)
    found = reader.connection.execute(statement).first()
    if found is None:
        return None
    row = found._asdict()
    _check_ended(reader, meta, row)
    return row


def read_ended_page(reader: Reader, meta: Row, *, before: int | None, limit: int) -> list[Row]:
    """Return at most ``limit`` rows that have ended, newest first.

    Args:
        reader: In a transaction.
        meta: The store's own row, checked.
        before: Only those with smaller numbers; None begins with the newest.
        limit: At most so many.

    Raises:
        StoreTampered: One was altered, removed or added.
    """
    end = (meta["access_ended"] or 0) + 1
    before = end if before is None else min(before, end)
    number = access_requests.c.ended_number
    statement = select(access_requests).where(number < before).order_by(number.desc()).limit(limit)
    rows: list[Row] = [row._asdict() for row in reader.connection.execute(statement)]
    expected = range(before - 1, max(before - 1 - limit, 0), -1)
    if [row["ended_number"] for row in rows] != list(expected):
        raise StoreTampered(ENDED_SET)
    for row in rows:
        _check_ended(reader, meta, row)
    return rows


def read_uses(reader: Reader, request: Row, *, after: int, limit: int) -> list[Row]:
    """Return at most ``limit`` uses of a grant from ``after`` + 1 on.

    Raises:
        StoreTampered: One was altered, removed or added.
    """
    statement = (
        select(access_uses)
        .where(access_uses.c.request_id == request["id"], access_uses.c.number > after)
        .order_by(access_uses.c.number)
        .limit(limit)
    )
    rows: list[Row] = [row._asdict() for row in reader.connection.execute(statement)]
    last = min(after + limit, request["used"])
    if [row["number"] for row in rows] != list(range(after + 1, last + 1)):
        raise StoreTampered(f"set of uses of {request['id']}")
    for row in rows:
        verify_use(reader, row)
    return rows


def check_use_set(reader: Reader, request: Row) -> None:
    """Check that the uses of a grant are the ones that it had when it was last written.

    Reads the MAC of each row and nothing else; a row's columns are checked when it is read.

    Raises:
        StoreTampered: One was removed, added or exchanged.
    """
    statement = select(access_uses.c.mac).where(access_uses.c.request_id == request["id"])
    place = f"set of uses of {request['id']}"
    count = total = 0
    for mac in reader.connection.execute(statement).scalars():
        if not isinstance(mac, bytes):
            raise StoreTampered(place)
        count += 1
        total += reader.authenticator.compute_term(mac)
    digest = request["uses_digest"]
    fits = total == 0 if digest is None else reader.authenticator.fits(digest, total)
    if count != request["used"] or not fits:
        raise StoreTampered(place)


def verify_use(reader: Reader, row: Row) -> None:
    """Check the row of one use.

    Raises:
        StoreTampered: It was altered or moved.
    """
    place = f"use {row['number']!a} of {row['request_id']!a}"
    reader.authenticator.verify(access_uses.name, row, place)


def verify_page(
    reader: Reader, meta: Row, place: AccessPlace | None, limit: int
) -> AccessPlace | None:
    """Check the open requests, then at most ``limit`` ended ones, then at most so many uses.

    Args:
        reader: In a transaction.
        meta: The store's own row, checked.
        place: What the last call returned; None to begin.
        limit: So many rows at once.

    Returns:
        Where to go on; None when all were checked.

    Raises:
        StoreTampered: Something does not fit.
    """
    if place is None:
        for row in read_open(reader, meta).values():
            check_use_set(reader, row)
        return AccessPlace()
    if place.ended is not None:
        return _verify_ended(reader, meta, place.ended, limit)
    return _verify_uses(reader, place.use, limit)


def _verify_ended(reader: Reader, meta: Row, after: int, limit: int) -> AccessPlace:
    last = min(after + limit, meta["access_ended"] or 0)
    for row in read_ended_page(reader, meta, before=last + 1, limit=last - after):
        check_use_set(reader, row)
    return AccessPlace(None if last == (meta["access_ended"] or 0) else last)


def _verify_uses(reader: Reader, after: tuple[str, int], limit: int) -> AccessPlace | None:
    columns = access_uses.c.request_id, access_uses.c.number
    statement = select(access_uses).where(tuple_(*columns) > after).order_by(*columns).limit(limit)
    rows = [row._asdict() for row in reader.connection.execute(statement)]
    used = _read_used(reader, sorted({row["request_id"] for row in rows}))
    for row in rows:
        verify_use(reader, row)
        known, number = after
        expected = number + 1 if row["request_id"] == known else 1
        if row["number"] != expected or expected > used.get(row["request_id"], 0):
            raise StoreTampered(f"set of uses of {row['request_id']!a}")
        after = row["request_id"], row["number"]
    return AccessPlace(None, after) if len(rows) == limit else None


def _read_used(reader: Reader, ids: Sequence[str]) -> dict[str, int]:
    statement = select(access_requests.c.id, access_requests.c.used).where(
        access_requests.c.id.in_(ids)
    )
    return {row.id: row.used for row in reader.connection.execute(statement)}


def _check_ended(reader: Reader, meta: Row, row: Row) -> None:
    place = name_request(row["id"])
    reader.authenticator.verify(access_requests.name, row, place)
    if (
        not 1 <= row["ended_number"] <= (meta["access_ended"] or 0)
        or row["generation"] > meta["generation"]
    ):
        raise StoreTampered(place)
