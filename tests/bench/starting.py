"""From the start of ``keysided serve`` to READY=1, and a worker's memory then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from processes import memory_kib
from rows import Target, compare, pick, take_turns
from support.sidecar import SERVICE_GID, Sidecar, sidecar_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Figures, Row

MAX_START_S = 1.5
MAX_WORKER_MIB = 100
CONFIG = "".join(
    f"\n[keys.{name}]\nallow_groups = [{SERVICE_GID}]\n"
    for name in ("mail-credentials", "payroll", "sessions")
)


def run(plan: Plan) -> Iterator[Row]:
    """Start a sidecar with three keys, and stop it, again and again."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory, CONFIG)
        sidecar.prepare()
        try:
            taken = take_turns({"start": lambda: _start(sidecar)}, plan.rounds)
        finally:
            sidecar.kill()
    yield compare(
        "start to serving, store with 3 keys",
        "s",
        pick(taken, "start", "start_s"),
        target=Target(MAX_START_S, of_ratio=False, at_least=False),
    )
    yield compare(
        "memory of one worker, idle (VmRSS)",
        "MiB",
        pick(taken, "start", "rss_mib"),
        target=Target(MAX_WORKER_MIB, of_ratio=False, at_least=False),
    )


def _start(sidecar: Sidecar) -> Figures:
    began = time.perf_counter()
    sidecar.start()
    start_s = time.perf_counter() - began
    (worker,) = sidecar.workers()
    rss_mib = memory_kib(worker, "VmRSS") / 1024
    sidecar.stop()
    return {"start_s": start_s, "rss_mib": rss_mib}
