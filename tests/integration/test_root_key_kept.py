"""A root key's file that is spoilt while a sidecar serves is noticed then, not at the next start.

Whoever still holds the key goes on; the alarm reaches people, and ends nothing.
"""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from support.remote import Remote
from support.sidecar import OPERATOR_UID, SERVICE_UID, Sidecar, running_sidecar
from support.waiting import eventually

from keyside_sidecar.custody import create_root_key_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

REASON = "ROOT_KEY_NOT_KEPT"
LOUD = "the root key in use is not where it is kept"
PROBE = """
from grpc_health.v1 import health_pb2, health_pb2_grpc
health = health_pb2_grpc.HealthStub(grpc.insecure_channel(target))
listed = health.List(health_pb2.HealthListRequest()).statuses
answer = [service for service, found in listed.items() if found.status != 1]
"""


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings="workers = 2") as running:
        yield running


@pytest.fixture
def path(sidecar: Sidecar) -> Iterator[Path]:
    """The root key's file, whole again afterwards."""
    found = sidecar.root_key
    kept, status = found.read_bytes(), found.stat()
    yield found
    found.unlink(missing_ok=True)
    found.write_bytes(kept)
    os.chown(found, status.st_uid, status.st_gid)
    found.chmod(0o600)


def read_problem(sidecar: Sidecar) -> str:
    """Return what one of the workers says of it; nothing where nothing is wrong."""
    status = json.loads(sidecar.keyside("status", "--json", uid=OPERATOR_UID).stdout)
    found = [one for one in status["problems"] if one["reason"] == REASON]
    if not found:
        return ""
    assert "put the root key back" in found[0]["remedy"]
    assert "don't restart" in found[0]["remedy"]
    return str(found[0]["summary"])


def read_red(sidecar: Sidecar) -> list[str]:
    with Remote(sidecar, SERVICE_UID) as remote:
        return list(remote.run(PROBE))


def seal_and_open(sidecar: Sidecar) -> bytes:
    sealed = sidecar.keyside("encrypt", "mail-credentials", stdin=b"a token")
    return sidecar.keyside("decrypt", stdin=sealed.stdout).stdout


def replace(path: Path) -> None:
    """Do as somebody who runs the set-up again elsewhere, and copies what it made."""
    status = path.stat()
    other = path.with_name("other.key")
    create_root_key_file(other, status.st_uid, status.st_gid)
    other.replace(path)


def overwrite(path: Path) -> None:
    path.write_bytes(b"something else altogether\n")


def cut(path: Path) -> None:
    os.truncate(path, 20)


def remove(path: Path) -> None:
    path.unlink()


STEPS: list[tuple[Callable[[Path], None], str]] = [
    (replace, "and the one in use is"),
    (cut, "is cut short"),
    (overwrite, "is not a Keyside root key"),
    (remove, "does not exist"),
]


def test_what_is_done_to_the_file_is_loud_until_it_is_put_back(
    sidecar: Sidecar, path: Path
) -> None:
    content, status = path.read_bytes(), path.stat()
    for count, (spoil, said) in enumerate(STEPS, 1):
        spoil(path)
        eventually(lambda: read_problem(sidecar), lambda summary: said in summary)  # noqa: B023
        assert sidecar.log.read_text().count(LOUD) >= count
    assert read_red(sidecar) == [""], "no service's own: nothing must be restarted for it"
    assert seal_and_open(sidecar) == b"a token"
    path.write_bytes(content)
    os.chown(path, status.st_uid, status.st_gid)
    path.chmod(0o600)
    eventually(lambda: [read_problem(sidecar) for _ in range(4)], lambda found: not any(found))
    assert read_red(sidecar) == []
    records = [json.loads(line) for line in sidecar.audit_log.read_text().splitlines()]
    told = [one["event"] for one in records if one.get("reason") == REASON]
    assert told[0] == "store.problem"
    assert told[-1] == "store.sound"


def test_a_worker_that_dies_meanwhile_takes_no_other_with_it(sidecar: Sidecar, path: Path) -> None:
    """Its successor can't start. Those that hold the key go on until the file is back."""
    first, second = sidecar.workers()
    path.unlink()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "worker can't start" in sidecar.log.read_text(), bool)
    assert seal_and_open(sidecar) == b"a token"
    assert second in sidecar.workers()
