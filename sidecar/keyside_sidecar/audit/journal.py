"""The log's files, as their one writer has them: append, put on the disk, seal, begin a new file.

Used from one thread. A record that was appended has its place in the chain from then on; what is
not on the disk yet is kept in memory, so that after any failure the same bytes are written again in
the same place. (After fdatasync(2) fails the kernel may have dropped what it could not write, and
takes the pages for clean: only writing them again is safe.)

    append ──► pending ──write──► written ──sync──► on the disk
                  ▲                  │
                  └── sync failed ───┘

A checkpoint's key takes effect (``Signer.commit``), and a finished file gets its name, when the
checkpoint is on the disk. Both are repeated until they succeed.
"""

from __future__ import annotations

import errno
import os
from datetime import datetime
from typing import TYPE_CHECKING, Final

from keyside.audit import (
    Seal,
    cover,
    encode_line,
    hash_record,
    parse_checkpoint,
    sign_checkpoint,
)
from keyside_sidecar.audit.places import fsync_directory

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.audit.places import Places
    from keyside_sidecar.audit.recovery import Tail
    from keyside_sidecar.audit.signing import Signer
    from keyside_sidecar.audit.stamps import Stamps

_MODE: Final = 0o600


class Journal:
    """Writes one log.

    Args:
        places: Its files' names.
        tail: Where it ends.
        signer: Holds its key.
        stamps: Names and times for its own records.
        every_s: How often it promises to make a checkpoint.
    """

    def __init__(
        self, places: Places, tail: Tail, signer: Signer, stamps: Stamps, every_s: float
    ) -> None:
        self._places = places
        self._signer = signer
        self._stamps = stamps
        self._every_s = max(1, round(every_s))
        self._descriptor = tail.descriptor
        self._synced = tail.size
        self._pending = bytearray()
        self._written = 0
        self._first_sequence = tail.first_sequence
        self._began = tail.began
        self._log = tail.checkpoint.seal.log
        self._checkpoints = tail.checkpoint.seal.number
        self._awaits_commit = False
        self._awaits_new_file = tail.descriptor is None or not tail.size
        self._former_file = tail.previous_file
        self.sequence = tail.sequence
        self.head = tail.head
        self.generation = tail.generation
        # Since the last checkpoint, and since the last sync.
        self.unsealed = tail.unsealed
        self.unsynced = 0

    @property
    def size(self) -> int:
        """How large the current file is, pending records included."""
        return self._synced + len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether there is anything that is not on the disk, or not in its place."""
        return bool(self._pending) or self._awaits_commit or self._awaits_new_file

    @property
    def awaits_commit(self) -> bool:
        """Whether the last checkpoint is not known to be on the disk."""
        return self._awaits_commit

    @property
    def takes_records(self) -> bool:
        """Whether there is a file that records go into: not between two files."""
        return not self._awaits_new_file

    def age_s(self, now: datetime) -> float:
        """Return how old the current file is."""
        try:
            return (now - datetime.fromisoformat(self._began)).total_seconds()
        except ValueError:
            return 0.0

    # -- records ----------------------------------------------------------------------------

    def append(self, body: bytes) -> None:
        """Give a record its place in the chain. It isn't written yet."""
        self._append_covered(cover(self.sequence + 1, body))

    def append_own(self, event: str, **fields: object) -> None:
        """Append a record of the log's own."""
        self.append(self._stamps.stamp({"event": event, **fields}))

    def append_checkpoint(self, kind: str) -> bytes:
        """Append a checkpoint, and return its line without its end.

        Raises:
            OSError: The next key can't be written; nothing was appended.
            MalformedRecord: No verifier would read it; nothing was appended.
        """
        assert not self._awaits_commit  # noqa: S101  (two of them would be signed with one key)
        seal = Seal(
            self._checkpoints + 1,
            kind,
            self._log,
            self._every_s,
            self._signer.draw(),
            *(self.generation or (None, None)),
        )
        start = cover(self.sequence + 1, self._stamps.stamp({"event": "checkpoint"}))
        covered = sign_checkpoint(seal, start, self.head, self._signer.sign)
        line = encode_line(covered, hash_record(self.head, covered))[:-1]
        parse_checkpoint(line)
        self._signer.prepare(line)
        self._append_covered(covered)
        self._checkpoints += 1
        self._awaits_commit = True
        self.unsealed = 0
        return line

    def _append_covered(self, covered: bytes) -> None:
        self.head = hash_record(self.head, covered)
        self.sequence += 1
        self.unsealed += 1
        self.unsynced += 1
        self._pending += encode_line(covered, self.head)

    # -- the disk ---------------------------------------------------------------------------

    def write(self) -> None:
        """Write what is pending; a part of it counts.

        Raises:
            OSError: Not all could be written.
        """
        if self._awaits_new_file:
            self._begin_file()
        assert self._descriptor is not None  # noqa: S101
        # (pwrite(2) beyond the end would leave a hole in the place of what was cut off.)
        self._require_whole(self._descriptor)
        while self._written < len(self._pending):
            with memoryview(self._pending) as view, view[self._written :] as rest:
                place = self._synced + self._written
                self._written += os.pwrite(self._descriptor, rest, place)

    def sync(self) -> None:
        """Write what is pending, and return when it is on the disk.

        Raises:
            OSError: It is not; or a key or a file's name could not be changed.
        """
        self.write()
        assert self._descriptor is not None  # noqa: S101
        if self._pending:
            try:
                os.fdatasync(self._descriptor)
                self._require_in_place(self._descriptor)
            except OSError:
                self._written = 0
                raise
            self._synced += len(self._pending)
            self._pending.clear()
            self._written = 0
            self.unsynced = 0
        if self._awaits_commit:
            self._signer.commit()
            self._awaits_commit = False

    @property
    def finished_name(self) -> Path:
        """What the current file will be called."""
        return self._places.name_finished(self._first_sequence)

    def finish_file(self) -> None:
        """Give the current file its final name, and begin a new one; all must be on the disk.

        Raises:
            OSError: It can't be done now; repeat it.
        """
        if self._descriptor is not None and not self._awaits_new_file:
            assert not self._pending  # noqa: S101
            finished = self.finished_name
            self._places.log.rename(finished)
            self._awaits_new_file = True
            os.close(self._descriptor)
            self._descriptor = None
            self._former_file = finished.name
        self.sync()

    def _begin_file(self) -> None:
        """Make a new file, or take one that is empty. Its first record says what came before."""
        assert not self._pending  # noqa: S101
        if self._descriptor is None:
            self._descriptor = os.open(
                self._places.log,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                _MODE,
            )
            self._synced = self._written = 0
        fsync_directory(self._places.log.parent)
        self._awaits_new_file = False
        self._first_sequence = self.sequence + 1
        self._began = self._stamps.now()
        self.append_own(
            "log.continued",
            details={
                "previous_hash": self.head.hex(),
                "previous_sequence": self.sequence,
                "previous_file": self._former_file,
            },
        )

    def _require_in_place(self, descriptor: int) -> None:
        """Check that what is written is still found under its name.

        Raises:
            OSError: The file was moved, removed or replaced.
        """
        status = self._places.log.lstat()
        if not os.path.samestat(status, os.fstat(descriptor)):
            raise OSError(errno.ESTALE, "the log's file was moved or replaced")
        self._require_whole(descriptor)

    def _require_whole(self, descriptor: int) -> None:
        """Check that nothing was cut off from what is written.

        Raises:
            OSError: The file is shorter.
        """
        if os.fstat(descriptor).st_size < self._synced + self._written:
            raise OSError(errno.ESTALE, "the log's file was truncated")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
