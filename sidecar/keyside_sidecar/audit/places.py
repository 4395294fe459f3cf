"""What lies beside the audit log's current file, and what it is called.

audit.jsonl                    the current file
audit-000000000001.jsonl       a finished file, after its first record's sequence number
audit.jsonl.key, .key.next     the signing key, and the one that follows it for a moment
audit.jsonl.reserve            1 MiB of room, given up when the disk is full
audit.jsonl.lock               held by the one process that writes
audit-damaged-000000000123     what a crash left behind of record 123 and later ones
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyside._atomic import write_all
from keyside._new_file import NewFile
from keyside._temporary import sweep_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DIGITS: Final = 12
_NAMED: Final = 4
_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Places:
    """The names of one log's files.

    Args:
        log: The current file, which ends in ``.jsonl``.
    """

    log: Path

    @property
    def key(self) -> Path:
        """The current signing key."""
        return self.log.with_name(f"{self.log.name}.key")

    @property
    def next_key(self) -> Path:
        """The signing key that follows it."""
        return self.log.with_name(f"{self.log.name}.key.next")

    @property
    def reserve(self) -> Path:
        """Room for when the disk is full."""
        return self.log.with_name(f"{self.log.name}.reserve")

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self.log.with_name(f"{self.log.name}.lock")

    def name_finished(self, first_sequence: int) -> Path:
        """Return where a finished file goes that begins with ``first_sequence``."""
        return self.log.with_name(f"{self.log.stem}-{first_sequence:0{_DIGITS}d}.jsonl")

    def name_damaged(self, sequence: int) -> Path:
        """Return where goes what stands in the way of record ``sequence``."""
        return self.log.with_name(f"{self.log.stem}-damaged-{sequence:0{_DIGITS}d}")

    def list_finished(self) -> list[Path]:
        """Return the finished files, oldest first.

        Raises:
            OSError: The directory can't be read.
        """
        form = re.compile(rf"{re.escape(self.log.stem)}-[0-9]{{{_DIGITS},18}}\.jsonl")
        with os.scandir(self.log.parent) as entries:
            found = [self.log.with_name(it.name) for it in entries if form.fullmatch(it.name)]
        return sorted(found, key=self.parse_finished)

    def list_parts(self) -> list[Path]:
        """Return what there is of the log and its keys, and would keep a new log from being made.

        Raises:
            OSError: The directory can't be read.
        """
        single = (self.log, self.key, self.next_key)
        return [*(path for path in single if os.path.lexists(path)), *self.list_finished()]

    def tell_how_to_begin_anew(self) -> str:
        """Return what to do for a new log: an old one's files are never overwritten."""
        try:
            names = [path.name for path in self.list_parts()]
        except OSError:
            names = []
        if len(names) > _NAMED:
            names = [self.log.name, self.key.name, f"{self.log.stem}-*.jsonl"]
        begin = "keysided init --only-audit"
        if not names:
            return f"begin a new log with {begin}"
        what = " and ".join(", ".join(names).rsplit(", ", 1))
        return (
            f"move {what} out of {self.log.parent}, keep what you moved, and begin a new log with "
            f"{begin}"
        )

    def parse_finished(self, path: Path) -> int:
        """Return which record a finished file begins with, as its name says."""
        return int(path.stem.rpartition("-")[2])


def write_new(path: Path, data: bytes) -> None:
    """Write a new file of a few lines that its owner alone can read, durably.

    Raises:
        OSError: There is something already, or it can't be written; nothing is left of it then.
    """
    with new_file_in(path.parent) as file:
        write_all(file.descriptor, data)
        file.add(path.name)


@contextlib.contextmanager
def new_file_in(directory: Path) -> Iterator[NewFile]:
    """Yield a file that its owner alone can read, and that shows when it is given its name.

    Raises:
        OSError: It can't be made.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sweep_folder(folder)
        with NewFile(folder, _MODE) as file:
            yield file
    finally:
        os.close(folder)


def fsync_directory(path: Path) -> None:
    """Have the names in ``path`` survive a power failure.

    Raises:
        OSError: They may not.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
