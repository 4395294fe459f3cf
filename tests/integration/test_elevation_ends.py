"""How access ends: by time, by hand, by policy, and with the store put back (I5 to I10)."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from support.caller import callers_of
from support.on_server import OnServer
from support.sidecar import sidecar_directory
from support.town import IDENTITY, KEY, Town, password_of, sidecar_in, town
from support.waiting import eventually

from keyside.v1 import access_pb2 as pb
from keyside.v1 import encryption_pb2, keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.caller import Answer
    from support.postgresql import Server
    from support.sidecar import Sidecar

pytestmark = pytest.mark.root

DECRYPT = "/keyside.v1.EncryptionService/Decrypt"
# How long after its end a grant may be served (I9).
LATE_S = 1.0


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as found:
        yield found


def read_events(place: Town, sidecar: Sidecar, event: str) -> list[dict[str, Any]]:
    """Return the audit records of one event."""
    lines = place.audit(sidecar).splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["event"] == event]


# --- under load: nothing is served later than a second after the end


@dataclass
class Load:
    """Threads that use a grant over and over, each on a connection of its own.

    Args:
        answers: Each answer, with when its call began and when it came.
    """

    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, place: Town, sidecars: list[Sidecar], envelope: bytes, credential: str) -> None:
        """Begin: several connections to each sidecar."""
        request = encryption_pb2.DecryptRequest(envelope=envelope)
        metadata = [("keyside-credential", credential)]
        uid, gid, groups = place.ids("alice")
        for sidecar in sidecars * 2:
            callers = place.undo.enter_context(callers_of(sidecar.socket))
            caller = callers.start(uid, gid=gid, groups=groups, login=uid)

            def work(caller: Any = caller) -> None:
                while not self._stop.is_set():
                    self.answers.append(caller.call(DECRYPT, request, metadata=metadata))

            self._threads.append(threading.Thread(target=work))
        for thread in self._threads:
            thread.start()

    def served(self) -> list[Answer]:
        """Return the answers that hold a plaintext."""
        return [answer for answer in self.answers if answer.code == "OK"]

    def end(self) -> None:
        """Stop, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


@contextlib.contextmanager
def two_on_one_store(place: Town, server: Server) -> Iterator[list[Sidecar]]:
    """Give two sidecars, as if on two hosts where uids mean the same people."""
    with contextlib.ExitStack() as stack:
        database = server.make_database()
        stack.callback(database.drop)
        found: list[Sidecar] = []
        for _ in range(2):
            directory = stack.enter_context(sidecar_directory())
            sidecar = OnServer(
                directory,
                config=place.config(elevation="shared_ids = true"),
                identity=IDENTITY,
                database=database,
                first=found[0] if found else None,  # type: ignore[arg-type]
            )
            stack.callback(sidecar.kill)
            sidecar.prepare()
            sidecar.start()
            found.append(sidecar)
        yield found


def check_ends_in_time(place: Town, sidecars: list[Sidecar]) -> None:
    """Revocation and expiry, with a load on every process."""
    envelope = place.seal(sidecars[0])
    for how, seconds in (("revoked", 600), ("expired", 3)):
        began = time.monotonic()
        access_id, credential = place.granted(sidecars[0], seconds=seconds)
        activated = place.show(sidecars[-1], access_id)
        load = Load()
        load.start(place, sidecars, envelope, credential)
        try:
            eventually(load.served, lambda served: len(served) >= 20)
            if how == "revoked":
                done = place.do(sidecars[-1], "bob", "RevokeAccess", access_id)
                assert done.code == "OK"
                # Answered only when it is so in the store.
                ended_s = done.ended_s
                limit_s = ended_s
            else:
                left_s = activated.expires_at.ToNanoseconds() / 1e9 - time.time()
                ended_s = time.monotonic() + left_s
                limit_s = ended_s + LATE_S
                time.sleep(max(0.0, left_s))
            time.sleep(1.5)
        finally:
            load.end()
        late = [answer for answer in load.served() if answer.started_s > limit_s]
        assert late == [], (how, began)
        after = [answer for answer in load.answers if answer.started_s > ended_s + LATE_S]
        assert after
        assert "GRANT_ENDED" in {answer.reason for answer in after}
        assert {answer.reason for answer in after} <= {"GRANT_ENDED", "TOO_OFTEN"}
        found = place.show(sidecars[0], access_id)
        assert found.end_reason == how.upper()
        assert found.used == len(load.served())


def test_i9_a_grant_ends_in_every_worker_at_once(place: Town) -> None:
    """Two workers of one sidecar, on SQLite."""
    with sidecar_in(place) as sidecar:
        check_ends_in_time(place, [sidecar])


def test_i9_a_grant_ends_on_every_sidecar_at_once(place: Town, postgresql_server: Server) -> None:
    """Two sidecars on one PostgreSQL store; with the store away there is no use."""
    with two_on_one_store(place, postgresql_server) as sidecars:
        check_ends_in_time(place, sidecars)


# --- policy, rollover, the store


def test_a_policy_that_changes_ends_what_was_asked_under_it(place: Town) -> None:
    """A request and a grant, at the next start; another key's policy ends neither."""
    with sidecar_in(place) as sidecar:
        pending = place.ask(sidecar).parse(pb.RequestAccessResponse).request.id
        envelope = place.seal(sidecar)
        access_id, credential = place.granted(sidecar)
        sidecar.stop()
        sidecar.config = sidecar.config.replace(
            "[keys.payroll]", '[keys.payroll]\nrotate_every = "80d"'
        )
        sidecar.write_config()
        sidecar.start()
        assert place.open(sidecar, envelope, credential).code == "OK"
        sidecar.stop()
        sidecar.config = place.config(key='rotate_every = "80d"')
        sidecar.write_config()
        sidecar.start()
        assert place.open(sidecar, envelope, credential).reason == "GRANT_ENDED"
        for one in (pending, access_id):
            found = eventually(
                lambda: place.show(sidecar, one),  # noqa: B023  (called at once)
                lambda seen: seen.state == pb.ACCESS_STATE_ENDED,
            )
            assert found.end_reason == "POLICY_CHANGED"


def test_what_a_grant_opened_is_rolled_over_when_it_ends(place: Town) -> None:
    """With rollover_after_grant: a new version is current, and the grant is over for good."""
    with sidecar_in(place, elevation="rollover_after_grant = true") as sidecar:
        envelope = place.seal(sidecar)
        unused, _ = place.granted(sidecar)
        access_id, credential = place.granted(sidecar)
        assert place.open(sidecar, envelope, credential).code == "OK"
        assert current_version(place, sidecar) == 1
        place.do(sidecar, "alice", "RevokeAccess", unused)
        eventually(
            lambda: place.show(sidecar, unused), lambda seen: seen.state == pb.ACCESS_STATE_ENDED
        )
        assert current_version(place, sidecar) == 1, "it had opened nothing"
        place.do(sidecar, "alice", "RevokeAccess", access_id)
        eventually(lambda: current_version(place, sidecar), lambda number: number == 2)
        eventually(
            lambda: place.show(sidecar, access_id),
            lambda seen: seen.state == pb.ACCESS_STATE_ENDED,
        )
        time.sleep(2)
        assert current_version(place, sidecar) == 2, "once"
        records = read_events(place, sidecar, "key.rolled_over")
        assert [record["version"] for record in records] == [2]


def current_version(place: Town, sidecar: Sidecar) -> int:
    """Return the key's current version."""
    answer = place.caller(sidecar, "olga").call(
        "/keyside.v1.KeyService/GetKey", keys_pb2.GetKeyRequest(name=KEY)
    )
    return answer.parse(keys_pb2.GetKeyResponse).key.current_version


def test_i10_a_store_put_back_is_refused_until_that_is_accepted_on_the_record(
    place: Town,
) -> None:
    """A grant that was revoked since would live again: so all of them end."""
    with sidecar_in(place) as sidecar:
        envelope = place.seal(sidecar)
        access_id, credential = place.granted(sidecar)
        pending = place.ask(sidecar).parse(pb.RequestAccessResponse).request.id
        sidecar.stop()
        kept = sidecar.directory / "kept.db"
        shutil.copy2(sidecar.store, kept)
        sidecar.start()
        assert place.do(sidecar, "bob", "RevokeAccess", access_id).code == "OK"
        sidecar.stop()
        for name in ("-wal", "-shm"):
            sidecar.store.with_name(sidecar.store.name + name).unlink(missing_ok=True)
        sidecar.store.write_bytes(kept.read_bytes())
        sidecar.start(wait=False)
        assert sidecar.wait() == 78
        assert "older copy was put back" in sidecar.log.read_text()
        assert "--accept-rollback" in sidecar.log.read_text()
        sidecar.start(arguments=("--accept-rollback",))
        assert place.open(sidecar, envelope, credential).reason == "GRANT_ENDED"
        for one in (access_id, pending):
            assert place.show(sidecar, one).end_reason == "STORE_ROLLED_BACK"
        accepted = read_events(place, sidecar, "store.rollback_accepted")
        phases = [record["phase"] for record in accepted]
        assert phases[0] == "intent"
        assert phases.count("outcome") == phases.count("intent") == 2, "each worker's"
        sidecar.stop()
        sidecar.start()  # once is enough


def test_i6_a_row_that_is_changed_in_the_database_leaves_a_record(place: Town) -> None:
    """Whoever gives themselves a longer grant by hand has none, and it is written down."""
    with sidecar_in(place) as sidecar:
        envelope = place.seal(sidecar)
        access_id, credential = place.granted(sidecar)
        with contextlib.closing(sqlite3.connect(sidecar.store)) as store, store:
            changed = store.execute("UPDATE access_requests SET expires_at = expires_at + 1")
            assert changed.rowcount == 1
        refused = place.open(sidecar, envelope, credential)
        assert refused.outcome == ("FAILED_PRECONDITION", "STORE_REFUSED")
        found = eventually(
            lambda: read_events(place, sidecar, "store.problem"), lambda records: records
        )
        assert found[0]["reason"] == "STORE_TAMPERED"
        assert access_id in found[0]["details"]["why"]
        status = place.keyside(sidecar, "audrey", "status", "--json")
        assert "STORE_TAMPERED" in status.stdout.decode()
        # Services are served from memory meanwhile.
        assert place.seal(sidecar)


def test_approvers_are_told_by_the_notify_command(place: Town) -> None:
    """Each event once, as JSON on its standard input, and no secret in it."""
    with sidecar_directory() as directory:
        directory.chmod(0o777)
        told = directory / "told"
        script = directory / "notify"
        script.write_text(f"#!/bin/sh\ncat >>{told}\necho >>{told}\n")
        script.chmod(0o755)
        with sidecar_in(place, elevation=f'notify = ["{script}"]') as sidecar:
            access_id, credential = place.granted(sidecar)
            place.do(sidecar, "alice", "RevokeAccess", access_id)
            events = eventually(
                lambda: [
                    json.loads(line)["event"]
                    for line in (told.read_text() if told.exists() else "").splitlines()
                    if line
                ],
                lambda seen: "access.revoke" in seen,
            )
        assert events == [
            *("access.request", "access.approve", "access.approve", "access.approve"),
            *("access.activate", "access.revoke"),
        ]
        text = told.read_text()
        assert access_id in text
        assert credential not in text
        assert not any(password_of(name) in text for name in ("alice", "bob", "carol", "dave"))
