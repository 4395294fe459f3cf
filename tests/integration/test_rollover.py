"""Keys look after themselves in a real sidecar: by bytes, across workers, kills and outages."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.remote import Remote, RemoteError
from support.sidecar import (
    OPERATOR_GID,
    OPERATOR_UID,
    SERVICE_GID,
    SERVICE_UID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

from keyside.names import KeyName
from keyside_sidecar.custody import FileCustodian
from keyside_sidecar.store import Store

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

KEY = KeyName("mail-credentials")
CONFIG = f"""
[operators]
users = [{OPERATOR_UID}]

[keys.mail-credentials]
allow_groups = [{SERVICE_GID}, {OPERATOR_GID}]
rotate_after_bytes = "1MiB"
propagation = "0s"
"""
MEGABYTE = f"client.encrypt({KEY!r}, bytes(1 << 20)).hex()"


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(config=CONFIG, settings="workers = 2") as started:
        yield started


def open_store(sidecar: Sidecar) -> Store:
    owners = frozenset({os.geteuid(), SIDECAR_UID})
    custodian = FileCustodian.load(sidecar.root_key, owner_uids=owners)
    return Store.open(f"sqlite:///{sidecar.store}", custodian, owner_uids=owners)


def test_a_key_rolls_over_by_itself_when_its_bytes_are_used_up(sidecar: Sidecar) -> None:
    with Remote(sidecar, SERVICE_UID) as service:
        for number in range(1, 6):
            envelope = service.run(f"answer = {MEGABYTE}")
            await_version(service, number + 1)
            assert service.run(f"answer = len(client.decrypt(bytes.fromhex({envelope!r})))")
    log = sidecar.log.read_text()
    assert log.count("key rolled over") == 5
    with Remote(sidecar, OPERATOR_UID) as operator:
        standing = {"PERSON_LOGINS_OFF", "MEMORY_NOT_LOCKED", "PEER_PIDFD_FALLBACK"}
        assert set(list_problems(operator)) <= standing


def test_i12_uses_are_counted_after_an_outage(sidecar: Sidecar) -> None:
    moved = sidecar.store.with_name("away")
    with Remote(sidecar, SERVICE_UID) as service:
        service.run(f"client.encrypt({KEY!r}, b'warm')")
        sidecar.store.rename(moved)
        eventually(lambda: list_problems(service), lambda found: "STORE_UNAVAILABLE" in found)
        for _ in range(3):
            service.run(f"answer = {MEGABYTE}")
        assert "MESSAGES_UNCOUNTED" in list_problems(service)
        moved.rename(sidecar.store)
        eventually(lambda: list_problems(service), lambda found: "MESSAGES_UNCOUNTED" not in found)
        await_version(service, 2)
    store = open_store(sidecar)
    usage = store.usage.read(KEY, [1])[1]
    assert usage.plaintext_bytes >= 3 << 20
    store.close()


def await_version(remote: Remote, number: int) -> None:
    look = f"answer = client.get_key({KEY!r}).current_version"
    eventually(lambda: remote.run(look), lambda current: current == number)


def list_problems(remote: Remote) -> list[str]:
    found: list[str] = remote.run("answer = [p.reason for p in client.status().problems]")
    return found


def test_what_a_stopped_worker_had_reserved_is_returned(sidecar: Sidecar) -> None:
    with Remote(sidecar, SERVICE_UID) as service:
        for _ in range(10):
            service.run(f"client.encrypt({KEY!r}, b'12345')")
    assert sidecar.stop() == 0
    store = open_store(sidecar)
    usage = store.usage.read(KEY, [1])[1]
    assert (usage.messages, usage.plaintext_bytes) == (10, 50)
    assert usage.last_sealed_at is not None
    assert store.sidecars.list_all().live == (), "every worker has withdrawn"
    store.close()


def test_disabling_is_answered_when_every_worker_refuses(sidecar: Sidecar) -> None:
    with ExitStack() as stack:
        operator = stack.enter_context(Remote(sidecar, OPERATOR_UID))
        services = [stack.enter_context(Remote(sidecar, SERVICE_UID)) for _ in range(6)]
        envelope = services[0].run(f"answer = client.encrypt({KEY!r}, b'data').hex()")
        operator.run(f"client.rotate_key({KEY!r})")
        for _ in range(5):
            assert [attempt(service, envelope) for service in services] == ["data"] * 6
            began = time.monotonic()
            assert change(operator, "disable_version") == []
            assert time.monotonic() - began < 2.5, "it waited in vain"
            refused = ["VERSION_DISABLED"] * 6
            assert [attempt(service, envelope) for service in services] == refused
            assert change(operator, "enable_version") == []


def test_i12_a_sidecar_that_does_not_hear_is_named_and_one_that_was_killed_is_not(
    sidecar: Sidecar,
) -> None:
    with (
        running_beside(sidecar) as twin,
        Remote(sidecar, OPERATOR_UID) as operator,
        Remote(twin, SERVICE_UID) as service,
    ):
        envelope = service.run(f"answer = client.encrypt({KEY!r}, b'data').hex()")
        operator.run(f"client.rotate_key({KEY!r})")
        (worker,) = twin.workers()
        assert twin.process is not None
        freeze(twin, signal.SIGSTOP)
        try:
            assert change(operator, "disable_version") == [worker]
        finally:
            freeze(twin, signal.SIGCONT)
        eventually(lambda: attempt(service, envelope), lambda it: it == "VERSION_DISABLED")
        assert change(operator, "enable_version") == []
        assert attempt(service, envelope) == "data"
        twin.kill()
        eventually(lambda: change(operator, "disable_version"), lambda late: late == [], 10)


def attempt(service: Remote, envelope: str) -> str:
    """Return what an envelope holds, or why it does not open."""
    try:
        return str(service.run("answer = client.decrypt(bytes.fromhex(e)).decode()", e=envelope))
    except RemoteError as error:
        return error.reason


def change(operator: Remote, method: str) -> list[int]:
    """Change version 1, and return the processes that have not acknowledged it."""
    done = f"client.{method}({KEY!r}, 1).unacknowledged"
    found: list[int] = operator.run(f"answer = [late.pid for late in {done}]")
    return found


def freeze(sidecar: Sidecar, number: signal.Signals) -> None:
    """Send a signal to all processes of a sidecar."""
    assert sidecar.process is not None
    for pid in (sidecar.process.pid, *sidecar.workers()):
        os.kill(pid, number)


@dataclass
class Twin(Sidecar):
    """Another sidecar on the same store."""

    first: Sidecar | None = None

    @property
    def store(self) -> Path:
        """The first one's."""
        assert self.first is not None
        return self.first.store

    @property
    def root_key(self) -> Path:
        """The first one's."""
        assert self.first is not None
        return self.first.root_key

    def keysided(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Make an audit log only: the store is there."""
        if arguments == ("init",):
            arguments = ("init", "--only-audit")
        return super().keysided(*arguments)


@contextmanager
def running_beside(sidecar: Sidecar) -> Iterator[Twin]:
    """Give another sidecar that serves from the same store."""
    with sidecar_directory() as directory:
        twin = Twin(directory, config=sidecar.config, first=sidecar)
        twin.prepare()
        twin.start()
        try:
            yield twin
        finally:
            twin.kill()
