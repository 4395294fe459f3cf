"""How often this process has forked, so that a counter copied into a child is never used there.

A sealer that went on counting in parent and child would seal two messages under one nonce. The
count is kept by ``os.register_at_fork``, which also runs for forks by C code that keeps the
interpreter's rules. It can't see a virtual machine that is cloned while running.
"""

from __future__ import annotations

import os


class _Forks:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def increment(self) -> None:
        self.count += 1


FORKS = _Forks()
os.register_at_fork(after_in_child=FORKS.increment)
