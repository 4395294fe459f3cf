"""Transactions on one store, each begun with everything that must be checked first."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from keyside_sidecar.clock import BootClock, HostBootClock
from keyside_sidecar.errors import StoreTampered
from keyside_sidecar.store import schema
from keyside_sidecar.store.change import Draft
from keyside_sidecar.store.reader import Reader
from keyside_sidecar.store.tables import store_meta
from keyside_sidecar.store.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table

    from keyside_sidecar.store.database import Database
    from keyside_sidecar.store.snapshot import Memory, Snapshot
    from keyside_sidecar.store.trust import Trust


class Session:
    """What one process needs to read and change one store.

    Args:
        database: Its connections.
        trust: Its root key.
        memory: What this process has checked already.
    """

    def __init__(self, database: Database, trust: Trust, memory: Memory) -> None:
        self.database = database
        self.trust = trust
        self.memory = memory
        self.witness = Witness()
        self.boot_clock: BootClock = HostBootClock()

    @contextmanager
    def reading(self) -> Iterator[tuple[Reader, Snapshot]]:
        """Read one consistent, checked state of the store.

        Raises:
            StoreUnavailable: It is away.
            StoreTampered: It does not fit, or has gone back.
            StoreSchemaError: A newer program has migrated it meanwhile.
        """
        mark, since = self.memory.mark(), self.witness.begin()
        with self.database.transaction() as connection:
            reader = Reader(connection, self.trust, mark, since)
            try:
                yield reader, self.memory.load_snapshot(reader)
            except StoreTampered:
                # A newer program's rows don't fit either: that is no tampering.
                schema.require_head(connection)
                raise

    @contextmanager
    def changing(self) -> Iterator[Draft]:
        """Change keys, versions or requests for access; other processes are told at once.

        Raises:
            StoreError: As for :meth:`reading`; nothing was changed.
        """
        mark, since = self.memory.mark(), self.witness.begin()
        with self.database.transaction(lock=store_meta) as connection:
            # Migrated since this process started? Its rows would lack the new columns.
            schema.require_head(connection)
            reader = Reader(connection, self.trust, mark, since)
            draft = Draft(reader, self.memory.load_snapshot(reader), self.witness)
            yield draft
            if draft.after is not None:
                self.database.announce(connection)
        if draft.after is not None:
            self.memory.remember(draft.reader, draft.after, draft.checked)

    @contextmanager
    def recording(self, table: Table) -> Iterator[Reader]:
        """Write to a table that lies outside the store's generation, alone among its writers.

        Raises:
            StoreError: As for :meth:`reading`; nothing was changed.
        """
        mark, since = self.memory.mark(), self.witness.begin()
        with self.database.transaction(lock=table) as connection:
            schema.require_head(connection)
            reader = Reader(connection, self.trust, mark, since)
            reader.read_meta()
            yield reader
