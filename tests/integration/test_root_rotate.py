"""``keysided root rotate`` while sidecars serve: nobody notices, and a kill does no harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.on_server import OnServer
from support.remote import Remote
from support.sidecar import (
    OPERATOR_UID,
    PYTHON,
    SERVICE_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

from keyside_sidecar.custody import FileCustodian, name_next

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgresql import Server

pytestmark = pytest.mark.root

KEY = "mail-credentials"
SEAL = f"answer = client.encrypt({KEY!r}, b'content').hex()"
OPEN = "answer = [client.decrypt(bytes.fromhex(e)).decode() for e in envelopes]"
STANDING = {"PERSON_LOGINS_OFF", "MEMORY_NOT_LOCKED", "PEER_PIDFD_FALLBACK"}
# The command as it is, but with little patience.
HURRIED = (
    "import sys\nfrom keyside_sidecar import __main__\nfrom keyside_sidecar.commands import root\n"
    "root._ABLE_WAIT_S = 1.5\nroot._FOLLOW_WAIT_S = 2.0\n__main__.main()\n"
)


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings="workers = 2") as started:
        yield started


def rotate(sidecar: Sidecar) -> str:
    done = sidecar.keysided("root", "rotate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not followed" not in done.stdout
    return done.stdout


def hurry(sidecar: Sidecar) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-c", HURRIED, "--config", str(sidecar.config_path), "root", "rotate"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def show(sidecar: Sidecar) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(sidecar.keysided("root", "show", "--json").stdout)
    return facts


def name_roles(sidecar: Sidecar) -> dict[str, str]:
    """Return the ids of the root keys that lie there, by what they are for."""
    roles = {".next": "waits to follow", "": "in place"}
    return {
        roles.get(path.name.removeprefix("root.key"), "former"): load(path)
        for path in sorted(sidecar.root_key.parent.glob("root.key*"))
    }


def load(path: Path) -> str:
    return FileCustodian.load(path, owner_uids=frozenset({0, SIDECAR_UID})).key_id


def list_problems(remote: Remote) -> set[str]:
    found = remote.run("answer = [p.reason for p in client.status().problems]")
    return set(found) - STANDING


@contextmanager
def under_load(sidecar: Sidecar) -> Iterator[list[str]]:
    """Seal and open on several connections all the while; the list grows; any failure is raised."""
    stop = threading.Event()
    envelopes: list[str] = []
    failures: list[BaseException] = []

    def work(service: Remote) -> None:
        try:
            while not stop.is_set():
                envelopes.append(service.run(SEAL))
                assert service.run(OPEN, envelopes=envelopes[-3:])
                time.sleep(0.02)
        except BaseException as error:  # noqa: BLE001  (raised by whoever waits)
            failures.append(error)

    with ExitStack() as stack:
        services = [stack.enter_context(Remote(sidecar, SERVICE_UID)) for _ in range(3)]
        threads = [threading.Thread(target=work, args=(service,)) for service in services]
        for thread in threads:
            thread.start()
        try:
            yield envelopes
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
    assert failures == []


def test_no_call_fails_while_the_root_key_is_replaced(sidecar: Sidecar) -> None:
    before = name_roles(sidecar)["in place"]
    with Remote(sidecar, OPERATOR_UID) as operator:
        with under_load(sidecar) as envelopes:
            eventually(lambda: len(envelopes), lambda count: count > 10)
            said = [rotate(sidecar), rotate(sidecar)]
            after = name_roles(sidecar)["in place"]
            assert before in said[0]
            assert after in said[1]
            operator.run(f"client.rotate_key({KEY!r})")
            count = len(envelopes)
            eventually(lambda: len(envelopes), lambda now: now > count + 10)
        assert list_problems(operator) == set()
    facts = show(sidecar)
    assert facts["root_key_id"] == after != before
    assert sorted(file["role"] for file in facts["files"]) == ["former", "former", "in place"]
    assert "store problem" not in sidecar.log.read_text()
    assert sidecar.stop() == 0
    sidecar.start()
    with Remote(sidecar, SERVICE_UID) as service:
        assert service.run(OPEN, envelopes=envelopes) == ["content"] * len(envelopes)
    assert sidecar.keysided("check").returncode == 0
    assert sidecar.stop() == 0
    # The old root key alone is of no use any more, and is told so.
    former = sidecar.root_key.with_name(f"root.key.{before}")
    os.replace(former, sidecar.root_key)  # noqa: PTH105
    sidecar.start(wait=False)
    assert sidecar.wait() == 78
    assert f"the store belongs to root key '{after}'" in sidecar.log.read_text()


def test_a_root_key_can_be_made_first_and_used_later(sidecar: Sidecar) -> None:
    """So that there is a copy of it before anything depends on it."""
    before = name_roles(sidecar)["in place"]
    for _ in range(2):
        done = sidecar.keysided("root", "rotate", "--prepare")
        assert done.returncode == 0, done.stderr
    waiting = load(sidecar.root_key.with_name("root.key.next"))
    assert show(sidecar)["root_key_id"] == before == name_roles(sidecar)["in place"]
    assert f"goes on with the root key {waiting}" in rotate(sidecar)
    assert show(sidecar)["root_key_id"] == waiting == name_roles(sidecar)["in place"]


def test_a_process_without_the_new_root_key_is_named_and_nothing_is_changed(
    postgresql_server: Server,
) -> None:
    """Two hosts on one server's store; the second gets its root key by hand."""
    database = postgresql_server.make_database()
    with sidecar_directory() as one, sidecar_directory() as two, ExitStack() as stack:
        first = OnServer(one, database=database)
        second = Apart(two, database=database, first=first)
        stack.callback(database.drop)
        for sidecar in (first, second):
            sidecar.prepare()
            stack.callback(sidecar.kill)
            if sidecar is second:
                copy_root_key(first.root_key, second.root_key)
            sidecar.start()
        before = name_roles(first)
        done = hurry(first)
        assert done.returncode == 75, done.stdout + done.stderr
        (worker,) = second.workers()
        assert f"process {worker}, last seen" in done.stderr
        assert f"{first.root_key}.next to the same place" in done.stderr
        assert "nothing was changed" in done.stderr
        assert show(first)["root_key_id"] == before["in place"]
        waiting = name_roles(first)["waits to follow"]
        copy_root_key(name_next(first.root_key), name_next(second.root_key))
        with under_load(first) as at_first, under_load(second) as at_second:
            rotate(first)
            eventually(lambda: len(at_second), lambda count: count > 10)
            # The second host's files are still to be put in place.
            assert name_roles(second) == before | {"waits to follow": waiting}
            assert show(second)["root_key_id"] == waiting
            assert "already" in rotate(second)
        for sidecar in (first, second):
            assert name_roles(sidecar) == {"in place": waiting, "former": before["in place"]}
            assert sidecar.stop() == 0
            sidecar.start()
            with Remote(sidecar, SERVICE_UID) as service:
                for envelopes in (at_first, at_second):
                    assert service.run(OPEN, envelopes=envelopes)
                assert list_problems(service) == set()


class Apart(OnServer):
    """A sidecar on another host: it shares the store, and has its root key in a file of its own."""

    @property
    def root_key(self) -> Path:
        return Sidecar.root_key.__get__(self)  # type: ignore[no-any-return]


def copy_root_key(source: Path, target: Path) -> None:
    draft = target.with_name("draft")
    shutil.copy2(source, draft)
    os.chown(draft, SIDECAR_UID, SIDECAR_GID)
    draft.rename(target)


def test_a_kill_at_any_instant_is_made_good_by_running_it_again(sidecar: Sidecar) -> None:
    """Serving goes on whatever is left; here in a directory of root's, as /etc/keyside is.

    The account reads its root key there, and can't put anything there.
    """
    os.chown(sidecar.root_key.parent, 0, 0)
    sidecar.root_key.parent.chmod(0o755)
    apart = sidecar.directory / "store"
    apart.mkdir(0o700)
    os.chown(apart, SIDECAR_UID, SIDECAR_GID)
    assert sidecar.stop() == 0
    text = sidecar.config_path.read_text()
    shutil.move(sidecar.store, apart)
    sidecar.config_path.write_text(text.replace(f"{sidecar.store}", f"{apart}/keyside.db"))
    sidecar.start()
    command = [
        PYTHON,
        "-m",
        "keyside_sidecar",
        "--config",
        str(sidecar.config_path),
        "root",
        "rotate",
    ]
    with under_load(sidecar) as envelopes:
        eventually(lambda: len(envelopes), lambda count: count > 10)
        for attempt in range(3):
            process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
            # Imports take the first part, and then it waits for all to know the new root key.
            time.sleep(0.5 + attempt * 0.4)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            facts = show(sidecar)
            assert facts["problem"] is None
            assert facts["root_key_id"] in [file["id"] for file in facts["files"]]
        rotate(sidecar)
        roles = name_roles(sidecar)
        assert "waits to follow" not in roles
        facts = show(sidecar)
        assert (facts["problem"], facts["root_key_id"]) == (None, roles["in place"])
    status = sidecar.root_key.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (SIDECAR_UID, 0o600)
    assert sidecar.stop() == 0
    sidecar.start()
    with Remote(sidecar, SERVICE_UID) as service:
        assert service.run(OPEN, envelopes=envelopes) == ["content"] * len(envelopes)
        assert list_problems(service) == set()
