"""What verifying a log finds: whether it was changed, whether it is whole, and the place."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from keyside.audit.checkpoints import Checkpoint


class Change(enum.Enum):
    """What was done to a log."""

    EDITED = "edited"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"


class Completeness(enum.Enum):
    """What there is to say about a log's end.

    CLOSED: the last run ended properly, and a signature covers that. OPEN_ENDED: the last run goes
    on, or was killed, or the end was cut off. CUT: a checkpoint that was kept elsewhere says that
    there was more. UNKNOWN: the log was changed, so its end means nothing.
    """

    CLOSED = "closed"
    OPEN_ENDED = "open-ended"
    CUT = "cut"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file of a log.

    Args:
        name: What it is called in what is found.
        open: Returns its bytes, seekable; called twice, and the stream is closed each time. So
            a log of thousands of files has one open at a time.
    """

    name: str
    open: Callable[[], BinaryIO] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What is known of a log from elsewhere; both may be given.

    Args:
        public_key: The first public key, which ``keysided init`` printed.
        checkpoints: Checkpoints that were kept elsewhere, in any order. Each must be in its place;
            the newest shows whether the end was cut off.
    """

    public_key: bytes | None = None
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, counted from 1."""

    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place at which a log is not what it was.

    Args:
        change: What was probably done. That something was done is certain.
        place: The first line that is wrong.
        sequence: The sequence number that belongs there.
        since: The first record that may have been changed. Before ``sequence`` where the lines
            fit together, and only a signature shows that they are not the ones that were written.
        expected: What should be there.
        found: What is there.
    """

    change: Change
    place: Place
    sequence: int
    since: int
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying found.

    Args:
        fault: The first change, if there is any.
        completeness: What there is to say about the end.
        authenticated: Whether the log is known, from the anchor, to be the one that it should be,
            up to its last checkpoint: a signature was verified that the anchor leads to, or the
            checkpoint that was kept elsewhere was met. Without that, whoever could write to the
            files may have made all of it.
        records: How many records were verified.
        first_sequence: The first record's sequence number; 0 where there is none.
        last_sequence: The last verified record's sequence number.
        last_time: Its time.
        head: Its hash, 64 digits.
        checkpoints: How many checkpoints were verified.
        last_checkpoint: The newest of them.
        unsealed: How many records stand after it: these are not protected yet.
        torn_bytes: How much of a line that was cut short stands at the very end.
        warnings: What is doubtful, in sentences.
    """

    fault: Fault | None
    completeness: Completeness
    authenticated: bool
    records: int
    first_sequence: int
    last_sequence: int
    last_time: str
    head: str
    checkpoints: int
    last_checkpoint: Checkpoint | None
    unsealed: int
    torn_bytes: int
    warnings: tuple[str, ...]
