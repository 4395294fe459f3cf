"""Verifying a log: is it the one that was written, and is it all of it?

The first question (integrity) is answered by the chain of hashes, and for everything up to the last
checkpoint by a signature that only the recorder could make at that time. The second one
(completeness) has no answer inside the log: a log that was cut off right after a checkpoint looks
like one that was killed there, and one cut off at the end of a former run looks closed. So a
checkpoint that was kept elsewhere is what answers it.

Records after the last checkpoint are protected by the chain only, which whoever can write to the
file can make anew: ``unsealed`` counts them. Between the checkpoint that ends a run and the one
that begins the next nothing was written but what the recorder itself writes then; anything else was
inserted, also where a later checkpoint seals it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from keyside.audit.checkpoints import START_EVENTS, Checkpoint, name_log, read_checkpoint
from keyside.audit.diagnosis import diagnose
from keyside.audit.findings import (
    Anchor,
    Change,
    Completeness,
    Fault,
    LogFile,
    Place,
    Verification,
)
from keyside.audit.lines import FIRST_PREVIOUS, Line, is_plain_number, parse_line
from keyside.audit.walk import Piece, arrange, walk
from keyside.errors import MalformedRecord
from keyside.quantities import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LATE_INTERVALS: Final = 3
_LATE_S: Final = 60
_PROGRESS_EVERY: Final = 1 << 14
_NO_ANCHOR: Final = Anchor()
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def verify_log(
    files: Sequence[LogFile],
    anchor: Anchor = _NO_ANCHOR,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Verify the files of one log as one chain, in constant memory.

    Args:
        files: All of them, or the newer ones; in any order.
        anchor: What is known of the log from elsewhere.
        progress: Called now and then with the number of records so far.

    Raises:
        OSError: A file can't be read.
    """
    verifier = _Verifier(anchor)
    arranged = arrange(files)
    pieces = walk(arranged)
    for piece in pieces:
        fault = verifier.take(piece)
        if fault is not None:
            if not verifier.is_fault_of_seal:
                fault = diagnose(fault, piece, verifier.before, pieces)
            return verifier.finish(fault)
        if progress is not None and not verifier.records % _PROGRESS_EVERY:
            progress(verifier.records)
    if not verifier.records:
        return verifier.finish(verifier.judge_nothing(arranged[0].name if arranged else ""))
    return verifier.finish(verifier.judge_end())


class _Verifier:
    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor
        self._known: dict[int, list[Checkpoint]] = {}
        for checkpoint in anchor.checkpoints:
            self._known.setdefault(checkpoint.line.sequence, []).append(checkpoint)
        # The key that the next checkpoint must be signed with, and whether the anchor leads to it.
        self._is_key_anchored = False
        self._key: bytes | None = None
        self._log: str | None = name_log(anchor.public_key) if anchor.public_key else None
        # The number that the next checkpoint must have, once one is known.
        self._number: int | None = None
        self._authenticated = False
        self._previous = FIRST_PREVIOUS
        self._warnings: list[str] = []
        # The last line but one's hash, and the last line: to tell an inserted line from others.
        self.before: tuple[bytes, Piece, Line] | None = None
        self.expected = 0
        self.records = 0
        self._first = 0
        self._checkpoints = 0
        self._last_checkpoint: Checkpoint | None = None
        self._last: Line | None = None
        self._run_end: Line | None = None  # the last line but one, if it is that
        self._torn_bytes = 0
        self.is_fault_of_seal = False

    # -- one line ---------------------------------------------------------------------------

    def take(self, piece: Piece) -> Fault | None:
        """Take the next line; return what is wrong with it."""
        if not piece.ended and piece.is_final:
            self._torn_bytes = piece.length  # a kill while it was written; or a cut
            return None
        try:
            line = parse_line(piece.data)
        except MalformedRecord as error:
            return self._fault(piece, "a record", f"a line that {error}")
        if not self.expected:
            self._begin(line)
        fault = self._check_link(piece, line) or self._check_known(piece, line)
        fault = fault or self._check_start(piece, line) or self._check_seal(piece, line)
        if fault is None:
            self._accept(piece, line)
        return fault

    def _check_link(self, piece: Piece, line: Line) -> Fault | None:
        if not piece.ended:
            return self._fault(piece, "a line's end", "a line that was cut short")
        if line.sequence != self.expected:
            return self._fault(piece, f"sequence {self.expected}", f"sequence {line.sequence}")
        if not line.follows(self._previous):
            return self._fault(piece, "a hash that fits", "a hash that does not fit")
        return None

    def _begin(self, line: Line) -> None:
        """Find out how the first line hangs together with what is known of the log."""
        self.expected = self._first = line.sequence
        if line.sequence == 1:
            self._key = self._anchor.public_key
            self._is_key_anchored = self._key is not None
            self._number = 1
            return
        earlier = [sequence for sequence in self._known if sequence < line.sequence]
        if earlier:
            checkpoint = self._known[max(earlier)][0]
            self.expected = checkpoint.line.sequence + 1
            self._previous = checkpoint.line.hash
            self._key = checkpoint.seal.next_key
            self._number = checkpoint.seal.number + 1
            self._is_key_anchored = True
            self._log = self._log or checkpoint.seal.log
            return
        former = _read_former(line)
        if (self._anchor.public_key is not None and not self._known) or former is None:
            self.expected = 1
            return  # found to be out of sequence
        self._previous = former
        self._warnings.append(
            f"the files begin with record {line.sequence}: nothing is said about earlier ones"
        )

    def _check_known(self, piece: Piece, line: Line) -> Fault | None:
        """Check that a checkpoint that was kept elsewhere is in its place."""
        for known in self._known.get(line.sequence, ()):
            if known.line.encode() != piece.data:
                return self._fault(
                    piece, "the checkpoint that was kept elsewhere", "another record", sealed=True
                )
        return None

    def _check_start(self, piece: Piece, line: Line) -> Fault | None:
        """Check what a run begins with, and that the log itself begins with a checkpoint."""
        if line.sequence == 1 and self._is_key_anchored and line.event != "checkpoint":
            return self._fault(
                piece, "the checkpoint that the public key signed", "another record", sealed=True
            )
        last = self._last_checkpoint
        if last is None or last.seal.kind != "stop" or line.event in START_EVENTS:
            return None
        details = line.fields.get("details")
        kind = details.get("kind") if isinstance(details, dict) else None
        if line.event == "checkpoint" and kind == "start":
            return None
        fault = self._fault(piece, "the start of a run", f"a record of {line.event}", sealed=True)
        return replace(fault, change=Change.INSERTED, since=fault.sequence)

    def _check_seal(self, piece: Piece, line: Line) -> Fault | None:
        """Check the signature of a checkpoint."""
        if line.event != "checkpoint":
            return None
        try:
            checkpoint = read_checkpoint(line)
        except MalformedRecord as error:
            return self._fault(piece, "a checkpoint", f"a line that {error}", sealed=True)
        if self._log not in {None, checkpoint.seal.log}:
            return self._fault(
                piece,
                f"a checkpoint of the log {self._log}",
                f"one of the log {checkpoint.seal.log}",
                sealed=True,
            )
        if self._number not in {None, checkpoint.seal.number}:
            return self._fault(
                piece,
                f"checkpoint number {self._number}",
                f"checkpoint number {checkpoint.seal.number}",
                sealed=True,
            )
        if self._key is not None and not checkpoint.is_signed_by(self._key, self._previous):
            return self._fault(
                piece,
                f"a signature by the key {self._key.hex()}",
                "a signature that does not fit",
                sealed=True,
            )
        self._is_key_anchored |= line.sequence in self._known
        self._authenticated = self._is_key_anchored
        self._log = checkpoint.seal.log
        self._key = checkpoint.seal.next_key
        self._number = checkpoint.seal.number + 1
        self._last_checkpoint = checkpoint
        self._checkpoints += 1
        return None

    def _accept(self, piece: Piece, line: Line) -> None:
        self.before = self._previous, piece, line
        self._run_end = self._last if self._last and self._last.event == "run.end" else None
        self._last = line
        self._previous = line.hash
        self.expected += 1
        self.records += 1

    def _fault(self, piece: Piece, expected: str, found: str, *, sealed: bool = False) -> Fault:
        """Return a fault, whose kind is still to be found out."""
        self.is_fault_of_seal = sealed
        sealed_to = self._last_checkpoint.line.sequence if self._last_checkpoint else 0
        sequence = self.expected or 1
        # Where a hash does not fit, one of two lines was changed. (A sealed one can't have been.)
        least = 1 if sealed else sequence - 1
        since = max(sealed_to + 1, self._first, least, 1)
        return Fault(Change.EDITED, piece.place, sequence, since, expected, found)

    # -- the whole --------------------------------------------------------------------------

    def judge_end(self) -> Fault | None:
        """Return what is wrong with the log as a whole, when all lines were taken."""
        others = [it for it in self._anchor.checkpoints if self._log not in {None, it.seal.log}]
        if not others or self.before is None:
            return None
        _, piece, _line = self.before
        return Fault(
            Change.EDITED,
            piece.place,
            self.expected - 1,
            max(self._first, 1),
            f"the log {others[0].seal.log}, which the checkpoint belongs to",
            f"the log {self._log}",
        )

    def judge_nothing(self, name: str) -> Fault | None:
        """Return what is wrong where there is no record: a log has one from its first moment."""
        if self._anchor.public_key is None or self._known:
            return None  # (a known checkpoint says that it is cut)
        expected = "the checkpoint that the public key signed"
        return Fault(Change.REMOVED, Place(name, 1), 1, 1, expected, "no record")

    def finish(self, fault: Fault | None) -> Verification:
        """Return what was found."""
        last = self._last_checkpoint
        sealed_to = last.line.sequence if last is not None else max(self._first - 1, 0)
        last_sequence = self._last.sequence if self._last is not None else 0
        if fault is None:
            self._warn_of_late_seal()
            self._warn_of_loss()
        return Verification(
            fault,
            self._judge_completeness(fault),
            self._authenticated and fault is None,
            self.records,
            self._first if self.records else 0,
            last_sequence,
            self._last.fields["time"] if self._last is not None else "",
            self._previous.hex(),
            self._checkpoints,
            last,
            max(0, last_sequence - sealed_to),
            self._torn_bytes,
            tuple(self._warnings),
        )

    def _judge_completeness(self, fault: Fault | None) -> Completeness:
        if fault is not None:
            return Completeness.UNKNOWN
        if max(self._known, default=0) >= max(self.expected, 1):
            return Completeness.CUT
        last = self._last_checkpoint
        is_closed = (
            not self._torn_bytes
            and last is not None
            and last.line is self._last
            and last.seal.kind == "stop"
            and self._run_end is not None
        )
        return Completeness.CLOSED if is_closed else Completeness.OPEN_ENDED

    def _warn_of_loss(self) -> None:
        """Say where the last run, which ended properly, could not write all that it had."""
        line = self._run_end
        details = line.fields.get("details") if line is not None else None
        lost = details.get("lost") if isinstance(details, dict) else None
        if isinstance(lost, int) and lost > 0:
            self._warnings.append(
                f"at its end the last run had {count_of(lost, 'record')} that it could not write, "
                "and that the log lacks"
            )

    def _warn_of_late_seal(self) -> None:
        last, final = self._last_checkpoint, self._last
        if final is not None and last is None:
            self._warnings.append("there is no checkpoint: nothing is sealed by a signature")
        if final is None or last is None:
            return
        try:
            until, since = (
                datetime.fromisoformat(line.fields["time"]) for line in (final, last.line)
            )
        except ValueError:
            return
        late_s = (until - since).total_seconds()
        if late_s > last.seal.every_s * _LATE_INTERVALS + _LATE_S:
            self._warnings.append(
                f"the last checkpoint is {late_s:,.0f} s older than the last record, and one is "
                f"made every {last.seal.every_s} s: later ones may have been removed"
            )


def _read_former(line: Line) -> bytes | None:
    """Return the hash that a file's first line says it goes on from; None where it says none."""
    details = line.fields.get("details")
    if line.event != "log.continued" or not isinstance(details, dict):
        return None
    former, sequence = details.get("previous_hash"), details.get("previous_sequence")
    is_next = is_plain_number(sequence) and sequence == line.sequence - 1
    if not is_next or not isinstance(former, str) or not _HASH.fullmatch(former):
        return None
    return bytes.fromhex(former)
