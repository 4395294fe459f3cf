"""What is broken is named honestly (I12): a store that is away, a store that was changed by hand.

Neither is ever told as "the envelope was not accepted", and no service that can be served from
memory notices.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.remote import Remote, RemoteError
from support.sidecar import (
    OPERATOR_UID,
    OTHER_UID,
    SERVICE_GID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
)
from support.waiting import eventually

from keyside.envelope import VersionKey, seal
from keyside.names import KeyName, VersionNumber

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

KEY = "mail-credentials"
CONFIG = f"""
[operators]
users = [{OPERATOR_UID}]

[keys.{KEY}]
allow_groups = [{SERVICE_GID}]

[keys.payroll]
allow_groups = [{SERVICE_GID}]
"""
PROLOGUE = f"""
import time
from grpc_health.v1 import health_pb2, health_pb2_grpc
key = {KEY!r}
health = health_pb2_grpc.HealthStub(grpc.insecure_channel(target))
def look():
    before = client.status()
    listed = health.List(health_pb2.HealthListRequest()).statuses
    status = client.status()
    if status.problems != before.problems:  # something changed in between
        return look()
    names = health_pb2.HealthCheckResponse.ServingStatus
    return {{
        "health": {{name: names.Name(one.status) for name, one in listed.items()}},
        "serving": status.serving.value,
        "problems": {{
            problem.reason: [problem.since.isoformat(), problem.blocking, problem.summary]
            for problem in status.problems
        }},
    }}
"""
SERVING = {
    "": "SERVING",
    "keyside.v1.EncryptionService": "SERVING",
    "keyside.v1.KeyService": "SERVING",
    "keyside.v1.AccessService": "SERVING",
    "keyside.v1.AuditService": "SERVING",
    "keyside.v1.StatusService": "SERVING",
}
WITHOUT_KEYS = {
    **SERVING,
    "keyside.v1.KeyService": "NOT_SERVING",
    "keyside.v1.AccessService": "NOT_SERVING",
}
ALARM = {**WITHOUT_KEYS, "": "NOT_SERVING"}
STRANGE = bytes(range(16))
DECRYPT = "answer = client.decrypt(bytes.fromhex(envelope))"
KEY_CALLS = ("client.list_keys()", "client.get_key(key)")


@dataclass
class Scene:
    """A sidecar with a service and an operator that are connected."""

    sidecar: Sidecar
    service: Remote
    operator: Remote

    def look(self) -> dict[str, Any]:
        """Return what health and status say, as the service sees it."""
        answer: dict[str, Any] = self.service.run("answer = look()")
        return answer

    def await_problem(self, reason: str) -> dict[str, Any]:
        """Wait until status names a problem."""
        return eventually(self.look, lambda seen: reason in seen["problems"])

    def await_no_problem(self, reason: str) -> dict[str, Any]:
        """Wait until status names it no more."""
        return eventually(self.look, lambda seen: reason not in seen["problems"])

    def encrypt(self, plaintext: str) -> str:
        """Return an envelope, in hex, made under the current version."""
        code = f"answer = client.encrypt(key, {plaintext!r}.encode())"
        envelope: str = self.service.run(code)
        return envelope

    def check_decrypts(self, envelope: str, plaintext: str) -> None:
        """Check that the envelope opens."""
        assert bytes.fromhex(self.service.run(DECRYPT, envelope=envelope)).decode() == plaintext

    def check_fails(self, who: Remote, code: str, expected: str, **names: object) -> None:
        """Check that a call ends with the code and reason ``expected``."""
        with pytest.raises(RemoteError) as failed:
            who.run(f"client = keyside.Client(expected_owner=owner, retry=False)\n{code}", **names)
        assert f"{failed.value.code} {failed.value.reason}" == expected

    def change_store(self, statement: str, *values: object) -> None:
        """Do what someone with the database, but not the root key, can do."""
        with contextlib.closing(sqlite3.connect(self.sidecar.store)) as store, store:
            assert store.execute(statement, values).rowcount == 1


@pytest.fixture
def scene() -> Iterator[Scene]:
    """One worker, two keys; one of them has been rolled over."""
    with (
        running_sidecar(config=CONFIG) as sidecar,
        Remote(sidecar) as service,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        service.run(PROLOGUE)
        operator.run(PROLOGUE)
        yield Scene(sidecar, service, operator)


@contextlib.contextmanager
def moved_away(sidecar: Sidecar) -> Iterator[None]:
    """The file is gone, as when its file system is not mounted."""
    elsewhere = sidecar.directory / "elsewhere.db"
    sidecar.store.rename(elsewhere)
    yield
    elsewhere.rename(sidecar.store)


@contextlib.contextmanager
def unreadable(sidecar: Sidecar) -> Iterator[None]:
    """The sidecar's account may not enter the directory."""
    sidecar.store.parent.chmod(0)
    yield
    sidecar.store.parent.chmod(0o700)


@contextlib.contextmanager
def no_database(sidecar: Sidecar) -> Iterator[None]:
    """Something else lies in its place."""
    elsewhere = sidecar.directory / "elsewhere.db"
    sidecar.store.rename(elsewhere)
    sidecar.store.write_bytes(b"this is no database, however long it is looked at. " * 100)
    os.chown(sidecar.store, SIDECAR_UID, SIDECAR_GID)
    sidecar.store.chmod(0o600)
    yield
    elsewhere.rename(sidecar.store)


def make_foreign_envelope(number: int) -> str:
    """Return an envelope of the key whose header names a version that it doesn't have."""
    version = VersionKey(KeyName(KEY), VersionNumber(number), STRANGE, bytes(32))
    return seal(version, b"whatever", {}).hex()


@pytest.mark.parametrize("away", [moved_away, unreadable, no_database])
def test_i12_services_are_served_from_memory_while_the_store_is_away(
    scene: Scene, away: Callable[[Sidecar], contextlib.AbstractContextManager[None]]
) -> None:
    first = scene.encrypt("first")
    assert scene.operator.run("answer = client.rotate_key(key).version.number") == 2
    second = scene.encrypt("second")
    assert scene.look()["health"] == SERVING
    before = datetime.now(UTC)
    with away(scene.sidecar):
        seen = scene.await_problem("STORE_UNAVAILABLE")
        noticed = datetime.now(UTC)
        assert seen["health"] == WITHOUT_KEYS
        assert seen["serving"] == "DEGRADED"
        since, blocking, summary = seen["problems"]["STORE_UNAVAILABLE"]
        assert before - timedelta(seconds=1) < datetime.fromisoformat(since) < noticed
        assert blocking
        assert str(scene.sidecar.store) in summary or "store can't be used" in summary

        third = scene.encrypt("third")
        for envelope, plaintext in ((first, "first"), (second, "second"), (third, "third")):
            scene.check_decrypts(envelope, plaintext)
        rewrapped = scene.service.run(
            "answer = client.rewrap(bytes.fromhex(envelope))", envelope=first
        )
        scene.check_decrypts(rewrapped, "first")
        for code in KEY_CALLS:
            scene.check_fails(scene.service, code, "UNAVAILABLE STORE_UNAVAILABLE")
        scene.check_fails(scene.operator, "client.rotate_key(key)", "UNAVAILABLE STORE_UNAVAILABLE")
        # Nobody can know whether there is such a version, so nobody says that there is none.
        for number in (3, 4711):
            foreign = make_foreign_envelope(number)
            scene.check_fails(
                scene.service, DECRYPT, "UNAVAILABLE STORE_UNAVAILABLE", envelope=foreign
            )
        time.sleep(0.5)
        assert scene.look()["problems"]["STORE_UNAVAILABLE"][0] == since, "since when it began"
        status = scene.sidecar.keyside("status")
        assert status.returncode == 0, "a container must not be killed for it"
        assert b"STORE_UNAVAILABLE since" in status.stdout
    healed = scene.await_no_problem("STORE_UNAVAILABLE")
    assert healed["health"] == SERVING
    assert scene.operator.run("answer = client.rotate_key(key).version.number") == 3
    scene.check_decrypts(scene.encrypt("fourth"), "fourth")
    scene.check_decrypts(first, "first")
    log = scene.sidecar.log.read_text()
    assert re.search(r'level=error event="store problem" .* reason=STORE_UNAVAILABLE', log)
    assert re.search(r'event="store problem is over" .* reason=STORE_UNAVAILABLE', log)


def test_i12_a_worker_that_dies_meanwhile_comes_back_with_the_store(scene: Scene) -> None:
    """Its successor has nothing in memory; it is tried again until it starts."""
    envelope = scene.encrypt("before")
    with moved_away(scene.sidecar):
        (worker,) = scene.sidecar.workers()
        os.kill(worker, signal.SIGKILL)
        log = eventually(scene.sidecar.log.read_text, lambda text: "worker can't start" in text)
        assert "there is no store at" in log
    code = "answer = client.decrypt(bytes.fromhex(envelope), timeout_s=30)"
    assert scene.service.run(code, envelope=envelope) == b"before".hex()


def test_i11_an_unknown_version_is_a_rejected_envelope(scene: Scene) -> None:
    """The store was asked, and has no such version."""
    envelope = scene.encrypt("first")
    for foreign in (
        make_foreign_envelope(1),  # the number is there, with another id
        make_foreign_envelope(2),
        make_foreign_envelope(2**32 - 1),
    ):
        scene.check_fails(
            scene.service, DECRYPT, "INVALID_ARGUMENT ENVELOPE_REJECTED", envelope=foreign
        )
    scene.check_decrypts(envelope, "first")


def test_i6_a_row_that_was_changed_by_hand_is_refused_and_loudly(scene: Scene) -> None:
    first = scene.encrypt("first")
    scene.operator.run("client.rotate_key(key)")
    second = scene.encrypt("second")
    where = "WHERE key_name = ? AND number = 1"
    scene.change_store(f"UPDATE key_versions SET archived_at = archived_at - 1 {where}", KEY)

    seen = scene.await_problem("STORE_TAMPERED")
    _, blocking, summary = seen["problems"]["STORE_TAMPERED"]
    assert blocking
    assert "version 1 of key mail-credentials" in summary
    assert seen["health"] == ALARM
    log = scene.sidecar.log.read_text()
    assert re.search(r'level=error event="store problem" .* reason=STORE_TAMPERED', log)
    # What was read before goes on being served; it was authentic then.
    scene.check_decrypts(first, "first")
    scene.check_decrypts(second, "second")
    refused = "FAILED_PRECONDITION STORE_REFUSED"
    scene.check_fails(scene.service, "list(client.iter_versions(key))", refused)

    # Read anew, it is refused, and it alone.
    assert scene.sidecar.stop() == 0
    scene.sidecar.start()
    scene.check_fails(scene.service, DECRYPT, refused, envelope=first)
    scene.check_decrypts(second, "second")
    scene.check_decrypts(scene.encrypt("third"), "third")
    scene.await_problem("STORE_TAMPERED")

    scene.change_store(f"UPDATE key_versions SET archived_at = archived_at + 1 {where}", KEY)
    assert scene.await_no_problem("STORE_TAMPERED")["health"] == SERVING
    scene.check_decrypts(first, "first")


def test_i6_a_key_whose_current_version_was_changed_is_refused_and_the_others_served(
    scene: Scene,
) -> None:
    """Health is red: not every key has its current version in memory."""
    assert scene.sidecar.stop() == 0
    scene.change_store(
        "UPDATE key_versions SET made_by_uid = ? WHERE key_name = ?", OTHER_UID, "payroll"
    )
    scene.sidecar.start()
    scene.check_decrypts(scene.encrypt("served"), "served")
    scene.check_fails(
        scene.service, "client.encrypt('payroll', b'')", "FAILED_PRECONDITION STORE_REFUSED"
    )
    seen = scene.await_problem("STORE_TAMPERED")
    assert set(seen["health"].values()) == {"NOT_SERVING", "SERVING"}
    assert seen["health"][""] == seen["health"]["keyside.v1.EncryptionService"] == "NOT_SERVING"
    assert "version 1 of key payroll" in seen["problems"]["STORE_TAMPERED"][2]
    assert "KEYS_NOT_READY" in seen["problems"]
    assert scene.sidecar.keyside("status").returncode == 69


def copy_store(sidecar: Sidecar) -> Path:
    """Copy the file, and it alone, as a careless backup does."""
    copy = sidecar.store.with_name("copy.db")
    shutil.copy2(sidecar.store, copy)
    os.chown(copy, SIDECAR_UID, SIDECAR_GID)
    return copy


def test_i5_the_file_alone_holds_all_that_was_committed(scene: Scene) -> None:
    """Somebody who copies it while the sidecar runs gets every version."""
    scene.operator.run("for _ in range(3): client.rotate_key(key)")
    envelope = scene.encrypt("under version 4")
    copy = copy_store(scene.sidecar)
    scene.sidecar.kill()
    for path in scene.sidecar.store.parent.glob("keyside.db*"):
        path.unlink()
    copy.rename(scene.sidecar.store)
    scene.sidecar.start()
    scene.check_decrypts(envelope, "under version 4")


def test_i10_an_older_copy_of_the_store_is_refused_and_not_taken_for_an_outage(
    scene: Scene,
) -> None:
    """Someone put yesterday's file back underneath a running sidecar."""
    assert scene.sidecar.stop() == 0
    older = copy_store(scene.sidecar)
    scene.sidecar.start()
    assert scene.operator.run("answer = client.rotate_key(key).version.number") == 2
    envelope = scene.encrypt("under version 2")
    for suffix in ("-wal", "-shm"):
        scene.sidecar.store.with_name(scene.sidecar.store.name + suffix).unlink()
    older.rename(scene.sidecar.store)
    seen = scene.await_problem("STORE_TAMPERED")
    assert "older" in seen["problems"]["STORE_TAMPERED"][2]
    assert seen["health"] == ALARM
    refused = "FAILED_PRECONDITION STORE_REFUSED"
    scene.check_fails(scene.operator, "client.rotate_key(key)", refused)
    scene.check_decrypts(envelope, "under version 2")
