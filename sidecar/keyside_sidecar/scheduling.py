"""How a worker's threads take turns, and how gRPC waits: what costs least CPU a call (ADR 11).

Half of what a call cost was the kernel switching between the worker's own threads: each byte that
one of them sends wakes another, which takes the CPU from it at once. As batch threads they don't:
one that is woken waits until the other sleeps or its turn is over, and finds more to do then. Where
a core is idle nothing changes, so that a single call is as fast as before.

And gRPC reads sockets in the thread that waits for them (its older listener), not in a pool of
others, each of which would have to be woken.

What a worker has made before it serves stays for its life: the garbage collector is to leave it
alone.
"""

from __future__ import annotations

import gc
import logging
import os
from typing import Final

from keyside_sidecar.log import event

_log = logging.getLogger(__name__)

# A name that gRPC does not know any more is ignored; then it is as it would be without this.
_EXPERIMENTS: Final = "-event_engine_listener"
# Objects made, less those freed, before the youngest are looked at; and each older generation.
_GC_THRESHOLDS: Final = (20_000, 20, 100)


def arrange() -> None:
    """Set what holds for this process and the threads that it will start; before gRPC's import."""
    os.environ.setdefault("GRPC_EXPERIMENTS", _EXPERIMENTS)
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a system call filter; it costs speed only
        event(_log, logging.INFO, "no batch scheduling", error=str(error))


def settle() -> None:
    """Take what there is for permanent, when the worker is about to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
