"""Several sidecars on one PostgreSQL store: racing, cut off, and lied to (I5, I6, I10, I12)."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from support.on_server import OnServer
from support.remote import Remote
from support.sidecar import (
    OPERATOR_GID,
    OPERATOR_UID,
    SERVICE_GID,
    SERVICE_UID,
    SIDECAR_UID,
    sidecar_directory,
)
from support.waiting import eventually

from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store, VersionState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.postgresql import Database, Server

pytestmark = pytest.mark.root

KEY = KeyName("mail-credentials")
CONFIG = f"""
[operators]
users = [{OPERATOR_UID}]

[keys.mail-credentials]
allow_groups = [{SERVICE_GID}, {OPERATOR_GID}]
rotate_after_bytes = "1MiB"
propagation = "0s"

[keys.payroll]
allow_groups = [{SERVICE_GID}]
"""
SIDECARS = 3
ROLLOVERS = 200
# Rolls over whatever is current, if nobody else has, until there are enough versions.
RACE = f"""
mine, lost = [], 0
while True:
    current = client.get_key({KEY!r}).current_version
    if current > {ROLLOVERS}:
        break
    try:
        mine.append(client.rotate_key({KEY!r}, current).version.number)
    except keyside.errors.Conflict:
        lost += 1
answer = [mine, lost]
"""
# Uses versions up, until there are enough; returns the envelopes.
USE_UP = f"""
import time
kept, version = [], 0
while version <= {ROLLOVERS}:
    kept.append(client.encrypt({KEY!r}, bytes(1 << 20)).hex())
    version = client.get_key({KEY!r}).current_version
    time.sleep(0.1)
answer = kept
"""
# Encrypts and decrypts until told to stop by a file; what failed, and how often it worked.
WORK = f"""
import os, time
done, failed = 0, []
opened = client.encrypt({KEY!r}, b"before")
while not os.path.exists(stop):
    try:
        envelope = client.encrypt("payroll", b"x" * 100)
        assert client.decrypt(envelope) == b"x" * 100
        assert client.decrypt(opened) == b"before"
        done += 1
    except Exception as error:
        failed.append(repr(error))
answer = [done, failed]
"""


@pytest.fixture
def database(postgresql_server: Server) -> Iterator[Database]:
    made = postgresql_server.make_database()
    yield made
    made.drop()


@contextmanager
def running_fleet(database: Database, count: int) -> Iterator[list[OnServer]]:
    """Give sidecars that serve from one store, each as on a host of its own."""
    with ExitStack() as stack:
        fleet: list[OnServer] = []
        for _ in range(count):
            directory = stack.enter_context(sidecar_directory())
            first = fleet[0] if fleet else None
            sidecar = OnServer(directory, config=CONFIG, database=database, first=first)
            sidecar.prepare()
            stack.callback(sidecar.kill)
            sidecar.start()
            fleet.append(sidecar)
        yield fleet


def open_store(sidecar: OnServer) -> Store:
    owners = frozenset({os.geteuid(), SIDECAR_UID})
    custodian = FileCustodian.load(sidecar.root_key, owner_uids=owners)
    return Store.open(sidecar.server_url, custodian, owner_uids=owners)


def test_i10_sidecars_that_race_make_each_version_once(database: Database) -> None:
    with running_fleet(database, SIDECARS) as fleet, ExitStack() as stack:
        operators = [stack.enter_context(Remote(it, OPERATOR_UID)) for it in fleet]
        services = [stack.enter_context(Remote(it, SERVICE_UID)) for it in fleet]
        for operator in operators:
            operator.begin(RACE)
        services[0].begin(USE_UP)
        looks = 0
        while any(remote.is_busy(0.1) for remote in (*operators, services[0])):
            rows = database.run(
                "SELECT count(*) FROM key_versions WHERE key_name = %s AND state = 'CURRENT'", KEY
            )
            assert rows == [(1,)]
            looks += 1
        raced = [operator.finish() for operator in operators]
        envelopes = services[0].finish()
        reported = sorted(number for mine, _ in raced for number in mine)
        assert len(set(reported)) == len(reported), "two were told that they made the same version"
        assert sum(lost for _, lost in raced) > 0, "they raced"
        check_versions(fleet[0])
        for service in services:
            opened = "answer = [len(client.decrypt(bytes.fromhex(e))) for e in envelopes]"
            assert set(service.run(opened, envelopes=envelopes)) == {1 << 20}
        by_themselves = sum(it.log.read_text().count("key rolled over") for it in fleet)
        assert by_themselves + len(reported) >= ROLLOVERS
        assert by_themselves > 0
        assert looks > 0


def check_versions(sidecar: OnServer) -> None:
    """Every number is there once, and one version is current: the newest."""
    store = open_store(sidecar)
    count = store.describe_key(KEY).version_count
    found = store.list_versions(KEY, before=None, limit=count)
    assert [version.number for version in found] == list(range(count, 0, -1))
    assert len({version.version_id for version in found}) == count > ROLLOVERS
    states = [version.state for version in found]
    assert states == [VersionState.CURRENT, *[VersionState.ARCHIVED] * (count - 1)]
    store.close()


def test_i12_the_server_stopped_and_started_under_load_fails_no_call(database: Database) -> None:
    with running_fleet(database, 2) as fleet, ExitStack() as stack:
        callers = [stack.enter_context(Remote(it, SERVICE_UID)) for it in fleet for _ in range(4)]
        operator = stack.enter_context(Remote(fleet[0], OPERATOR_UID))
        flag = fleet[0].directory / "stop"
        for caller in callers:
            caller.begin(WORK, stop=str(flag))
        for way in (database.server.stop, database.server.kill, database.server.freeze):
            time.sleep(0.5)
            way()
            time.sleep(1.5)
            if way == database.server.freeze:
                database.server.thaw()
            else:
                database.server.start()
            await_problems(operator, [])
        flag.touch()
        for caller in callers:
            done, failed = caller.finish()
            assert failed == []
            assert done > 20


TAMPERINGS = {
    "a state": "UPDATE key_versions SET state = 'ARCHIVED' WHERE state = 'DISABLED'",
    "a schedule": "UPDATE key_versions SET destroy_due = 1 WHERE state = 'DISABLED'",
    "a wrapped key moved to another row": (
        "UPDATE key_versions AS mine SET wrapped = other.wrapped FROM key_versions AS other"
        " WHERE mine.number = 1 AND other.number = 2 AND mine.key_name = other.key_name"
    ),
    "a count": "UPDATE version_usage SET reserved_messages = 0",
    "observed time": "UPDATE store_time SET observed = observed + 900000000000",
    "an acknowledgement": "UPDATE sidecars SET generation_seen = 1000000",
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_i6_a_row_changed_by_hand_is_refused_and_loud(database: Database, what: str) -> None:
    with (
        running_fleet(database, 1) as (sidecar,),
        Remote(sidecar, SERVICE_UID) as service,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        envelope = service.run(f"answer = client.encrypt({KEY!r}, b'data').hex()")
        operator.run(f"client.rotate_key({KEY!r})")
        operator.run(f"client.destroy_version({KEY!r}, 1)")
        database.run(TAMPERINGS[what])
        sidecar.kill()
        sidecar.start()  # it goes through all rows at its start
        await_problems(operator, ["STORE_TAMPERED"])
        health = "answer = client.status().problems[0].summary"
        assert "authentic" in operator.run(health) or "gone back" in operator.run(health)
        assert "STORE_TAMPERED" in sidecar.log.read_text()
        opening = "answer = client.decrypt(bytes.fromhex(envelope)).hex()"
        with pytest.raises(Exception, match=r"FAILED_PRECONDITION|UNAVAILABLE"):
            service.run(opening, envelope=envelope)
        assert database.run("SELECT count(*) FROM key_versions WHERE wrapped IS NULL") == [(0,)]


def await_problems(remote: Remote, expected: Sequence[str]) -> None:
    """Wait until the sidecar's problems with its store are these."""

    def look() -> list[str]:
        found: list[str] = remote.run("answer = [p.reason for p in client.status().problems]")
        return [reason for reason in found if reason.startswith("STORE")]

    eventually(look, lambda found: found == list(expected), 60)


def test_a_successor_is_in_every_sidecar_before_it_is_current(database: Database) -> None:
    """A pending version opens: no sidecar is too late for what another has sealed."""
    config = CONFIG.replace('propagation = "0s"', 'propagation = "2s"')
    with ExitStack() as stack:
        fleet: list[OnServer] = []
        for _ in range(2):
            directory = stack.enter_context(sidecar_directory())
            first = fleet[0] if fleet else None
            sidecar = OnServer(directory, config=config, database=database, first=first)
            sidecar.prepare()
            stack.callback(sidecar.kill)
            sidecar.start()
            fleet.append(sidecar)
        here, there = (stack.enter_context(Remote(it, SERVICE_UID)) for it in fleet)
        here.run(f"client.encrypt({KEY!r}, bytes(950_000))")
        eventually(
            lambda: there.run(f"answer = client.get_key({KEY!r}).pending_version"),
            lambda number: number == 2,
        )
        began = time.monotonic()
        for _ in range(3):
            here.run(f"client.encrypt({KEY!r}, bytes(200_000))")
        eventually(
            lambda: there.run(f"answer = client.get_key({KEY!r}).current_version"),
            lambda number: number == 2,
        )
        assert time.monotonic() - began > 1.0
        envelope = here.run(f"answer = client.encrypt({KEY!r}, b'data').hex()")
        database.server.freeze()
        try:
            opening = "answer = client.decrypt(bytes.fromhex(e)).decode()"
            assert there.run(opening, e=envelope) == "data"
        finally:
            database.server.thaw()
