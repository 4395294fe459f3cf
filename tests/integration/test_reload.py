"""SIGHUP: another configuration takes the running one's place, and no call is lost for it.

A reload is over when the daemon says READY=1 to its service manager; before that it says
RELOADING=1.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.pam import pam_service
from support.remote import Remote, RemoteError
from support.sidecar import (
    DEFAULT_KEYS,
    OPERATOR_UID,
    SERVICE_GID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.town import sidecar_in, town
from support.waiting import eventually

from keyside.v1 import access_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.town import Town

pytestmark = pytest.mark.root

KEY = "mail-credentials"
RELOADS = 3
CONNECTIONS = 8
DENY = "auth required pam_deny.so\naccount required pam_permit.so\n"

# Threads on channels of their own, threads on one client, and tasks on another, until told to stop.
LOAD = """
import asyncio, collections, threading
from keyside.v1 import encryption_pb2 as pb

stopped, errors, counts = threading.Event(), [], collections.Counter()

def call_raw():
    with grpc.insecure_channel(target) as channel:
        encrypt = channel.unary_unary("/keyside.v1.EncryptionService/Encrypt")
        request = pb.EncryptRequest(key="mail-credentials", plaintext=bytes(256))
        while not stopped.is_set():
            try:
                encrypt(request.SerializeToString(), timeout=20)
                counts["raw"] += 1
            except grpc.RpcError as error:
                errors.append(f"raw {error.code()} {error.details()}")

def call_package(client):
    while not stopped.is_set():
        try:
            client.decrypt(client.encrypt("mail-credentials", bytes(256)))
            counts["package"] += 1
        except keyside.KeysideError as error:
            errors.append(f"package {error!r}")

async def call_tasks():
    async def call(client):
        while not stopped.is_set():
            try:
                await client.encrypt("mail-credentials", bytes(256))
                counts["tasks"] += 1
            except keyside.KeysideError as error:
                errors.append(f"tasks {error!r}")

    async with keyside.AsyncClient(expected_owner=owner, retry=False) as client:
        await asyncio.gather(*(call(client) for _ in range(4)))

shared = keyside.Client(expected_owner=owner, retry=False)
threads = [threading.Thread(target=call_raw) for _ in range(2)]
threads += [threading.Thread(target=call_package, args=(shared,)) for _ in range(2)]
threads += [threading.Thread(target=asyncio.run, args=(call_tasks(),))]
for thread in threads:
    thread.start()
"""
ENOUGH = "answer = all(counts[kind] > least for kind in ('raw', 'package', 'tasks'))"
END = """
stopped.set()
for thread in threads:
    thread.join()
answer = [errors[:5], dict(counts)]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with town() as made:
        yield made


def reload(sidecar: Sidecar) -> None:
    """Send SIGHUP, and wait until the reload is over."""
    assert sidecar.process is not None
    sidecar.process.send_signal(signal.SIGHUP)
    sidecar.await_notification("READY=1")
    assert sidecar.notified[-2].startswith("RELOADING=1\nMONOTONIC_USEC=")


def change(sidecar: Sidecar, **settings: str) -> None:
    """Write another configuration and reload it."""
    for name, value in settings.items():
        setattr(sidecar, name, value)
    sidecar.write_config()
    reload(sidecar)


def list_reloads(sidecar: Sidecar) -> list[tuple[str, str]]:
    """Return what the audit log says of reloads: the phase or outcome, and the reason."""
    records = [json.loads(line) for line in sidecar.audit_log.read_text().splitlines()]
    return [
        (record.get("outcome", record["phase"]), record.get("reason", ""))
        for record in records
        if record["event"] == "run.reload"
    ]


def find_refusal(remote: Remote, code: str) -> str:
    """Return the reason why ``code`` is refused; nothing where it isn't."""
    try:
        remote.run(code)
    except RemoteError as error:
        return error.reason
    return ""


def test_reloads_under_load_lose_no_call() -> None:
    """Clients of three kinds, none of which retries; each reload has two new workers serve."""
    with running_sidecar(settings="workers = 2") as sidecar, Remote(sidecar) as service:
        service.run(LOAD)
        eventually(lambda: service.run(ENOUGH, least=0), lambda enough: enough)
        for number in range(RELOADS):
            former = set(sidecar.workers())
            reload(sidecar)
            eventually(lambda: set(sidecar.workers()), lambda now: not now & former)  # noqa: B023
            assert len(sidecar.workers()) == 2
            done = 10 * (number + 1)
            eventually(lambda: service.run(ENOUGH, least=done), lambda enough: enough)  # noqa: B023
        errors, counts = service.run(END)
        assert errors == []
        assert min(counts.values()) > 30
        assert sidecar.stop() == 0
        assert list_reloads(sidecar) == [("intent", ""), ("ok", "")] * RELOADS
        assert sidecar.verify_log().returncode == 0


def test_a_wrong_file_is_refused_whole_and_the_running_one_goes_on() -> None:
    """The log, ``status`` and the audit log say so, until a good file has been reloaded."""
    with (
        running_sidecar() as sidecar,
        Remote(sidecar) as service,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        look = "answer = [p.reason for p in client.status().problems if 'CONFIG' in p.reason]"
        workers = sidecar.workers()
        good = sidecar.config
        change(sidecar, config=good + '\n[keys.other]\nallow_group = ["x"]\nsuite = "none"\n')
        assert sidecar.workers() == workers
        service.run(f"client.encrypt({KEY!r}, b'as before')")
        assert eventually(lambda: operator.run(look), lambda found: found) == ["CONFIG_INVALID"]
        log = sidecar.log.read_text()
        assert "allow_group" in log
        assert "suite" in log, "every problem is told, not the first only"
        os.kill(workers[0], signal.SIGKILL)  # the worker that takes its place says it as well
        eventually(sidecar.workers, lambda now: now and now != workers)
        assert eventually(lambda: operator.run(look), lambda found: found) == ["CONFIG_INVALID"]

        url = f"sqlite:///{sidecar.store}"
        sidecar.config = good
        sidecar.write_config()
        text = sidecar.config_path.read_text()
        sidecar.config_path.write_text(text.replace(url, url + ".other"))
        reload(sidecar)
        assert "[store] url: can't be changed by a reload: restart keysided" in (
            sidecar.log.read_text()
        )

        away = sidecar.root_key.with_name("away")
        sidecar.root_key.rename(away)  # so that no new worker can start
        change(sidecar, config=good)
        not_started = look.replace("'CONFIG'", "'NOT_STARTED'")
        told = eventually(lambda: operator.run(not_started), lambda found: found)
        assert told == ["WORKERS_NOT_STARTED"]
        service.run(f"client.encrypt({KEY!r}, b'as before')")
        away.rename(sidecar.root_key)
        change(sidecar, config=good)
        assert eventually(lambda: operator.run(look), lambda found: not found) == []
        assert sidecar.stop() == 0
        refused = ("refused", "CONFIG_INVALID")
        assert list_reloads(sidecar) == [
            *(refused, refused),
            *(("intent", ""), ("refused", "WORKERS_NOT_STARTED")),
            *(("intent", ""), ("ok", "")),
        ]


def test_what_the_new_file_takes_away_is_refused_on_connections_opened_before() -> None:
    """A group that may decrypt no longer; then accounts' groups in place of processes'."""
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        service.run(f"envelope = client.encrypt({KEY!r}, b'a token')")
        decrypt = "client.decrypt(envelope)"
        assert find_refusal(service, decrypt) == ""
        narrowed = DEFAULT_KEYS.replace(f"decrypt_groups = [{SERVICE_GID}, ", "decrypt_groups = [")
        change(sidecar, config=narrowed)
        eventually(lambda: find_refusal(service, decrypt), lambda seen: seen == "NOT_ALLOWED", 3.0)
        assert find_refusal(service, f"client.encrypt({KEY!r}, b'')") == ""
        change(sidecar, identity='membership = "account"\nperson_logins = "off"')
        eventually(
            lambda: find_refusal(service, f"client.encrypt({KEY!r}, b'')"),
            lambda seen: seen == "ACCOUNT_UNKNOWN",
            3.0,
        )
        assert sidecar.stop() == 0


def test_another_setting_of_the_audit_log_takes_effect_with_a_new_recorder() -> None:
    """Nothing that was recorded meanwhile is missing, and the log fits together."""
    with running_sidecar() as sidecar, Remote(sidecar) as service:
        recorder = sidecar.recorder()
        encrypt = f"for _ in range(10): client.encrypt({KEY!r}, b'')"
        service.run(encrypt)
        change(sidecar, config='checkpoint_every = "10s"\n' + DEFAULT_KEYS)
        service.run(encrypt)
        eventually(sidecar.recorders, lambda now: now and now != [recorder])
        service.run(encrypt)
        assert sidecar.stop() == 0, "also where the next recorder is not ready yet"
        assert sidecar.verify_log().returncode == 0
        events = [json.loads(line)["event"] for line in sidecar.audit_log.read_text().splitlines()]
        assert Counter(events)["encryption.encrypt"] == 30
        assert Counter(events)["run.start"] == 2


def test_a_reload_ends_grants_of_another_policy_and_changes_pam(place: Town) -> None:
    """The grant within a second of the new workers' start; passwords by the new service."""
    with sidecar_in(place, settings="workers = 1") as sidecar, pam_service(DENY) as denying:
        envelope = place.seal(sidecar)
        access_id, credential = place.granted(sidecar)
        assert place.open(sidecar, envelope, credential).code == "OK"
        config = place.config(key='rotate_every = "80d"').replace(place.pam, denying)
        change(sidecar, config=config)
        eventually(
            lambda: place.show(sidecar, access_id).end_reason,
            lambda reason: reason == "POLICY_CHANGED",
            3.0,
        )
        assert place.open(sidecar, envelope, credential).reason == "GRANT_ENDED"
        assert place.ask(sidecar).reason == "AUTHENTICATION_DENIED"
        assert place.show(sidecar, access_id).state == access_pb2.ACCESS_STATE_ENDED


def test_a_refused_reload_changes_nothing_that_people_rely_on(place: Town) -> None:
    """Its workers look after nothing until they serve: no grant ends, and PAM stays as it was."""
    with sidecar_in(place, settings="workers = 2") as sidecar, pam_service(DENY) as denying:
        envelope = place.seal(sidecar)
        access_id, credential = place.granted(sidecar)
        former = set(sidecar.workers())
        sidecar.config = place.config(key='rotate_every = "80d"').replace(place.pam, denying)
        sidecar.write_config()
        assert sidecar.process is not None
        sidecar.process.send_signal(signal.SIGHUP)
        new = eventually(
            lambda: [pid for pid in sidecar.workers() if pid not in former],
            lambda found: len(found) == 2,
        )
        os.kill(new[1], signal.SIGSTOP)  # so that one is ready, and the other never will be
        eventually(sidecar.log.read_text, lambda log: log.count('event="worker ready"') == 3)
        time.sleep(1.5)  # more than two turns of what ends grants
        assert place.open(sidecar, envelope, credential).code == "OK"
        assert place.ask(sidecar).code == "OK"
        os.kill(new[1], signal.SIGKILL)
        eventually(sidecar.log.read_text, lambda log: "reload refused" in log)
        assert place.open(sidecar, envelope, credential).code == "OK"
        assert place.ask(sidecar).code == "OK"
        assert place.show(sidecar, access_id).end_reason == ""
        assert set(sidecar.workers()) == former


def test_former_workers_end_nothing_that_began_under_the_new_policy(place: Town) -> None:
    """They are kept for two seconds here, by a connection that takes no notice of GOAWAY."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    with sidecar_in(place, settings="workers = 1") as sidecar, socket.socket(socket.AF_UNIX) as raw:
        former = set(sidecar.workers())
        raw.connect(str(sidecar.socket))
        raw.sendall(preface)
        raw.recv(1)  # the worker has it
        change(sidecar, config=place.config(key='rotate_every = "80d"'))
        access_id = place.ask(sidecar).parse(access_pb2.RequestAccessResponse).request.id
        time.sleep(1.3)
        assert former & set(sidecar.workers())
        assert place.show(sidecar, access_id).state == access_pb2.ACCESS_STATE_PENDING


def test_signals_at_any_time_leave_a_sidecar_that_serves_or_ends() -> None:
    """While it starts, twice in a row, and with the end right behind."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        try:
            sidecar.start(wait=False)
            assert sidecar.process is not None
            eventually(sidecar.log.read_text, lambda log: 'event="starting"' in log)
            sidecar.process.send_signal(signal.SIGHUP)
            for _ in range(2):  # it serves; then it has reloaded
                sidecar.await_notification("READY=1")
            for _ in range(3):
                sidecar.process.send_signal(signal.SIGHUP)
                time.sleep(0.02)
            sidecar.await_notification("READY=1")  # those that come meanwhile make one more at most
            done = sidecar.call(f"print(client.decrypt(client.encrypt({KEY!r}, b'served')))")
            assert done.stdout == "b'served'\n", done.stderr
            sidecar.process.send_signal(signal.SIGHUP)
            assert sidecar.stop() == 0
        finally:
            sidecar.kill()


def test_connections_are_spread_evenly_after_a_worker_was_replaced() -> None:
    with running_sidecar(settings="workers = 2") as sidecar, Remote(sidecar) as service:
        first = sidecar.workers()
        os.kill(first[0], signal.SIGKILL)
        eventually(sidecar.log.read_text, lambda log: log.count('event="worker ready"') == 3)
        service.run(f"""
clients = [keyside.Client(expected_owner=owner) for _ in range({CONNECTIONS})]
for one in clients:
    one.encrypt({KEY!r}, b"")
""")
        now = sidecar.workers()
        assert sidecar.stop() == 0
        records: list[dict[str, Any]] = [
            json.loads(line) for line in sidecar.audit_log.read_text().splitlines()
        ]
        workers = Counter(
            record["worker"] for record in records if record["event"] == "encryption.encrypt"
        )
        assert workers == dict.fromkeys(now, CONNECTIONS // 2)
