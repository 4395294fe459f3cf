"""I10: several processes on one store, and processes that are killed while they change it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.made_store import BANK, KINDS, MAIL, NOW, MadeStore, make_store_of

from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store, changing

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

# Forked from a process that has imported everything and has no threads: quick, and safe.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.unit.made_store"])
KILLS = {"sqlite": 30, "postgresql": 12}


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeStore:
    made = make_store_of(request, tmp_path)
    store = made.open()
    changing.create_key(store.session, MAIL, NOW)
    store.close()
    return made


def place(made: MadeStore) -> tuple[str, Path]:
    """Return what another process needs to open the store."""
    return made.url, made.path.with_name(f"{made.path.name}.root.key")


def _open(place: tuple[str, Path]) -> Store:
    url, root_key = place
    custodian = FileCustodian.load(root_key, owner_uids=frozenset({os.geteuid()}))
    return Store.open(url, custodian, busy_timeout_s=30)


def _rotate(place: tuple[str, Path], count: int, started: Any, reports: Connection) -> None:
    """Rotate, and report every version after its commit."""
    store = _open(place)
    started.wait()
    for _ in range(count):
        info = changing.rotate(
            store.session, MAIL, actor_uid=0, expected_current=0, now=NOW
        ).version.info
        reports.send((info.number, info.version_id))


def _create(place: tuple[str, Path], started: Any, reports: Connection) -> None:
    store = _open(place)
    started.wait()
    made = [changing.create_key(store.session, KeyName(f"key-{n}"), NOW) for n in range(10)]
    ids = [store.load_key(KeyName(f"key-{n}")).current.info.version_id for n in range(10)]
    reports.send((made, ids))


def begin(target: Any, *args: Any) -> tuple[ForkServerProcess, Connection]:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=target, args=(*args, theirs))
    child.start()
    theirs.close()
    return child, ours


def drain(reports: Connection) -> list[Any]:
    found = []
    try:
        while True:
            found.append(reports.recv())
    except EOFError:
        return found


def check_whole(made: MadeStore, committed: dict[int, bytes]) -> int:
    """Check that there is one current version, that no number is missing, and that all open."""
    store = made.open()
    versions = store.list_versions(MAIL, before=None, limit=100_000)
    assert [v.number for v in versions] == list(range(len(versions), 0, -1))
    assert [v.number for v in versions if v.state == "CURRENT"] == [len(versions)]
    assert made.run("SELECT count(*) FROM key_versions WHERE state = 'CURRENT'") == [(1,)]
    for number, version_id in committed.items():
        found = store.find_version(MAIL, number)
        assert found.info.version_id == version_id
        assert found.material is not None
    assert store.verify_page(MAIL, after=0, limit=100_000) is None
    store.close()
    return len(versions)


def test_two_processes_racing_rotations_make_every_version_once(made: MadeStore) -> None:
    started = CONTEXT.Event()
    children = [begin(_rotate, place(made), 50, started) for _ in range(2)]
    started.set()
    reported = [report for _, reports in children for report in drain(reports)]
    for child, _ in children:
        child.join(60)
        assert child.exitcode == 0
    assert sorted(number for number, _ in reported) == list(range(2, 102))
    assert check_whole(made, dict(reported)) == 101


def test_processes_that_start_at_once_make_each_key_once(made: MadeStore) -> None:
    started = CONTEXT.Event()
    children = [begin(_create, place(made), started) for _ in range(3)]
    started.set()
    answers = [reports.recv() for _, reports in children]
    for child, _ in children:
        child.join(60)
        assert child.exitcode == 0
    for made_by in zip(*(answer[0] for answer in answers), strict=True):
        assert sorted(made_by) == [False, False, True]
    assert len({tuple(answer[1]) for answer in answers}) == 1


def test_a_process_killed_at_any_instant_leaves_a_whole_store(made: MadeStore) -> None:
    """A version that was reported is there; one current; numbers without a gap; all open."""
    chance = random.Random(4711)
    started = CONTEXT.Event()
    started.set()
    committed: dict[int, bytes] = {}
    count = 1
    for _ in range(KILLS[made.url.partition(":")[0].partition("+")[0]]):
        child, reports = begin(_rotate, place(made), 1_000_000, started)
        number, version_id = reports.recv()
        committed[number] = version_id
        time.sleep(chance.uniform(0, 0.03))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        for number, version_id in drain(reports):
            assert committed.setdefault(number, version_id) == version_id
        child.join(60)
        before, count = count, check_whole(made, committed)
        assert count > before
        assert max(committed) in (count, count - 1), "at most one commit was not reported"


def test_a_killed_process_holds_up_nobody(made: MadeStore) -> None:
    started = CONTEXT.Event()
    started.set()
    child, reports = begin(_rotate, place(made), 1_000_000, started)
    reports.recv()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    drain(reports)
    store = made.open(busy_timeout_s=1)
    changing.rotate(store.session, MAIL, actor_uid=0, expected_current=0, now=NOW)
    assert changing.create_key(store.session, BANK, NOW)
    store.close()
