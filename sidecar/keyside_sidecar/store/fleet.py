"""Who uses a store just now, seen from outside: for a command that must not leave anyone behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyside_sidecar.store.records import from_microseconds
from keyside_sidecar.store.sidecars import (
    SILENT_AFTER,
    UNKNOWN_HOST,
    ProcessName,
    read_register,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session

    Row = Mapping[str, Any]


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
        rows, strange = read_register(reader.connection, reader.authenticator)
        found = [_describe(row, now_us) for row in rows if not self._is_gone(row)]
        # Who was altered by somebody is named, and keeps nothing from being done.
        return [*found, *[_describe_strange(now_us)] * strange]

    def _is_gone(self, row: Row) -> bool:
        if row["ended_at"] is not None:
            return True
        name = ProcessName(row["host"], row["boot"], row["pid"], row["start_ticks"])
        return name.boot == self._boot and not self._is_running(name)


def _describe_strange(now_us: int) -> Member:
    now = from_microseconds(now_us)
    return Member(
        bytes(16), UNKNOWN_HOST, 0, now, is_silent=True, generation_seen=0, root_key_ids=()
    )


def _describe(row: Row, now_us: int) -> Member:
    seen_at = from_microseconds(row["seen_at"])
    return Member(
        sidecar_id=row["sidecar_id"],
        host=row["host"],
        pid=row["pid"],
        seen_at=seen_at,
        is_silent=from_microseconds(now_us) - seen_at > SILENT_AFTER,
        generation_seen=row["generation_seen"],
        root_key_ids=tuple(row["root_key_ids"].split()),
    )
