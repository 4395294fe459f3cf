"""Who uses a store just now, seen from outside: for a command that must not leave anyone behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.examination import read_table
from keyside_sidecar.store.records import from_microseconds
from keyside_sidecar.store.sidecars import ProcessName
from keyside_sidecar.store.tables import sidecars

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session

    Row = Mapping[str, Any]

# A process writes every five seconds (keys/presence.py).
SILENT_AFTER_US: Final = 15_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A process of some sidecar that is registered, and not known to be gone.

    Args:
        sidecar_id: Its own.
        host: The host's name.
        pid: Its process id there.
        seen_at: When it last wrote, by the store's clock.
        is_silent: It has not written for so long that it is cut off, or gone.
        generation_seen: The generation of the store that it has taken in.
        root_key_ids: The root keys that it could use.
    """

    sidecar_id: bytes
    host: str
    pid: int
    seen_at: datetime
    is_silent: bool
    generation_seen: int
    root_key_ids: tuple[str, ...]


class Fleet:
    """The processes that use one store.

    Args:
        session: The store's.
        boot: Of this host, as processes register with it.
        is_running: Says whether a process of this boot is still there.
    """

    def __init__(
        self, session: Session, boot: str, is_running: Callable[[ProcessName], bool]
    ) -> None:
        self._session = session
        self._boot = boot
        self._is_running = is_running

    def list_members(self) -> list[Member]:
        """Return all of them; one that stands for each row that does not authenticate.

        Raises:
            StoreUnavailable: The store is away.
        """
        with self._session.reading() as (reader, _):
            return self.list_within(reader)

    def list_within(self, reader: Reader) -> list[Member]:
        """Do what :meth:`list_members` does, in the transaction that ``reader`` is in."""
        now_us = self._session.database.read_time_us(reader.connection)
        found = []
        for row in read_table(reader.connection, sidecars):
            try:
                reader.authenticator.verify(sidecars.name, row, "register of sidecars")
            except StoreTampered:
                # Somebody altered it. It is named, and keeps nothing from being done.
                found.append(_describe_strange(now_us))
                continue
            if not self._is_gone(row):
                found.append(_describe(row, now_us))
        return found

    def _is_gone(self, row: Row) -> bool:
        if row["ended_at"] is not None:
            return True
        name = ProcessName(row["host"], row["boot"], row["pid"], row["start_ticks"])
        return name.boot == self._boot and not self._is_running(name)


def _describe_strange(now_us: int) -> Member:
    unknown = "(unknown: altered in the store)"
    return Member(bytes(16), unknown, 0, from_microseconds(now_us), True, 0, ())


def _describe(row: Row, now_us: int) -> Member:
    return Member(
        sidecar_id=row["sidecar_id"],
        host=row["host"],
        pid=row["pid"],
        seen_at=from_microseconds(row["seen_at"]),
        is_silent=now_us - row["seen_at"] > SILENT_AFTER_US,
        generation_seen=row["generation_seen"],
        root_key_ids=tuple(row["root_key_ids"].split()),
    )
