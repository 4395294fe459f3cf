"""What an archive of versions costs: start to serving, memory, and decrypting under random ones.

Three sidecars, alike but for how many archived versions their key has, take turns. The figures are
medians over the rounds, and the ratios are to the smallest archive, round by round.

The first pass opens an envelope of each of many versions for the first time (a look in the store
and an unwrapping each); the second opens random ones again, from memory.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from support.remote import Remote
from support.sidecar import SERVICE_UID, SIDECAR_UID, Sidecar, sidecar_directory

from keyside.envelope import seal
from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES: Final = (10, 1_000, 10_000)
KEY: Final = KeyName("mail-credentials")
OWNERS: Final = frozenset({os.geteuid(), SIDECAR_UID})
NOW: Final = datetime.now(UTC)
# As many look-ups for every archive, so that what is compared is the cost of one.
ENVELOPES: Final = 1_000
PAYLOAD: Final = bytes(256)
_DECRYPT: Final = """
import time
envelopes = [bytes.fromhex(line) for line in open(path)]
def go(which):
    began = time.perf_counter()
    for number in which:
        assert len(client.decrypt(envelopes[number])) == 256
    return (time.perf_counter() - began) / len(which) * 1e6
client.status()
answer = [go(first), go(again)]
"""


def add_archived(store: Store, count: int) -> None:
    """Give the key archived versions, in one transaction."""
    with store.session.changing() as draft:
        key = draft.snapshot.keys[KEY]
        first = key["last_number"] + 1
        wrapping = draft.reader.wrapping
        added = [
            {**wrapping.make_version(KEY, number, NOW, None, 0)[0], "state": "ARCHIVED"}
            for number in range(first, first + count)
        ]
        draft.change.change_key(key, {"last_number": first + count - 1}, added=added)
        draft.finish(KEY)


def make_archive(directory: Path, size: int, choices: random.Random) -> tuple[Sidecar, Path]:
    """Make a sidecar whose key has ``size`` archived versions, and envelopes under them."""
    sidecar = Sidecar(directory)
    sidecar.prepare()
    custodian = FileCustodian.load(sidecar.root_key, owner_uids=OWNERS)
    store = Store.open(f"sqlite:///{sidecar.store}", custodian, owner_uids=OWNERS)
    store.create_key(KEY, NOW)
    add_archived(store, size)
    path = directory / "envelopes"
    numbers = list(range(2, size + 2)) * (ENVELOPES // size + 1)
    choices.shuffle(numbers)
    with path.open("w") as file:
        for number in numbers[:ENVELOPES]:
            material = store.find_version(KEY, number).material
            assert material is not None
            file.write(seal(material, PAYLOAD, {}).hex() + "\n")
    store.close()
    for name in ("", "-wal", "-shm"):
        place = sidecar.store.with_name(sidecar.store.name + name)
        if place.exists() and os.geteuid() == 0:
            os.chown(place, SIDECAR_UID, SIDECAR_UID)
    return sidecar, path


def read_memory_kib(pid: int) -> int:
    """Return what a process holds in memory of its own, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise SystemExit("the kernel does not say how much memory a process has")


def measure(sidecar: Sidecar, path: Path, choices: random.Random) -> dict[str, float]:
    """Start a sidecar, use it and stop it."""
    began = time.perf_counter()
    sidecar.start()
    start_s = time.perf_counter() - began
    (worker,) = sidecar.workers()
    first = list(range(ENVELOPES))
    again = [choices.randrange(ENVELOPES) for _ in range(ENVELOPES)]
    with Remote(sidecar, SERVICE_UID) as service:
        first_us, again_us = service.run(_DECRYPT, path=str(path), first=first, again=again)
    memory_kib = read_memory_kib(worker)
    sidecar.stop()
    return {
        "start to serving, ms": start_s * 1000,
        "Decrypt under a version not used before, µs": first_us,
        "Decrypt under a random version, µs": again_us,
        "memory of the worker, KiB": memory_kib,
    }


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure all archives in turns; print the table and return its rows."""
    choices = random.Random(20261124)
    taken: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    with ExitStack() as stack:
        archives = {}
        for size in SIZES:
            directory = stack.enter_context(sidecar_directory())
            archives[size] = make_archive(directory, size, choices)
        for number in range(rounds + 1):
            for size in SIZES:
                found = measure(*archives[size], choices)
                if number:  # the first round warms the machine up
                    taken[size].append(found)
    rows = list(_compare(taken, rounds))
    print()
    print(f"{'archived versions':46}" + "".join(f"{size:>16,}" for size in SIZES))
    for name in taken[SIZES[0]][0]:
        cells = [f"{statistics.median(one[name] for one in taken[SIZES[0]]):16,.0f}"]
        cells += [
            f"{row['ours']:9,.0f} ({row['ratio']:.2f})"
            for row in rows
            if row["name"].startswith(name)
        ]
        print(f"{name:46}" + "".join(f"{cell:>16}" for cell in cells))
    return rows


def _compare(taken: dict[int, list[dict[str, float]]], rounds: int) -> Iterator[dict[str, Any]]:
    base = taken[SIZES[0]]
    for name in base[0]:
        what, _, unit = name.rpartition(", ")
        for size in SIZES[1:]:
            yield {
                "name": f"{what}, {unit}: {size:,} archived versions against {SIZES[0]}",
                "ours": statistics.median(one[name] for one in taken[size]),
                "theirs": statistics.median(one[name] for one in base),
                "unit": unit,
                "ratio": statistics.median(
                    mine[name] / its[name] for mine, its in zip(taken[size], base, strict=True)
                ),
                "rounds": rounds,
            }


if __name__ == "__main__":
    print(json.dumps(run(int(os.environ.get("BENCH_ROUNDS", "3"))), indent=2))
