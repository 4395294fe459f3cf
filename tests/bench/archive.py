"""What an archive of versions costs: start to serving, memory, and decrypting under random ones.

Sidecars, alike but for how many archived versions their key has, take turns. Each is compared
with the one whose archive is the smallest.

The first pass opens envelopes of as many versions for the first time (a look in the store and an
unwrapping each); the second opens random ones, after a pass over all, from memory.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from processes import memory_kib
from rows import compare, pick
from support.remote import Remote
from support.sidecar import SERVICE_UID, SIDECAR_UID, Sidecar, sidecar_directory

from keyside.envelope import seal
from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from plan import Plan
    from rows import Figures, Row, Taken

FIGURES: Final = {
    "start to serving": "s",
    "Decrypt under a version not used before": "µs",
    "Decrypt under a random version": "µs",
    "memory of the worker": "MiB",
}
KEY: Final = KeyName("mail-credentials")
OWNERS: Final = frozenset({os.geteuid(), SIDECAR_UID})
NOW: Final = datetime.now(UTC)
# As many look-ups for every archive, so that what is compared is the cost of one. No archive may
# have fewer versions than are opened for the first time.
FIRST: Final = 100
ENVELOPES: Final = 1_000
PAYLOAD: Final = bytes(256)
# They take turns after so many.
BLOCK: Final = 20
_PREPARE: Final = """
import time
envelopes = [bytes.fromhex(line) for line in open(path)]
def go(which):
    began = time.perf_counter()
    for number in which:
        assert len(client.decrypt(envelopes[number])) == 256
    return time.perf_counter() - began
client.status()
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
    numbers = choices.sample(range(2, size + 2), FIRST)
    numbers += choices.choices(range(2, size + 2), k=ENVELOPES - FIRST)
    with path.open("w") as file:
        for number in numbers:
            material = store.find_version(KEY, number).material
            assert material is not None
            file.write(seal(material, PAYLOAD, {}).hex() + "\n")
    store.close()
    for name in ("", "-wal", "-shm"):
        place = sidecar.store.with_name(sidecar.store.name + name)
        if place.exists() and os.geteuid() == 0:
            os.chown(place, SIDECAR_UID, SIDECAR_UID)
    return sidecar, path


class Opened:
    """A started sidecar and a service that uses it.

    Args:
        sidecar: Not started yet.
        path: Of the envelopes.
        stack: Ends what is started.
    """

    def __init__(self, sidecar: Sidecar, path: Path, stack: ExitStack) -> None:
        began = time.perf_counter()
        sidecar.start()
        self._start_s = time.perf_counter() - began
        stack.callback(sidecar.kill)
        (self._worker,) = sidecar.workers()
        self._service = stack.enter_context(Remote(sidecar, SERVICE_UID))
        self._service.run(_PREPARE, path=str(path))
        self._spent_s = dict.fromkeys(("first", "all", "again"), 0.0)

    def decrypt(self, part: str, which: Sequence[int]) -> None:
        """Open some of the envelopes, and add the time to that of ``part``."""
        self._spent_s[part] += self._service.run("answer = go(which)", which=list(which))

    def figures(self) -> Figures:
        """Return what was found."""
        first_us = self._spent_s["first"] / FIRST * 1e6
        again_us = self._spent_s["again"] / ENVELOPES * 1e6
        memory_mib = memory_kib(self._worker, "RssAnon") / 1024
        found = self._start_s, first_us, again_us, memory_mib
        return dict(zip(FIGURES, found, strict=True))


def measure(archives: Sequence[tuple[Sidecar, Path]], choices: random.Random) -> list[Figures]:
    """Start all sidecars, use them in turns, and end them."""
    again = [choices.randrange(ENVELOPES) for _ in range(ENVELOPES)]
    with ExitStack() as stack:
        opened = [Opened(*archive, stack) for archive in archives]
        passes = {"first": range(FIRST), "all": range(ENVELOPES), "again": again}
        for part, numbers in passes.items():
            for start in range(0, len(numbers), BLOCK):
                for one in opened:
                    one.decrypt(part, numbers[start : start + BLOCK])
        return [one.figures() for one in opened]


def run(plan: Plan) -> Iterator[Row]:
    """Measure all archives, the largest first in every other round."""
    choices = random.Random(20261124)
    with ExitStack() as stack:
        archives = {}
        for size in plan.archives:
            directory = stack.enter_context(sidecar_directory())
            archives[f"{size:,}"] = make_archive(directory, size, choices)
        taken: Taken = {name: [] for name in archives}
        for number in range(plan.slow_rounds + 1):
            names = list(archives)[:: (1, -1)[number % 2]]
            found = measure([archives[name] for name in names], choices)
            if number:  # the first round warms the machine up
                for name, figures in zip(names, found, strict=True):
                    taken[name].append(figures)
    smallest, *larger = taken
    for figure, unit in FIGURES.items():
        for name in larger:
            yield compare(
                f"{figure}, {name} archived versions / {smallest}",
                unit,
                pick(taken, name, figure),
                pick(taken, smallest, figure),
            )
