"""Batches: items per second of the sidecar's CPU time, and what they do to other callers.

A core that works for the sidecar alone serves this many; what the caller's side costs is not in
it. All processes of the sidecar count: supervisor, worker, recorder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from latency import PERCENTILES, Line, take_slices
from processes import cpu_seconds, family_of
from rows import Target, compare, middle, pick, take_turns
from support.remote import Remote
from support.sidecar import running_sidecar
from unary import SERVICE, make_requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plan import Plan
    from rows import Figures, Row
    from support.sidecar import Sidecar

ITEMS = 1_000
LONG = 10_000
# Each is of as many different calls; they take turns, so that nothing is remembered from the last.
SETS = 4
_PROGRAM = Path(__file__).with_name("caller_batches.py").read_text()
_TARGETS = {
    "BatchEncrypt": Target(100_000, of_ratio=False),
    "BatchDecrypt, of one call": Target(100_000, of_ratio=False),
    "BatchDecrypt, of 1,000 different calls": Target(50_000, of_ratio=False, aim=75_000),
    "BatchRewrap, of 1,000 different calls": None,
}


def run(plan: Plan) -> Iterator[Row]:
    """Measure throughput, then the wait of others."""
    batches = plan.calls // 120
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        service.run(_PROGRAM)
        service.run("prepare(client, items, sets)", items=ITEMS, sets=SETS)

        def measure(name: str) -> Figures:
            pids = family_of(sidecar)
            before = cpu_seconds(pids)
            wall_s = service.run("answer = send(name, count)", name=name, count=batches)
            used = cpu_seconds(pids) - before
            return {"per_core": ITEMS * batches / used, "per_s": ITEMS * batches / wall_s}

        taken = take_turns(
            {name: partial(measure, name) for name in _TARGETS},
            plan.rounds,
        )
        for name, target in _TARGETS.items():
            facts = {
                "items/s": middle(taken, name, "per_s"),
                "CPU µs an item": 1e6 / middle(taken, name, "per_core"),
            }
            rates = pick(taken, name, "per_core")
            yield compare(
                f"{name}, 1,000 × 256 B", "items/s per core", rates, target=target, facts=facts
            )
        yield from _measure_others(sidecar, service, plan)


def _measure_others(sidecar: Sidecar, service: Remote, plan: Plan) -> Iterator[Row]:
    """Compare what another caller of the same worker waits, with and without long batches."""
    service.run("prepare_long(items)", items=LONG)
    count = plan.calls // 20
    with Remote(sidecar) as other:
        line = Line(other)
        request, _ = make_requests(sidecar)["Encrypt"]
        line.open("Encrypt", f"unix:{sidecar.socket}", f"{SERVICE}Encrypt", request)

        def beside(count: int) -> list[float]:
            service.run("begin()")
            try:
                return line.sample("Encrypt", count)
            finally:
                service.run("end()")

        taken = take_slices(
            {"beside": beside, "alone": partial(line.sample, "Encrypt")}, plan.rounds, count
        )
    for part in PERCENTILES:
        yield compare(
            f"another caller beside batches of 10,000, {part} / without",
            "µs",
            pick(taken, "beside", part),
            pick(taken, "alone", part),
        )
