"""What a fork does to clients, as found with grpcio 1.85 (tests/unit/test_client_fork.py).

    before the fork, in the parent             in the child
    ------------------------------             ------------
    no call was made yet                       every client works
    calls were made, none is under way         clients work: they connect anew
    a call is under way in another thread      ClosedClient: gRPC skips its own fork handling then,
    an AsyncClient is open                       and the child may crash or hang, with an
                                                 open AsyncClient also as it exits
    calls were made, and                       ClosedClient: gRPC would hang
      GRPC_ENABLE_FORK_SUPPORT=0

The parent goes on unharmed in each case. Only this package's calls are seen: another user of gRPC
in the same process that is inside gRPC during the fork spoils the child unseen.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from keyside.errors import ClosedClient

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMEDY: Final = (
    "fork before the first call and before opening an AsyncClient, "
    'or start the process with multiprocessing\'s "spawn" or "forkserver"'
)


class _Process:
    """This process's gRPC use by Keyside clients, since it was forked."""

    def __init__(self, generation: int, unusable: str) -> None:
        self.generation = generation
        self.unusable = unusable
        self.opening = threading.Lock()
        self.counting = threading.RLock()  # re-entrant: a signal handler may fork
        self.calls_under_way = 0
        self.opened = False
        self.open_async: weakref.WeakSet[object] = weakref.WeakSet()
        self.inherited: list[object] = []


_process = _Process(0, "")


def generation() -> int:
    """Return how many forks lie between this process and the one that imported this module."""
    return _process.generation


def opening() -> threading.Lock:
    """Return the lock under which channels are made; a fresh one in each process."""
    return _process.opening


def check_usable() -> None:
    """Raise where this process was forked at a moment that gRPC does not survive.

    Raises:
        ClosedClient: Reason ``FORKED``.
    """
    if _process.unusable:
        raise ClosedClient(_process.unusable, reason="FORKED", remedy=_REMEDY)


def note_opened(async_channel: object | None = None) -> None:
    """Remember that a channel was made, and that this one is asyncio's until it is closed."""
    _process.opened = True
    if async_channel is not None:
        _process.open_async.add(async_channel)


def note_closed(async_channel: object) -> None:
    """Remember that an asyncio channel was closed."""
    _process.open_async.discard(async_channel)


def keep_inherited(channel: object) -> None:
    """Keep a parent's channel alive, so that no destructor of it runs in this process."""
    _process.inherited.append(channel)


@contextmanager
def calling() -> Iterator[None]:
    """Count this thread as inside gRPC."""
    process = _process
    with process.counting:
        process.calls_under_way += 1
    try:
        yield
    finally:
        with process.counting:
            process.calls_under_way -= 1


def _before_fork() -> None:
    _process.counting.acquire()


def _after_fork_in_parent() -> None:
    _process.counting.release()


def _after_fork_in_child() -> None:
    global _process  # noqa: PLW0603  (it is the process's)
    parent = _process
    unusable = parent.unusable
    if parent.calls_under_way:
        unusable = "this process was forked while another thread was in a Keyside call"
    elif len(parent.open_async):
        unusable = "this process was forked while an AsyncClient was open"
    elif parent.opened and _is_fork_support_off():
        unusable = (
            "this process was forked after Keyside calls, with gRPC's fork support turned off "
            "(GRPC_ENABLE_FORK_SUPPORT)"
        )
    _process = _Process(parent.generation + 1, unusable)
    _process.inherited = [parent]


def _is_fork_support_off() -> bool:
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in {"0", "f", "false", "n", "no"}


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
