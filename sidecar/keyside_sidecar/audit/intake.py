"""What workers send, before it gets its place in the chain.

A worker runs as the same account and is trusted with what a record says, but not with the form of
the log: each body must be JSON in the one form that lines have, say nothing but listed names, and
bear the worker's own pid. At the first one that doesn't a record says so, and the worker is not
listened to any more.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from keyside.audit import MAX_BODY_BYTES, parse_object, require_fields
from keyside.errors import MalformedRecord
from keyside_sidecar.audit.generations import is_accepted, raise_generation, read_generation
from keyside_sidecar.audit.records import OWN_EVENTS, is_listed
from keyside_sidecar.audit.recovery import KEPT_IDS
from keyside_sidecar.audit.served import match_served
from keyside_sidecar.audit.writer import Batch
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.audit.generations import Generation
    from keyside_sidecar.audit.recovery import Identity
    from keyside_sidecar.audit.stamps import Stamps

_log = logging.getLogger(__name__)

_TOLD: Final = "access."


class Intake:
    """Checks records, and drops those that are in the log already.

    Args:
        stamps: For the record that stands in for a wrong one.
        recent_ids: The writers and ids of the last records in the log.
        generation: How far the store has come, as the log says.
    """

    def __init__(
        self, stamps: Stamps, recent_ids: Iterable[Identity], generation: Generation | None
    ) -> None:
        self._stamps = stamps
        self._order = deque(recent_ids, KEPT_IDS)
        self._known = set(self._order)
        self.generation = generation

    def take(self, lane: str, bodies: list[bytes], worker: int | None, source: object) -> Batch:
        """Return what is to be written.

        Args:
            lane: Which of the wire's lanes.
            bodies: As they came.
            worker: The pid that each must bear; None where any will do.
            source: Whom to tell afterwards.
        """
        batch = Batch(lane, [], len(bodies), source)
        before = self.generation
        for body in bodies:
            is_short = len(body) <= MAX_BODY_BYTES
            served = match_served(body) if is_short else None
            if served is not None and worker in {None, served[1]}:
                if self._is_new((worker, served[0])):
                    batch.bodies.append(body)
                continue
            fields = self._check(body, worker) if is_short else None
            if fields is None:
                facts = {"event": "audit.failed", "outcome": "failed", "reason": "AUDIT_BAD_RECORD"}
                event(_log, logging.ERROR, "a worker sent what is no record", worker=worker)
                batch.bodies.append(self._stamps.stamp({**facts, "worker": worker}))
                batch.is_bad = True
                break
            # A worker's own, so that none can have another one's records taken for known.
            if not self._is_new((worker, fields["id"])):
                continue
            if "details" in fields:
                self._take_generation(fields, batch)
            if fields["event"].startswith(_TOLD) and fields.get("phase") != "intent":
                batch.told.append(len(batch.bodies))
            batch.bodies.append(body)
        if self.generation != before:
            batch.generation = self.generation
        return batch

    def _take_generation(self, fields: dict[str, Any], batch: Batch) -> None:
        found = read_generation(fields)
        if found is not None and is_accepted(fields):
            self.generation = found
            batch.seals = True
        else:
            self.generation = raise_generation(self.generation, found)

    def _check(self, body: bytes, worker: int | None) -> dict[str, Any] | None:
        if not body.startswith(b'"id":"'):
            return None
        try:
            fields = parse_object(b"{%b}" % body)
            require_fields(fields)
        except MalformedRecord:
            return None
        sound = (
            is_listed(fields)
            and fields["event"] not in OWN_EVENTS
            and (worker is None or fields.get("worker") == worker)
        )
        return fields if sound else None

    def _is_new(self, identity: Identity) -> bool:
        """Return whether a record is not in the log, and remember that it will be."""
        if identity in self._known:
            return False
        if len(self._order) == KEPT_IDS:
            self._known.discard(self._order[0])
        self._order.append(identity)
        self._known.add(identity)
        return True
