"""The recorder's one thread that touches the disk; everything else goes on while it waits there.

    OPENING ──run.start is on the disk──► WRITING ◄──► FAILING         any of them ──stop──► ENDED
                                             ▲             │ no room
                                             └── room ── LOW (refusals are still recorded)

Records that wait are taken together and put on the disk with one fdatasync (group commit): at once
where somebody waits for one of them, otherwise within half a second. After any error the same is
tried again, until it succeeds. A full disk has the reserve given up, so that the failure and what
is refused because of it can be recorded; people's actions and services' calls wait meanwhile.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from keyside_sidecar.audit import problem as problems
from keyside_sidecar.audit.creation import require_safe_log_directory
from keyside_sidecar.audit.journal import Journal
from keyside_sidecar.audit.locking import is_in_place, take_lock
from keyside_sidecar.audit.places import Places
from keyside_sidecar.audit.records import format_time
from keyside_sidecar.audit.recovery import recover_log
from keyside_sidecar.audit.reserve import Reserve
from keyside_sidecar.audit.signing import Signer
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.audit.summary import INTERVAL_S
from keyside_sidecar.audit.wire import BEHIND, DURABLE, REFUSED
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from keyside_sidecar.audit.generations import Generation
    from keyside_sidecar.audit.recovery import Tail
    from keyside_sidecar.config import AuditSettings

T = TypeVar("T")

_log = logging.getLogger(__name__)

SYNC_EVERY_S: Final = 0.5
_SYNC_RECORDS: Final = 5_000
_ROUND_BYTES: Final = 256 * 1024
_CHECKPOINT_RECORDS: Final = 50_000
_RETRY_S: Final = 0.1
_MAX_RETRY_S: Final = 1.0
_LOW_CHECK_S: Final = 0.5
_IDLE_S: Final = 60.0
_EX_SOFTWARE: Final = 70
_EX_TEMPFAIL: Final = 75
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True, eq=False)
class Batch:
    """Records that came together.

    Args:
        lane: Which of the wire's lanes.
        bodies: The records; those that are in the log already were left out.
        count: How many there were before that.
        source: Whom to tell when they are on the disk.
        told: The places in ``bodies`` of records that a command is to hear of.
        lines: Afterwards: those records' lines.
        generation: How far the store has come, as one of the records says.
        seals: Whether a checkpoint is made before they are acknowledged.
        is_bad: Whether one of them was none, and so no more is taken from where they came.
    """

    lane: str
    bodies: list[bytes]
    count: int
    source: object = None
    told: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    generation: Generation | None = None
    seals: bool = False
    is_bad: bool = False

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return sum(map(len, self.bodies))


class Writer(threading.Thread):
    """Owns the log's files.

    Args:
        settings: ``[audit]``.
        opening: What the first record of this run says.
        wake: Called, from this thread, when there is news for whoever started it.
    """

    def __init__(
        self, settings: AuditSettings, opening: dict[str, object], wake: Callable[[], None]
    ) -> None:
        super().__init__(name="audit-writer", daemon=True)
        self._settings = settings
        self._opening = opening
        self._wake = wake
        self._places = Places(settings.path)
        self._clock = SystemClock()
        self._reserve = Reserve(self._places.reserve)
        self._journal: Journal
        self._condition = threading.Condition()
        self._queue: deque[Batch] = deque()
        self._put_off: deque[Batch] = deque()
        self._appended: list[Batch] = []
        self._wants_sync = False
        self._wants_seal = False
        self._is_closed = False
        self._unsent: list[bytes] = []
        self._lock: int | None = None
        self._finished = False
        self._finishes_file = False
        self._told_of_name = False
        self._stops: str | None = None
        self._failed_since: datetime | None = None
        self._failed_s = 0.0
        self._retry_s = _RETRY_S
        self._sync_due_s: float | None = None
        self._checkpoint_due_s = 0.0
        self._tail: Tail | None = None
        # For whoever started it, from here on.
        self.done: deque[Batch] = deque()
        self.checkpoints: deque[bytes] = deque()
        self.queued_bytes = 0
        self.busy_since_s: float | None = None
        self.failing: str | None = None
        self.low = False
        self.opened = False
        self.error: StartupError | None = None
        self.ended = False

    @property
    def tail(self) -> Tail | None:
        """Where the log ended when it was opened."""
        return self._tail

    # -- from another thread ----------------------------------------------------------------

    def put(self, batch: Batch) -> None:
        """Have records written."""
        with self._condition:
            self._queue.append(batch)
            self.queued_bytes += batch.size
            self._condition.notify()

    def sync(self) -> None:
        """Have what was given put on the disk now."""
        with self._condition:
            self._wants_sync = True
            self._condition.notify()

    def stop(self, kind: str) -> None:
        """End, after what was given, with a last checkpoint.

        Args:
            kind: ``"stop"`` to close the run properly; ``"interval"`` to seal it only.
        """
        with self._condition:
            self._stops = kind
            self._condition.notify()

    def set_generation(self, generation: Generation) -> None:
        """Have later checkpoints say how far the store has come."""
        self.put(Batch(BEHIND, [], 0, generation=generation))

    # -- the thread -------------------------------------------------------------------------

    def run(self) -> None:
        """Write until told to stop."""
        try:
            self._run()
        except StartupError as error:
            self.error = error
        except OSError as error:
            self.error = StartupError(
                f"the audit log {self._places.log} can't be opened: {error.strerror}",
                remedy="see that the sidecar's account may write to its directory",
            )
        except Exception:  # noqa: BLE001  (the process ends, and another one takes its place)
            _log.exception("audit log's writer failed")
            self.error = StartupError("the audit log's writer failed", exit_code=_EX_SOFTWARE)
        self.ended = True
        self._wake()

    def _run(self) -> None:
        self._open()
        while not self._finished:
            self._wait()
            try:
                self._work()
            except OSError as error:
                self._note_failure(error)
            self.busy_since_s = None
        self._journal.close()
        assert self._lock is not None  # noqa: S101
        os.close(self._lock)

    def _open(self) -> None:
        require_safe_log_directory(self._places.log.parent, os.geteuid())
        self._lock = take_lock(self._places)
        self._tail = tail = recover_log(self._places)
        signer = Signer.recover(self._places, tail.checkpoint)
        stamps = Stamps(self._clock)
        self._journal = journal = Journal(
            self._places, tail, signer, stamps, self._settings.checkpoint_every_s
        )
        self._reserve.make()
        if not journal.takes_records:
            self._use_reserve(journal.write)  # the last run ended between two files
        previous = {"previous_hash": tail.head.hex(), "previous_sequence": tail.sequence}
        journal.append_own("run.start", details={**self._opening, **previous})
        if not tail.is_closed:
            is_summary = self._settings.service_calls == "summary"
            found: dict[str, object] = {
                "torn_bytes": tail.torn_bytes,
                "unsealed": tail.unsealed,
                "lost_up_to_s": round(INTERVAL_S) if is_summary else 1,
            }
            if tail.kept_as:
                found["kept_as"] = tail.kept_as
            event(_log, logging.WARNING, "the last run was not closed", **found)
            journal.append_own("run.recovered", details=found)
        line = self._use_reserve(lambda: journal.append_checkpoint("start"))
        self._use_reserve(journal.sync)
        self.checkpoints.append(line)
        self._checkpoint_due_s = time.monotonic() + self._settings.checkpoint_every_s
        self.opened = True
        self._wake()

    def _use_reserve(self, act: Callable[[], T]) -> T:
        """Do something; give up the reserve for it where there is no room."""
        try:
            return act()
        except OSError as error:
            self._note_failure(error)
            if not self.low:
                raise
        return act()

    def _wait(self) -> None:
        with self._condition:
            now_s = time.monotonic()
            if self.failing is not None and not self.low:
                self._condition.wait(self._retry_s)
            elif not (self._queue or self._wants_sync or self._stops):
                due = [self._checkpoint_due_s, now_s + _IDLE_S]
                if self._sync_due_s is not None:
                    due.append(self._sync_due_s)
                if self.low or not self._reserve.is_there:
                    due.append(now_s + _LOW_CHECK_S)
                self._condition.wait(max(0.0, min(due) - now_s))

    def _work(self) -> None:
        """Do one round of what there is to do."""
        journal = self._journal
        self.busy_since_s = now_s = time.monotonic()
        self._require_lock()
        if self._is_closed:  # nothing may follow the checkpoint that closes the run
            self._sync()
            self._finished = True
            return
        if self._finishes_file or (journal.has_pending and self.failing is not None):
            self._settle()
            self._finish_file()
        if self.failing is not None or not self._reserve.is_there:
            self._look_for_room()
        waits = self._take_batches()
        journal.write()
        if (
            waits
            or journal.unsynced >= _SYNC_RECORDS
            or (self._sync_due_s is not None and now_s >= self._sync_due_s)
        ):
            self._settle()
        elif self._appended and self._sync_due_s is None:
            self._sync_due_s = now_s + SYNC_EVERY_S
        if now_s >= self._checkpoint_due_s or journal.unsealed >= _CHECKPOINT_RECORDS:
            self._seal("interval")
        if self._is_file_finished():
            self._seal("rotation")
            self._finishes_file = True
            self._finish_file()
        if self._stops is not None and not self._queue:
            self._finish(self._stops)

    def _take_batches(self) -> bool:
        """Append what waits; return whether somebody waits for it to be on the disk."""
        with self._condition:
            waits, self._wants_sync = self._wants_sync, False
            taken: list[Batch] = []
            size = 0
            if not self.low:
                self._queue.extendleft(reversed(self._put_off))
                self._put_off.clear()
            while self._queue and size < _ROUND_BYTES:
                batch = self._queue.popleft()
                if self.low and batch.lane != REFUSED:
                    self._put_off.append(batch)
                    continue
                taken.append(batch)
                size += batch.size
            self.queued_bytes -= size
        for batch in taken:
            self._append(batch)
            waits |= batch.lane == DURABLE or self.low
        return waits and bool(taken or self._appended)

    def _append(self, batch: Batch) -> None:
        journal = self._journal
        for body in batch.bodies:
            journal.append(body)
        if batch.generation is not None:
            journal.generation = batch.generation
        if batch.told:
            first = journal.sequence - len(batch.bodies) + 1
            batch.lines = [
                b'{"v":1,"seq":%d,%b}' % (first + index, batch.bodies[index])
                for index in batch.told
            ]
        self._wants_seal |= batch.seals
        self._appended.append(batch)

    def _settle(self) -> None:
        """Put what was appended on the disk; with a checkpoint first, if one is to seal it."""
        if self._wants_seal and not self._journal.awaits_commit:
            self._seal("interval")
        else:
            self._sync()

    def _require_lock(self) -> None:
        """Check that the lock still keeps others from the log.

        Raises:
            StartupError: It doesn't; the process ends, and what takes its place asks for it anew.
        """
        assert self._lock is not None  # noqa: S101
        if not is_in_place(self._places, self._lock):
            raise StartupError(
                f"the lock {self._places.lock} was removed or replaced: another process may write "
                "the audit log",
                remedy="see who did that; nothing but the sidecar may change files beside the log",
                exit_code=_EX_TEMPFAIL,
            )

    def _sync(self) -> None:
        self._journal.sync()
        self._sync_due_s = None
        if self._appended or self._unsent:
            self.done.extend(self._appended)
            self.checkpoints.extend(self._unsent)
            self._appended.clear()
            self._unsent.clear()
            self._wake()
        if self.failing is not None and not self.low and not self._is_closed:
            self._note_restored()

    def _seal(self, kind: str) -> None:
        line = self._journal.append_checkpoint(kind)
        self._wants_seal = False
        self._is_closed = kind == "stop"
        self._checkpoint_due_s = time.monotonic() + self._settings.checkpoint_every_s
        self._unsent.append(line)
        self._sync()

    def _finish_file(self) -> None:
        if self._finishes_file:
            self._journal.finish_file()
            self._finishes_file = False

    def _is_file_finished(self) -> bool:
        journal = self._journal
        if self.low or not (
            journal.size >= self._settings.rotate_bytes
            or journal.age_s(self._clock.now()) >= self._settings.rotate_every_s
        ):
            return False
        if not os.path.lexists(journal.finished_name):
            return True
        if not self._told_of_name:
            self._told_of_name = True
            event(_log, logging.ERROR, "no new file: its name is taken", path=journal.finished_name)
        return False

    def _finish(self, kind: str) -> None:
        if kind == "stop":
            lost = sum(batch.count for batch in self._put_off)
            outcome = "failed" if lost else "ok"
            self._journal.append_own("run.end", outcome=outcome, details={"lost": lost})
        self._seal(kind)
        self._finished = True

    # -- failures ---------------------------------------------------------------------------

    def _note_failure(self, error: OSError) -> None:
        no_room = error.errno in _NO_ROOM
        first = self.failing is None
        self.failing = problems.NO_SPACE if no_room else problems.WRITE_FAILED
        if first:
            self._failed_since, self._failed_s = self._clock.now(), time.monotonic()
            event(_log, logging.ERROR, "audit log can't be written", error=str(error))
        if no_room and self._reserve.release():
            self.low = True
            if self._journal.takes_records and not self._is_closed:
                self._journal.append_own(
                    "audit.failed",
                    outcome="failed",
                    reason=problems.NO_SPACE,
                    details={"error": error.strerror or ""},
                )
            self._retry_s = _RETRY_S
        elif no_room or not first:
            # Not even the reserve was enough, or it goes on.
            self.low = False
            self._retry_s = min(self._retry_s * 2, _MAX_RETRY_S)
        self._wake()

    def _look_for_room(self) -> None:
        """Take the reserve again, where there is room; that ends what its lack began."""
        if self._reserve.make() and self.low:
            self.low = False
            self._note_restored()

    def _note_restored(self) -> None:
        lasted_s = int(time.monotonic() - self._failed_s)
        details: dict[str, object] = {
            "lasted_s": lasted_s,
            "delayed": sum(batch.count for batch in (*self._queue, *self._put_off)),
        }
        if self._failed_since is not None:
            details["since"] = format_time(self._failed_since)
        event(_log, logging.WARNING, "audit log can be written again", lasted_s=lasted_s)
        self.failing = None
        self._retry_s = _RETRY_S
        self._journal.append_own("audit.restored", outcome="ok", details=details)
        self._sync_due_s = self._sync_due_s or time.monotonic()
        self._wake()
