"""Killed at any instant, the sidecar and its database lose nothing (I5, I10).

Three threads of an operator rotate two keys without a pause, and disable, enable, schedule the
destruction of and keep their older versions; a service encrypts and decrypts; versions of a third
key are destroyed one after the other. Meanwhile processes are killed with SIGKILL at random
moments: single workers, whose work the others take over; a supervisor, whose workers must end by
themselves; a whole sidecar at once; and, where the store is on a server, the server with all its
processes.
After every kill the store is opened and gone through, authentication included.

A round is one life of a supervisor, and loses all but one of its workers before it ends itself: a
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
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from support.on_server import OnServer
from support.postgresql import running_server
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
from support.waiting import eventually

from keyside.names import KeyName
from keyside_sidecar.custody.file import FileCustodian
from keyside_sidecar.store import Store, VersionInfo, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.root

SOAK = os.environ.get("KEYSIDE_SOAK") == "1"
# Of the sidecar whose store is a file, and of those whose store is on a server.
KILLS = (400, 200) if SOAK else (40, 16)
KEYS = ("mail-credentials", "payroll")
DOOMED = KeyName("doomed")
KEPT = {VersionState.CURRENT, VersionState.ARCHIVED, VersionState.DISABLED}
CONFIG = f"""
[operators]
users = [{OPERATOR_UID}]

[keys.mail-credentials]
allow_groups = [{SERVICE_GID}]

[keys.payroll]
allow_groups = [{SERVICE_GID}]
suite = "ChaCha20-Poly1305"

[keys.doomed]
allow_groups = [{SERVICE_GID}]
"""
PROGRAM = (Path(__file__).parent / "support" / "storm_process.py").read_text()
OWNERS = frozenset({os.geteuid(), SIDECAR_UID})
NEWEST = 300
PATIENCE_S = 30.0


@dataclass
class Told:
    """What the looks at the store have found so far."""

    destroyed: set[int] = field(default_factory=set)


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

    def ask_to_stop(self) -> None:
        """Have it end what it does, and wait for ``stop``."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"stop\n")
        self._process.stdin.flush()

    def stop(self) -> dict[str, Any]:
        """Have it end; return how it went."""
        # It brings thousands of versions back, in the long form.
        self._process.communicate(b"stop\n", timeout=PATIENCE_S * (20 if SOAK else 4))
        assert self._process.returncode == 0
        return self.read()[-1]

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()


class Stage(Protocol):
    """What the storm rages over: sidecars on one store.

    Args:
        sidecars: They serve from the same store.
        kills: How many there are to be.
        workers: How many each sidecar has.
    """

    sidecars: Sequence[Sidecar]
    kills: int
    workers: int

    def open(self) -> Store:
        """Open the store as it is, kills or no kills."""

    def strike(self, choices: random.Random) -> None:
        """End a round: kill the sidecars, or what they depend on."""


class OnFile:
    """One sidecar, whose store is a file."""

    kills, workers = KILLS[0], 4

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self.sidecars: Sequence[Sidecar] = (sidecar,)

    def open(self) -> Store:
        """Open the store, or a copy where the sidecar was killed: recovery is its successor's."""
        sidecar = self._sidecar
        place = sidecar.store
        if sidecar.process is None:
            copy = sidecar.directory / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir(mode=0o700)
            for name in (place.name, f"{place.name}-wal"):
                if (place.parent / name).exists():
                    shutil.copy2(place.parent / name, copy / name)
            place = copy / place.name
        return open_store(f"sqlite:///{place}", sidecar)

    def strike(self, choices: random.Random) -> None:
        """Kill the sidecar."""
        kill_all(self._sidecar, choices)


class OnServers:
    """Two sidecars, whose store is on a server that is killed as well."""

    kills, workers = KILLS[1], 2

    def __init__(self, sidecars: Sequence[OnServer]) -> None:
        self.sidecars: Sequence[Sidecar] = sidecars
        database = sidecars[0].database
        assert database is not None
        self._url, self._server = database.url, database.server

    def open(self) -> Store:
        """Open the store."""
        return open_store(self._url, self.sidecars[0])

    def strike(self, choices: random.Random) -> None:
        """Kill one sidecar or the server; now and then both sidecars."""
        if choices.random() < 0.5:
            self._server.kill()
            time.sleep(choices.uniform(0, 0.2))
            self._server.start()
        else:
            for sidecar in choices.sample(self.sidecars, choices.choice((1, 1, 2))):
                kill_all(sidecar, choices)


def open_store(url: str, sidecar: Sidecar) -> Store:
    """Open a store with the root key."""
    custodian = FileCustodian.load(sidecar.root_key, owner_uids=OWNERS)
    return Store.open(url, custodian, owner_uids=OWNERS)


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Sidecars with several workers that are not started yet."""
    with ExitStack() as stack:
        directory = stack.enter_context(sidecar_directory())
        if request.param == "sqlite":
            made = Sidecar(directory, config=CONFIG, settings=f"workers = {OnFile.workers}")
            made.prepare()
            stack.callback(made.kill)
            yield OnFile(made)
            return
        database = stack.enter_context(running_server(keeps_data=True)).make_database()
        settings = f"workers = {OnServers.workers}"
        first = OnServer(directory, config=CONFIG, settings=settings, database=database)
        second = OnServer(
            stack.enter_context(sidecar_directory()),
            config=CONFIG,
            settings=settings,
            database=database,
            first=first,
        )
        for sidecar in (first, second):
            sidecar.prepare()
            stack.callback(sidecar.kill)
        yield OnServers((first, second))


@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 300)
def test_i5_i10_killed_at_any_instant_nothing_is_lost(stage: Stage) -> None:
    seed = int(os.environ.get("KEYSIDE_STORM_SEED", "0")) or random.randrange(1, 2**32)
    print(f"KEYSIDE_STORM_SEED={seed}")
    choices = random.Random(seed)
    for sidecar in stage.sidecars:
        sidecar.start()
    operators = [Actor(sidecar, "manage", OPERATOR_UID) for sidecar in stage.sidecars]
    service = Actor(stage.sidecars[0], "encrypt", SERVICE_UID)
    told = Told()
    try:
        kills = rage(stage, operators, service, told, choices)
        service.ask_to_stop()
        went = [operator.stop() for operator in operators]
        kept = service.stop()
        await_doom(stage)
    finally:
        for caller in (*operators, service):
            caller.kill()
    print(f"{kills} kills; operators: {went}; records: {kept}; destroyed: {len(told.destroyed)}")
    assert kept["lost"] == []
    assert [it["unexpected"] for it in (*went, kept)] == [[]] * (len(went) + 1)
    # The storm was one: kills broke calls off, and changes and records came through.
    assert sum(it["unavailable"] for it in went) > kills / 4
    assert sum(len(operator.reported) for operator in operators) > kills / 4
    assert kept["sealed"] >= kills / 4
    for sidecar in stage.sidecars:
        assert sidecar.stop() == 0
    check_store(stage, operators, told, whole=True)
    assert told.destroyed, "destructions were a part of it"
    for sidecar in stage.sidecars:
        log = sidecar.log.read_text()
        for trouble in ("STORE_TAMPERED", "ROOT_KEY_UNUSABLE", "uncaught exception", "went wrong"):
            assert trouble not in log
        assert "worker failed" not in log
        # Whatever was killed when: no record was changed, and the last run ended properly.
        verified = sidecar.verify_log()
        assert verified.returncode == 0, verified.stdout


def rage(
    stage: Stage,
    operators: Sequence[Actor],
    service: Actor,
    told: Told,
    choices: random.Random,
) -> int:
    """Kill and look, again and again; return how many kills there were. All serve in the end."""
    kills = 0
    while True:
        for sidecar in stage.sidecars:
            if sidecar.process is None:
                sidecar.start()
        for caller in (*operators, service):
            caller.await_progress(f"after {kills} kills")
        if kills >= stage.kills:
            return kills
        doom(stage)
        for _ in range(3):
            time.sleep(choices.uniform(0, 0.1))
            kill_one_process(stage, choices)
            kills += 1
            check_store(stage, operators, told)
        # Successors are on their way, and may be anywhere between their fork and serving.
        time.sleep(choices.uniform(0, 0.6))
        stage.strike(choices)
        kills += 1
        check_store(stage, operators, told)


def doom(stage: Stage) -> None:
    """Have a version of the third key destroyed as soon as a sidecar gets to it."""
    store = stage.open()
    now = datetime.now(UTC)
    done = store.rotate(DOOMED, actor_uid=OPERATOR_UID, expected_current=0, now=now)
    store.schedule_destruction(
        DOOMED, done.previous.number, actor_uid=OPERATOR_UID, now=now, after_s=0
    )
    store.close()


def await_doom(stage: Stage) -> None:
    """Wait until all that was doomed is destroyed."""
    store = stage.open()
    eventually(lambda: store.load_key(DOOMED).scheduled, lambda left: left == ())
    store.close()


def kill_one_process(stage: Stage, choices: random.Random) -> None:
    """Kill one of the workers that there are now, or a recorder."""

    def list_alive() -> list[int]:
        found = [
            pid for sidecar in stage.sidecars for pid in (*sidecar.workers(), *sidecar.recorders())
        ]
        return [pid for pid in found if is_running(pid)]

    os.kill(choices.choice(eventually(list_alive, bool)), signal.SIGKILL)


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


def check_store(
    stage: Stage, operators: Sequence[Actor], told: Told, *, whole: bool = False
) -> None:
    """Open the store and go through it.

    Args:
        stage: The storm's.
        operators: Know of versions that must be there.
        told: What earlier looks have found.
        whole: Look at every version, and unwrap it; otherwise at the newest. (That no row is
            missing, altered or too many is checked for all of them: the store does so by itself.)
    """
    for operator in operators:
        operator.read()
    store = stage.open()
    try:
        versions = {name: list_versions(store, KeyName(name), whole=whole) for name in KEYS}
        for key in store.list_keys():  # a moment later: the other workers go on
            if key.name == DOOMED:
                check_doomed(store, told)
                continue
            found = versions[key.name]
            top = max(found)
            current = [n for n, version in found.items() if version.state is VersionState.CURRENT]
            assert current == [top], "one current version, the newest"
            assert {version.state for version in found.values()} <= KEPT
            assert top - min(found) + 1 == len(found) == (top if whole else min(top, NEWEST))
            assert key.current_number == key.version_count >= top
            assert len({version.version_id for version in found.values()}) == len(found)
            if whole:
                for number in found:
                    assert store.find_version(key.name, number).material is not None
        for operator in operators:
            for (name, number), version_id in operator.reported.items():
                if whole or number >= min(versions[name]):
                    assert versions[name][number].version_id.hex() == version_id
    finally:
        store.close()


def check_doomed(store: Store, told: Told) -> None:
    """Nothing but what was doomed is destroyed, and what is destroyed stays so."""
    found = list_versions(store, DOOMED, whole=True)
    current = max(found)
    assert found[current].state is VersionState.CURRENT
    for number in found:
        if number == current:
            continue
        opened = store.find_version(DOOMED, number)  # it may be destroyed by now
        version = opened.info
        assert version.destroy_requested_by_uid == OPERATOR_UID or number == current - 1
        if version.state is VersionState.DESTROYED:
            assert version.destroyed_at is not None
            assert opened.material is None
            told.destroyed.add(number)
        else:
            assert number not in told.destroyed
            assert opened.material is not None


def list_versions(store: Store, name: KeyName, *, whole: bool) -> dict[int, VersionInfo]:
    """Return the newest versions of a key, or all of them, by number."""
    found: dict[int, VersionInfo] = {}
    while not found or (whole and min(found) > 1):
        page = store.list_versions(name, before=min(found, default=None), limit=NEWEST)
        found |= {version.number: version for version in page}
    return found
