"""Which process this is, so that a counter copied into a forked child is never used there.

A sealer that went on counting in parent and child would seal two messages under one nonce. The
process id tells them apart from the fork's first instruction, also where C code forks behind
the interpreter's back. A number of processes later the id may be given out again; so there is a
count of forks beside it, kept by ``os.register_at_fork``. Neither sees a fork by C code whose
child is given the same id (process 1 of a container that makes a container), nor a virtual
machine that is cloned while running.

Asking for the process id costs a system call. Where messages take microseconds there is a quicker
way: a page of memory that the kernel hands to every child of a fork empty (MADV_WIPEONFORK, Linux
4.14), whoever forks. What stands in it was put there by this very process.
"""

from __future__ import annotations

import mmap
import os
from os import getpid, urandom
from typing import Final, Protocol

_WIPE_ON_FORK: Final = 18  # MADV_WIPEONFORK; the module mmap has no name for it


class _Forks:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> None:
        self.count += 1


FORKS = _Forks()
os.register_at_fork(after_in_child=FORKS.increment)


def mark_process() -> tuple[int, int]:
    """Return what is equal in one process and differs in its children, as far as stated above.

    Compare it with the mark taken *before* the first random byte of the state that it guards.
    """
    return getpid(), FORKS.count


class Marks(Protocol):
    """Something whose first item is this process's mark, or 0 where none was set yet."""

    def __getitem__(self, index: int, /) -> int:
        """Return the mark."""

    def __setitem__(self, index: int, mark: int, /) -> None:
        """Set the mark."""


class ComputedMarks:
    """The mark of a kernel that wipes no page at a fork: made of ``mark_process``, never 0."""

    def __getitem__(self, index: int, /) -> int:
        """Return the mark."""
        process, count = mark_process()
        return process << 64 | count

    def __setitem__(self, index: int, mark: int, /) -> None:
        """Do nothing: there is always one."""


def make_marks() -> Marks:
    """Return this process's marks: a wiped page, or what takes its place."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except OSError:
        return ComputedMarks()
    return memoryview(page).cast("Q")


MARKS: Final = make_marks()
"""``MARKS[0]`` is equal in one process and differs in its children. Compare it with what
``set_mark`` returned *before* the first random byte of the state that it guards."""


def set_mark() -> int:
    """Return this process's mark, drawn now where it has none yet.

    Two threads that draw at once may get two marks, of which one is soon another's: that spends
    what it guards early, and never late.
    """
    mark = MARKS[0]
    if mark == 0:
        MARKS[0] = int.from_bytes(urandom(8)) | 1
        mark = MARKS[0]
    return mark
