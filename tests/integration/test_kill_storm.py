"""Killed at any instant of a rollover, the sidecar loses nothing (I5, I10).

Three threads of an operator rotate two keys without a pause, a service encrypts and decrypts, and
meanwhile processes of the sidecar are killed with SIGKILL at random moments: single workers, whose
work the others take over; the supervisor, whose workers must end by themselves; and everything at
once. After every kill the store is opened and gone through, authentication included.

A round is one life of the supervisor, and loses all but one of its workers before it ends itself: a
supervisor whose workers keep dying pauses longer and longer before it starts the next.

``KEYSIDE_STORM_SEED`` repeats the random choices of a run (not its timing, which is the machine's).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.processes import await_ended, is_running
from support.sidecar import (
    IS_ROOT,
    OPERATOR_UID,
    PYTHON,
    SERVICE_GID,
    SERVICE_UID,
    SIDECAR_UID,
    Sidecar,
    sidecar_directory,
)

from keyside.names import KeyName
from keyside_sidecar.custody.file import FileCustodian
from keyside_sidecar.store import Store, VersionInfo, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

KILLS = 1000 if os.environ.get("KEYSIDE_SOAK") == "1" else 100
WORKERS = 4
KEYS = ("mail-credentials", "payroll")
CONFIG = f"""
[operators]
users = [{OPERATOR_UID}]

[keys.mail-credentials]
allow_groups = [{SERVICE_GID}]

[keys.payroll]
allow_groups = [{SERVICE_GID}]
suite = "ChaCha20-Poly1305"
"""
PROGRAM = (Path(__file__).parent / "support" / "storm_process.py").read_text()
OWNERS = frozenset({os.geteuid(), SIDECAR_UID})
NEWEST = 300
PATIENCE_S = 30.0


class Actor:
    """One of the callers, started once and alive through the whole storm."""

    def __init__(self, sidecar: Sidecar, role: str, uid: int) -> None:
        self._lines = sidecar.directory / f"{role}.jsonl"
        self._read = 0
        self.reported: dict[tuple[str, int], str] = {}
        who: dict[str, Any] = {}
        if IS_ROOT:
            who = {"user": uid, "group": uid, "extra_groups": []}
        with self._lines.open("wb") as lines, (sidecar.directory / f"{role}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-c", PROGRAM, role, *KEYS],
                env={
                    "PATH": os.environ["PATH"],
                    "KEYSIDE_SOCKET": str(sidecar.socket),
                    "KEYSIDE_TEST_OWNER": str(SIDECAR_UID if IS_ROOT else os.geteuid()),
                },
                stdin=subprocess.PIPE,
                stdout=lines,
                stderr=log,
                cwd="/",
                **who,
            )

    def read(self) -> list[dict[str, Any]]:
        """Return what it has written since the last time, and remember reported versions."""
        with self._lines.open("rb") as lines:
            lines.seek(self._read)
            text = lines.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        for version in found:
            if "id" in version:
                place = version["key"], version["number"]
                known = self.reported.setdefault(place, version["id"])
                assert known == version["id"], f"{place} names two materials"
        return found

    def await_progress(self, seen: str) -> None:
        """Wait until something newly done is reported.

        Args:
            seen: Where in the storm this is, for the failure's text.
        """
        self.read()
        deadline = time.monotonic() + PATIENCE_S
        while not self.read():
            assert self._process.poll() is None, "the caller has ended"
            assert time.monotonic() < deadline, f"nothing comes through {seen}"
            time.sleep(0.01)

    def stop(self) -> dict[str, Any]:
        """Have it end; return how it went."""
        self._process.communicate(b"stop\n", timeout=PATIENCE_S * 4)
        assert self._process.returncode == 0
        return self.read()[-1]

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A sidecar with several workers that is not started yet."""
    with sidecar_directory() as directory:
        made = Sidecar(directory, config=CONFIG, settings=f"workers = {WORKERS}")
        made.prepare()
        yield made
        made.kill()


@pytest.mark.soak
@pytest.mark.timeout(300 if KILLS == 100 else 3600)
def test_i10_killed_at_any_instant_of_a_rollover_nothing_is_lost(sidecar: Sidecar) -> None:
    seed = int(os.environ.get("KEYSIDE_STORM_SEED", "0")) or random.randrange(1, 2**32)
    print(f"KEYSIDE_STORM_SEED={seed}")
    choices = random.Random(seed)
    sidecar.start()
    operator = Actor(sidecar, "rotate", OPERATOR_UID)
    service = Actor(sidecar, "encrypt", SERVICE_UID)
    kills = 0
    try:
        while kills < KILLS:
            if sidecar.process is None:
                sidecar.start()
            for caller in (operator, service):
                caller.await_progress(f"after {kills} kills")
            for _ in range(WORKERS - 1):
                time.sleep(choices.uniform(0, 0.1))
                kill_one_worker(sidecar, choices)
                kills += 1
                check_store(sidecar.store, sidecar.root_key, operator)
            # Successors are on their way, and may be anywhere between their fork and serving.
            time.sleep(choices.uniform(0, 0.6))
            kill_all(sidecar, choices)
            kills += 1
            check_copy(sidecar, operator)
        sidecar.start()
        operator.await_progress("after the last kill")
        went = operator.stop()
        kept = service.stop()
    finally:
        operator.kill()
        service.kill()
    print(f"{kills} kills; rotations: {went}; records: {kept}")
    assert kept["lost"] == []
    assert (went["unexpected"], kept["unexpected"]) == ([], [])
    # The storm was one: kills broke calls off, and rotations and records came through.
    assert went["unavailable"] > kills / 4
    assert len(operator.reported) > kills / WORKERS
    assert kept["sealed"] >= kills / WORKERS
    assert sidecar.stop() == 0
    check_store(sidecar.store, sidecar.root_key, operator, whole=True)
    log = sidecar.log.read_text()
    for trouble in ("STORE_TAMPERED", "ROOT_KEY_UNUSABLE", "uncaught exception", "worker failed"):
        assert trouble not in log


def kill_one_worker(sidecar: Sidecar, choices: random.Random) -> None:
    """Kill one of the workers that the supervisor has now."""
    alive = [pid for pid in sidecar.workers() if is_running(pid)]
    os.kill(choices.choice(alive), signal.SIGKILL)


def kill_all(sidecar: Sidecar, choices: random.Random) -> None:
    """End the sidecar: all processes at once, or the supervisor alone."""
    assert sidecar.process is not None
    workers = sidecar.workers()
    if choices.random() < 0.5:
        sidecar.kill()
    else:
        sidecar.process.kill()
        sidecar.wait()
    await_ended(workers, PATIENCE_S)


def check_copy(sidecar: Sidecar, operator: Actor) -> None:
    """Check a copy of what the killed sidecar has left: recovering is for its successor to do."""
    copy = sidecar.directory / "copy"
    copy.mkdir(mode=0o700)
    for name in (sidecar.store.name, f"{sidecar.store.name}-wal"):
        if (sidecar.store.parent / name).exists():
            shutil.copy2(sidecar.store.parent / name, copy / name)
    check_store(copy / sidecar.store.name, sidecar.root_key, operator)
    shutil.rmtree(copy)


def check_store(path: Path, root_key: Path, operator: Actor, *, whole: bool = False) -> None:
    """Open the store and go through it.

    Args:
        path: The database.
        root_key: The root key's file.
        operator: Knows of versions that must be there.
        whole: Look at every version, and unwrap it; otherwise at the newest. (That no row is
            missing, altered or too many is checked for all of them: the store does so by itself.)
    """
    operator.read()
    custodian = FileCustodian.load(root_key, owner_uids=OWNERS)
    store = Store.open(f"sqlite:///{path}", custodian, owner_uids=OWNERS)
    try:
        versions = {name: list_versions(store, KeyName(name), whole=whole) for name in KEYS}
        for key in store.list_keys():  # a moment later: the other workers go on rotating
            found = versions[key.name]
            top = max(found)
            states = [found[number].state for number in sorted(found)]
            archived = [VersionState.ARCHIVED] * (len(found) - 1)
            assert states == [*archived, VersionState.CURRENT], "one current version, the newest"
            assert top - min(found) + 1 == len(found) == (top if whole else min(top, NEWEST))
            assert key.current_number == key.version_count >= top
            assert len({version.version_id for version in found.values()}) == len(found)
            if whole:
                for number in found:
                    assert store.find_version(key.name, number).material is not None
        for (name, number), version_id in operator.reported.items():
            if whole or number >= min(versions[name]):
                assert versions[name][number].version_id.hex() == version_id
    finally:
        store.close()


def list_versions(store: Store, name: KeyName, *, whole: bool) -> dict[int, VersionInfo]:
    """Return the newest versions of a key, or all of them, by number."""
    found: dict[int, VersionInfo] = {}
    while not found or (whole and min(found) > 1):
        page = store.list_versions(name, before=min(found, default=None), limit=NEWEST)
        found |= {version.number: version for version in page}
    return found
