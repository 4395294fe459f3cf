"""Observed time: how long this store has been served, by clocks that nobody can set.

A destruction must not come earlier because somebody put a clock forward, or because everything was
off for a week and nobody could have cancelled it. So its schedule counts *observed* time: a counter
in the store that the sidecars move on, by no more than what their own monotonic clocks saw go by.

Each process remembers when it first saw the counter as it stands. If it still stands so when the
process looks again, at least that much time has gone by since it was moved, and the process moves
it on by that; otherwise another one has, and it starts anew. The row is swapped by comparing its
MAC, so of two processes one moves it. The counter never gets ahead of time that really went by.

The row lies outside the store's generation. So that an older copy of it that somebody puts back is
not believed, every change to a key writes the observed time that it saw into the store's own row, a
floor, and what any transaction reads is at least the floor and what this process has seen before.
An older copy from above the floor can still make things come later. It could make a schedule that
is made meanwhile come earlier, once the newer row is back; therefore a destruction waits for the
wall clock as well (changing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import insert, update

from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store.tables import store_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session
    from keyside_sidecar.store.witness import Witness

    Row = Mapping[str, Any]

_PLACE = "observed time"


@dataclass(frozen=True, slots=True)
class Observation:
    """The counter as it was seen.

    Args:
        observed_us: Observed time, in microseconds.
        mac: Names this very state of the row; empty where there is no row yet.
    """

    observed_us: int
    mac: bytes


class ObservedTime:
    """Reads the counter of one store and moves it on.

    Args:
        session: The store's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self) -> Observation:
        """Return the counter.

        Raises:
            StoreTampered: It was altered, or has gone back.
            StoreUnavailable: The store is away.
        """
        with self._session.reading() as (reader, snapshot):
            return _describe(read_time(reader, snapshot.meta, self._session.witness))

    def advance(self, seen: Observation, by_us: int) -> Observation:
        """Move the counter on, if it is still as it was seen; return it as it is then.

        Args:
            seen: The counter, as :meth:`read` returned it.
            by_us: What has gone by since then, in microseconds.

        Raises:
            StoreTampered: It was altered, or has gone back.
            StoreUnavailable: The store is away.
        """
        with self._session.recording(store_time) as reader:
            row = read_time(reader, reader.read_meta(), self._session.witness)
            if seen.mac == _describe(row).mac:
                row = _write(reader, row, by_us)
        found = _describe(row)
        self._session.witness.notice(_PLACE, (found.observed_us,), reader.since, _PLACE)
        return found


def read_time(reader: Reader, meta: Mapping[str, Any], witness: Witness) -> Row | None:
    """Return the row of the observed time, in the transaction of ``reader``; None before the first.

    Args:
        reader: In a transaction.
        meta: The store's own row, checked.
        witness: What this process has seen.

    Raises:
        StoreTampered: It was altered, removed, or has gone back.
    """
    row = reader.read_time()
    found = _describe(row)
    if found.observed_us < (meta["observed_floor"] or 0):
        raise StoreTampered(f"{_PLACE}, which has gone back,")
    witness.notice(_PLACE, (found.observed_us,), reader.since, _PLACE)
    return row


def read_observed_us(reader: Reader, meta: Mapping[str, Any], witness: Witness) -> int:
    """Return the observed time in microseconds; as for :func:`read_time`."""
    return _describe(read_time(reader, meta, witness)).observed_us


def _describe(row: Row | None) -> Observation:
    return Observation(0, b"") if row is None else Observation(row["observed"], row["mac"])


def _write(reader: Reader, old: Mapping[str, Any] | None, by_us: int) -> Mapping[str, Any]:
    row: dict[str, Any] = {
        "id": 1,
        "observed": (old["observed"] if old else 0) + max(by_us, 0),
        "tick": (old["tick"] if old else 0) + 1,
    }
    row["mac"] = reader.authenticator.compute_mac(store_time.name, row)
    if old is None:
        reader.connection.execute(insert(store_time).values(**row))
    else:
        reader.connection.execute(update(store_time).values(**row))
    return row
