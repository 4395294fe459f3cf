"""What workers send, before it gets its place in the chain.

A worker runs as the same account and is trusted with what a record says, but not with the form of
the log: each body must be JSON in the one form that lines have, say nothing but listed fields, and
bear the worker's own pid. One that doesn't is replaced by a record that says so.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from keyside.audit import MAX_BODY_BYTES, parse_object, require_fields
from keyside.errors import MalformedRecord
from keyside_sidecar.audit.records import FIELDS, OWN_EVENTS
from keyside_sidecar.audit.recovery import KEPT_IDS, note_generation
from keyside_sidecar.audit.writer import Batch
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside_sidecar.audit.stamps import Stamps

_log = logging.getLogger(__name__)

_TOLD: Final = "access."


class Intake:
    """Checks records, and drops those that are in the log already.

    Args:
        stamps: For the record that stands in for a wrong one.
        recent_ids: The ids of the last records in the log.
        generation: How far the store has come, as the log says.
    """

    def __init__(
        self, stamps: Stamps, recent_ids: Iterable[str], generation: tuple[str, int] | None
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
            fields = self._check(body, worker)
            if fields is None:
                facts = {"event": "audit.failed", "outcome": "failed", "reason": "AUDIT_BAD_RECORD"}
                event(_log, logging.ERROR, "a worker sent what is no record", worker=worker)
                batch.bodies.append(self._stamps.stamp({**facts, "worker": worker}))
                continue
            identity = fields["id"]
            if identity in self._known:
                continue
            self._remember(identity)
            if "details" in fields:
                self.generation = note_generation(self.generation, fields)
            if fields["event"].startswith(_TOLD) and fields.get("phase") != "intent":
                batch.told.append(len(batch.bodies))
            batch.bodies.append(body)
        if self.generation != before:
            batch.generation = self.generation
        return batch

    def _check(self, body: bytes, worker: int | None) -> dict[str, Any] | None:
        if len(body) > MAX_BODY_BYTES or not body.startswith(b'"id":"'):
            return None
        try:
            fields = parse_object(b"{%b}" % body)
            require_fields(fields)
        except MalformedRecord:
            return None
        sound = (
            FIELDS.issuperset(fields)
            and fields["event"] not in OWN_EVENTS
            and (worker is None or fields.get("worker") == worker)
        )
        return fields if sound else None

    def _remember(self, identity: str) -> None:
        if len(self._order) == KEPT_IDS:
            self._known.discard(self._order[0])
        self._order.append(identity)
        self._known.add(identity)
