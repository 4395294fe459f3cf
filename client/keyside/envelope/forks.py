"""Which process this is, so that a counter copied into a forked child is never used there.

A sealer that went on counting in parent and child would seal two messages under one nonce. The
process id tells them apart from the fork's first instruction, also where C code forks behind
the interpreter's back. A number of processes later the id may be given out again; so there is a
count of forks beside it, kept by ``os.register_at_fork``. Neither sees a fork by C code whose
child is given the same id (process 1 of a container that makes a container), nor a virtual
machine that is cloned while running.
"""

from __future__ import annotations

import os
from os import getpid


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
