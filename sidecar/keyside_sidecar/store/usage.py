"""How much each version was used: reserved before it is used, so that no use is forgotten.

A process reserves messages and bytes for itself, in blocks, and returns at its end what it did not
use. What a process that was killed had reserved counts as used: the count may be too high, never
too low. Returned amounts have columns of their own, so that every number in a row only grows, and
an older copy of a row that somebody puts back shows in every process that has seen a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert, select, update

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.records import VersionUsage, from_microseconds, to_microseconds
from keyside_sidecar.store.tables import version_usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from keyside.names import KeyName
    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session

    Place = tuple[str, int]

_AMOUNTS: Final = ("reserved_messages", "returned_messages", "reserved_bytes", "returned_bytes")
_GROWING: Final = (*_AMOUNTS, "last_sealed_at", "last_opened_at")
_NUMBERS_AT_ONCE: Final = 256
_MOST: Final = (1 << 62) - 1


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """What a process tells about one version.

    Args:
        key_name: The version's key.
        number: The version.
        messages: So many more are reserved; below 0, so many are returned.
        plaintext_bytes: The same, of plaintext.
        sealed_at: Last sealed under; None for not since it was last told.
        opened_at: The same for opening.
    """

    key_name: KeyName
    number: int
    messages: int = 0
    plaintext_bytes: int = 0
    sealed_at: datetime | None = None
    opened_at: datetime | None = None


class UsageBook:
    """The usage of one store's versions.

    Args:
        session: The store's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(self, entries: Iterable[UsageEntry]) -> dict[Place, VersionUsage]:
        """Write entries down, durably, all or none; return what is written then, by key and number.

        Raises:
            StoreTampered: A row was altered, or has gone back; nothing was written.
            StoreUnavailable: The store is away; nothing was written.
        """
        written: dict[Place, dict[str, Any]] = {}
        with self._session.recording(version_usage) as reader:
            for entry in entries:
                place = (str(entry.key_name), int(entry.number))
                old = written.get(place) or self._read(reader, place)
                written[place] = _write(reader, place, old, entry)
        for place, row in written.items():
            self._notice(reader, place, row)
        return {place: describe_usage(row) for place, row in written.items()}

    def read(self, name: KeyName, numbers: Collection[int]) -> dict[int, VersionUsage]:
        """Return the usage of those versions of a key that were used at all, by number.

        Raises:
            StoreTampered: A row was altered, or has gone back.
            StoreUnavailable: The store is away.
        """
        with self._session.reading() as (reader, _):
            return self.read_within(reader, name, numbers)

    def read_within(
        self, reader: Reader, name: str, numbers: Collection[int]
    ) -> dict[int, VersionUsage]:
        """Do what :meth:`read` does, in the transaction that ``reader`` is in."""
        wanted = sorted(numbers)
        found: dict[int, VersionUsage] = {}
        for start in range(0, len(wanted), _NUMBERS_AT_ONCE):
            statement = select(version_usage).where(
                version_usage.c.key_name == name,
                version_usage.c.number.in_(wanted[start : start + _NUMBERS_AT_ONCE]),
            )
            for result in reader.connection.execute(statement):
                row = result._asdict()
                place = (name, row["number"])
                self._check(reader, place, row)
                found[row["number"]] = describe_usage(row)
        for number in wanted:
            if number not in found and self._session.witness.has_seen((name, number), reader.since):
                raise StoreTampered(_name((name, number)))
        return found

    def _read(self, reader: Reader, place: Place) -> dict[str, Any] | None:
        statement = select(version_usage).where(
            version_usage.c.key_name == place[0], version_usage.c.number == place[1]
        )
        result = reader.connection.execute(statement).one_or_none()
        if result is None:
            if self._session.witness.has_seen(place, reader.since):
                raise StoreTampered(_name(place))
            return None
        row = result._asdict()
        self._check(reader, place, row)
        return row

    def _check(self, reader: Reader, place: Place, row: dict[str, Any]) -> None:
        reader.authenticator.verify(version_usage.name, row, _name(place))
        self._notice(reader, place, row)

    def _notice(self, reader: Reader, place: Place, row: Mapping[str, Any]) -> None:
        amounts = tuple(row[column] or 0 for column in _GROWING)
        self._session.witness.notice(place, amounts, reader.since, _name(place))


def describe_usage(row: Mapping[str, Any]) -> VersionUsage:
    """Return what a checked row says."""
    return VersionUsage(
        messages=max(0, row["reserved_messages"] - row["returned_messages"]),
        plaintext_bytes=max(0, row["reserved_bytes"] - row["returned_bytes"]),
        last_sealed_at=_moment(row["last_sealed_at"]),
        last_opened_at=_moment(row["last_opened_at"]),
    )


def _write(
    reader: Reader, place: Place, old: Mapping[str, Any] | None, entry: UsageEntry
) -> dict[str, Any]:
    name, number = place
    row: dict[str, Any] = {"key_name": name, "number": number, **dict.fromkeys(_AMOUNTS, 0)}
    row |= {"last_sealed_at": None, "last_opened_at": None}
    row |= old or {}
    for what, amount in (("messages", entry.messages), ("bytes", entry.plaintext_bytes)):
        column = f"reserved_{what}" if amount >= 0 else f"returned_{what}"
        # A column holds 63 bits; a count that is there is above every limit.
        row[column] = min(row[column] + abs(amount), _MOST)
    for column, moment in (
        ("last_sealed_at", entry.sealed_at),
        ("last_opened_at", entry.opened_at),
    ):
        if moment is not None:
            row[column] = max(row[column] or 0, to_microseconds(moment))
    row["mac"] = reader.authenticator.compute_mac(version_usage.name, row)
    if old is None:
        reader.connection.execute(insert(version_usage).values(**row))
    else:
        reader.connection.execute(
            update(version_usage)
            .where(version_usage.c.key_name == name, version_usage.c.number == number)
            .values(**row)
        )
    return row


def _name(place: Place) -> str:
    return f"usage of version {place[1]} of key {place[0]}"


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_microseconds(value)
