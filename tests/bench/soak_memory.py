"""``make soak``: a worker's memory when idle and after a million calls.

One worker serves Encrypt and Decrypt by turns from h2load. Its memory is looked at after every
tenth of the calls. The allocator moves it by a few MiB up and down, so the growth is that from the
median of the first three looks to that of the last three.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from processes import memory_kib
from rows import Row, Target
from support.sidecar import running_sidecar, sidecar_directory
from unary import make_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plan import Plan

PARTS = 10
MAX_WORKER_MIB = 100
LOOKS = 3
# What the allocator may still make of it; 3 bytes kept of each call would be as much.
MAX_GROWTH_MIB = 2.0


def run(plan: Plan) -> Iterator[Row]:
    """Put one worker under load, and look at it."""
    with running_sidecar() as sidecar, sidecar_directory() as directory:
        (worker,) = sidecar.workers()
        idle = memory_kib(worker, "VmRSS") / 1024
        servers = make_servers(sidecar, directory)
        seen: list[tuple[float, float]] = []
        for _ in range(PARTS):
            for server in servers.values():
                server.load(plan.soak_calls // PARTS // len(servers))
            whole, own = memory_kib(worker, "VmRSS"), memory_kib(worker, "RssAnon")
            seen.append((whole / 1024, own / 1024))
        if sidecar.workers() != [worker]:
            raise SystemExit("the worker was replaced meanwhile")
    limit = Target(MAX_WORKER_MIB, of_ratio=False, at_least=False)
    yield Row("memory of one worker, idle (VmRSS)", "MiB", idle, 1, target=limit)
    yield Row(
        f"memory of one worker after {plan.soak_calls:,} calls (VmRSS)",
        "MiB",
        seen[-1][0],
        1,
        target=limit,
    )
    yield Row(
        f"growth of its own memory over {plan.soak_calls:,} calls",
        "MiB",
        max(_middle(seen[-LOOKS:]) - _middle(seen[:LOOKS]), 0.0),
        1,
        target=Target(MAX_GROWTH_MIB, of_ratio=False, at_least=False),
        facts={f"after {number + 1}/{PARTS}": own for number, (_, own) in enumerate(seen)},
    )


def _middle(seen: Sequence[tuple[float, float]]) -> float:
    return statistics.median(own for _, own in seen)
