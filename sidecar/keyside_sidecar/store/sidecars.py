"""Which processes serve from this store, and what each has taken in.

So that a change can be waited for until all have it. A process registers before it reads any key,
writes down each generation that it has taken in, shows now and then that it is alive, and
withdraws at its end. One that was killed is marked as ended by any other on its host, which can see
that it is gone. One that has been silent for longer is named, not waited for: it is gone, or it is
cut off from the store and serves from memory (I12). After a week of silence it is forgotten.

Rows are marked as ended before they are removed: a row that vanishes without that was removed by
somebody else, and who has seen it goes on naming it (keys/presence.py). A row that does not
authenticate is counted and otherwise passed over: it must keep nobody from registering.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, insert, select, update

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.records import SidecarInfo, from_microseconds
from keyside_sidecar.store.tables import sidecars

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Connection

    from keyside_sidecar.store.authentication import Authenticator
    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session

# Who has not been heard of for so long is named, and not waited for: it writes every five seconds.
SILENT_AFTER: Final = timedelta(seconds=15)
# What stands for a row that does not authenticate, where processes are named.
UNKNOWN_HOST: Final = "(unknown: altered in the store)"
_ID_LENGTH: Final = 16
_FORGET_AFTER_US: Final = 7 * 24 * 3600 * 1_000_000
_REMOVE_AFTER_US: Final = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class ProcessName:
    """What tells one process from all others on all hosts.

    Args:
        host: The host's name, for people.
        boot: Tells this boot and this process namespace from all others.
        pid: Its process id there.
        start_ticks: When it started, in clock ticks since boot.
    """

    host: str
    boot: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Roll:
    """The register at some moment.

    Args:
        now: By the store's clock.
        sidecars: Those that are registered, the ended ones of the last hour too.
        strange: How many rows do not authenticate.
    """

    now: datetime
    sidecars: tuple[SidecarInfo, ...]
    strange: int

    @property
    def live(self) -> tuple[SidecarInfo, ...]:
        """Those that have not ended."""
        return tuple(sidecar for sidecar in self.sidecars if sidecar.ended_at is None)


class SidecarRegister:
    """The processes that serve from one store.

    Args:
        session: The store's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def enter(
        self,
        sidecar_id: bytes,
        process: ProcessName,
        generation_seen: int,
        root_key_ids: tuple[str, ...],
        is_running: Callable[[ProcessName], bool],
    ) -> Roll:
        """Register a process, or write down that it is alive and what it has taken in.

        Those that are gone are marked on the way: of this boot, whom ``is_running`` denies.

        Returns:
            Every process that is registered then.

        Raises:
            StoreUnavailable: The store is away.
        """
        with self._session.recording(sidecars) as reader:
            now_us = self._session.database.read_time_us(reader.connection)
            rows, strange = read_register(reader.connection, reader.authenticator)
            known = None
            others = []
            for row in rows:
                if row["sidecar_id"] == sidecar_id:
                    known = row
                elif _is_over(row, now_us):
                    same = sidecars.c.sidecar_id == row["sidecar_id"]
                    reader.connection.execute(delete(sidecars).where(same))
                else:
                    if row["ended_at"] is None and _is_gone(row, process, is_running):
                        row["ended_at"] = now_us
                        _write(reader, row)
                    others.append(_describe(row))
            new = {
                "sidecar_id": sidecar_id,
                "host": process.host,
                "boot": process.boot,
                "pid": process.pid,
                "start_ticks": process.start_ticks,
                "registered_at": known["registered_at"] if known else now_us,
                "seen_at": now_us,
                "generation_seen": generation_seen,
                "root_key_ids": " ".join(root_key_ids),
                "ended_at": None,
            }
            if _write(reader, new) == 0:
                reader.connection.execute(insert(sidecars).values(**new))
        return Roll(from_microseconds(now_us), (_describe(new), *others), strange)

    def withdraw(self, sidecar_id: bytes) -> None:
        """Mark a process as ended.

        Raises:
            StoreUnavailable: The store is away.
        """
        with self._session.recording(sidecars) as reader:
            now_us = self._session.database.read_time_us(reader.connection)
            for row in read_register(reader.connection, reader.authenticator)[0]:
                if row["sidecar_id"] == sidecar_id:
                    row["ended_at"] = now_us
                    _write(reader, row)

    def list_all(self) -> Roll:
        """Return every registered process.

        Raises:
            StoreUnavailable: The store is away.
        """
        with self._session.reading() as (reader, _):
            now_us = self._session.database.read_time_us(reader.connection)
            rows, strange = read_register(reader.connection, reader.authenticator)
            return Roll(from_microseconds(now_us), tuple(map(_describe, rows)), strange)

    def require_sound(self) -> None:
        """Check every row.

        Raises:
            StoreTampered: One does not authenticate.
            StoreUnavailable: The store is away.
        """
        if self.list_all().strange:
            raise StoreTampered("register of sidecars")


def make_sidecar_id() -> bytes:
    """Return 16 random bytes for a process to register under."""
    return os.urandom(_ID_LENGTH)


def read_register(
    connection: Connection, authenticator: Authenticator
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows that authenticate, and how many do not."""
    rows, strange = [], 0
    for found in connection.execute(select(sidecars)):
        row = found._asdict()
        try:
            authenticator.verify(sidecars.name, row, "register of sidecars")
        except StoreTampered:
            strange += 1
        else:
            rows.append(row)
    return rows, strange


def _write(reader: Reader, row: dict[str, Any]) -> int:
    row["mac"] = reader.authenticator.compute_mac(sidecars.name, row)
    same = sidecars.c.sidecar_id == row["sidecar_id"]
    return reader.connection.execute(update(sidecars).where(same).values(**row)).rowcount


def _is_gone(
    row: dict[str, Any], self_name: ProcessName, is_running: Callable[[ProcessName], bool]
) -> bool:
    name = ProcessName(row["host"], row["boot"], row["pid"], row["start_ticks"])
    same_place = (name.host, name.boot) == (self_name.host, self_name.boot)
    return same_place and not is_running(name)


def _is_over(row: dict[str, Any], now_us: int) -> bool:
    """Return whether a row need not be kept: it says that its process ended, or is far too old."""
    if row["ended_at"] is not None:
        return bool(now_us - row["ended_at"] > _REMOVE_AFTER_US)
    return bool(now_us - row["seen_at"] > _FORGET_AFTER_US)


def _describe(row: dict[str, Any]) -> SidecarInfo:
    return SidecarInfo(
        sidecar_id=row["sidecar_id"],
        host=row["host"],
        pid=row["pid"],
        registered_at=from_microseconds(row["registered_at"]),
        seen_at=from_microseconds(row["seen_at"]),
        generation_seen=row["generation_seen"],
        root_key_ids=tuple(row["root_key_ids"].split()),
        ended_at=None if row["ended_at"] is None else from_microseconds(row["ended_at"]),
    )
