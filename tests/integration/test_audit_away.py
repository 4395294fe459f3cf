"""The audit log fails or hangs: what is done then, what is said, and how it heals (I8).

And who reads it: auditors all of it, everybody else what they did themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.remote import Remote, RemoteError
from support.sidecar import (
    AUDITOR_UID,
    DEFAULT_KEYS,
    OPERATOR_UID,
    OTHER_UID,
    SERVICE_UID,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

KEY = "mail-credentials"
SEAL = f"answer = len(client.encrypt({KEY!r}, b'x'))"
ROTATE = f"answer = client.rotate_key({KEY!r}, timeout_s=8).version.number"
HEALTH = """
from grpc_health.v1 import health_pb2, health_pb2_grpc
health = health_pb2_grpc.HealthStub(grpc.insecure_channel(target))
"""
LIST = """
listed = health.List(health_pb2.HealthListRequest(), timeout=5).statuses
names = health_pb2.HealthCheckResponse.ServingStatus
answer = {name: names.Name(one.status) for name, one in listed.items()}
"""
NEED_THE_LOG = {
    "",
    "keyside.v1.EncryptionService",
    "keyside.v1.KeyService",
    "keyside.v1.AccessService",
}
# A small place for the log. A mebibyte of it is reserved, if there are two.
DISK_KIB = 4096


def not_serving(probe: Remote) -> set[str]:
    """Return the services that health says are not served."""
    listed: dict[str, str] = probe.run(LIST)
    return {name for name, status in listed.items() if status == "NOT_SERVING"}


def refusal(remote: Remote, code: str) -> tuple[str, str, float]:
    """Return code and reason of what must be refused, and how long that took, in seconds."""
    began_s = time.monotonic()
    with pytest.raises(RemoteError) as refused:
        remote.run(code)
    return refused.value.code, refused.value.reason, time.monotonic() - began_s


def records_of(sidecar: Sidecar) -> list[dict[str, Any]]:
    """Return the whole log's records."""
    lines = [
        line
        for path in sorted(sidecar.audit_log.parent.glob("audit*.jsonl"))
        for line in path.read_text().splitlines(keepends=True)
    ]
    return [json.loads(line) for line in lines if line.endswith("\n")]


@contextlib.contextmanager
def parties(sidecar: Sidecar) -> Iterator[tuple[Remote, Remote, Remote]]:
    """Give a service, an operator and a probe, all of them connected."""
    with (
        Remote(sidecar, SERVICE_UID) as service,
        Remote(sidecar, OPERATOR_UID) as operator,
        Remote(sidecar, OTHER_UID) as probe,
    ):
        probe.run(HEALTH)
        service.run("client = keyside.Client(target, expected_owner=owner, retry=False)")
        service.run(SEAL)
        operator.run(ROTATE)
        yield service, operator, probe


def check_refused_and_said(service: Remote, operator: Remote, probe: Remote) -> None:
    """Nobody waits for ever, nothing is done unrecorded, and health is red."""
    code, reason, took_s = refusal(operator, ROTATE)
    assert (code, reason) == ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
    assert took_s < 5
    eventually(lambda: not_serving(probe), lambda red: red == NEED_THE_LOG)
    code, reason, took_s = refusal(service, SEAL)
    assert (code, reason) == ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
    assert took_s < 1
    assert refusal(operator, ROTATE)[2] < 1, "it is known by now"


def check_healed(service: Remote, operator: Remote, probe: Remote) -> None:
    """By itself; what was refused has not been done."""
    eventually(lambda: not_serving(probe), lambda red: not red)
    assert service.run(SEAL)
    assert operator.run(ROTATE) == 3


@pytest.mark.parametrize("how", ["the recorder hangs", "the recorder is killed again and again"])
def test_i8_nothing_is_done_unrecorded_and_it_heals(how: str) -> None:
    with running_sidecar(settings="workers = 2") as sidecar, parties(sidecar) as everybody:
        if how == "the recorder hangs":
            frozen = sidecar.recorder()
            os.kill(frozen, signal.SIGSTOP)
            check_refused_and_said(*everybody)
            os.kill(frozen, signal.SIGCONT)
        else:
            for _ in range(3):
                os.kill(eventually(sidecar.recorders, bool)[0], signal.SIGKILL)
                time.sleep(0.2)
        if how != "the recorder hangs":
            # A moment without a recorder is waited out; nobody was refused.
            service, operator, probe = everybody
            assert service.run(SEAL)
            assert operator.run(ROTATE) == 3
            assert not_serving(probe) == set()
        else:
            check_healed(*everybody)
        assert sidecar.stop() == 0
        assert sidecar.verify_log().returncode == 0


def test_i8_a_full_disk_is_said_in_the_log_itself() -> None:
    """Space for that is kept; what people do is refused, and goes on when there is room again."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        place = directory / "audit"
        place.mkdir(mode=0o700)
        options = f"size={DISK_KIB}k,mode=0700,uid={SIDECAR_UID},gid={SIDECAR_GID}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        try:
            sidecar.prepare()
            sidecar.start()
            with parties(sidecar) as (service, operator, probe):
                stuffing = place / "stuffing"
                with stuffing.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(1024))
                with contextlib.suppress(RemoteError):  # until the last page of the log is full
                    service.run(f"while True: client.encrypt({KEY!r}, b'x')")
                eventually(lambda: not_serving(probe), lambda red: red == NEED_THE_LOG)
                assert refusal(operator, ROTATE)[1] == "AUDIT_UNAVAILABLE"
                failed = eventually(
                    lambda: [one for one in records_of(sidecar) if one["event"] == "audit.failed"],
                    bool,
                )
                assert failed
                stuffing.unlink()
                eventually(lambda: not_serving(probe), lambda red: not red)
                assert service.run(SEAL)
                assert operator.run(ROTATE) >= 3
                eventually(
                    lambda: [it for it in records_of(sidecar) if it["event"] == "audit.restored"],
                    bool,
                )
            assert sidecar.stop() == 0
            assert sidecar.verify_log().returncode == 0
        finally:
            sidecar.kill()
            subprocess.run(["umount", place], check=True)


def test_services_are_buffered_for_where_so_configured() -> None:
    """Until the bound; people are refused all the same."""
    config = DEFAULT_KEYS.replace(
        "[operators]", 'on_failure = "buffer"\nbuffer_records = 1000\n\n[operators]', 1
    )
    with running_sidecar(config=config) as sidecar, parties(sidecar) as everybody:
        service, operator, probe = everybody
        frozen = sidecar.recorder()
        os.kill(frozen, signal.SIGSTOP)
        assert refusal(operator, ROTATE)[1] == "AUDIT_UNAVAILABLE"
        eventually(lambda: not_serving(probe), bool)
        assert "keyside.v1.EncryptionService" not in not_serving(probe)
        assert service.run(SEAL), "served, and to be recorded later"
        fill = f"""
count = 0
try:
    while count < 20_000:
        client.encrypt({KEY!r}, b"x")
        count += 1
except keyside.errors.Unavailable as error:
    answer = [count, error.reason]
"""
        count, reason = service.run(fill)
        assert reason == "AUDIT_UNAVAILABLE"
        assert count < 2_000
        os.kill(frozen, signal.SIGCONT)
        check_healed(*everybody)
        sealed = count + 3
        eventually(
            lambda: sum(one["event"] == "encryption.encrypt" for one in records_of(sidecar)),
            lambda found: found >= sealed,
        )
        assert sidecar.stop() == 0
        done = [one for one in records_of(sidecar) if one["event"] == "encryption.encrypt"]
        assert sum(one.get("outcome") == "ok" for one in done) == sealed, "each once"


def test_auditors_read_all_of_it_and_others_what_they_did_themselves() -> None:
    """Filters only narrow: neither a uid nor a record's id shows another's records."""
    search = "answer = [one.fields['caller']['uid'] for one in client.search_audit({})]"
    with running_sidecar() as sidecar:
        with (
            Remote(sidecar, SERVICE_UID) as service,
            Remote(sidecar, OPERATOR_UID) as operator,
            Remote(sidecar, AUDITOR_UID) as auditor,
        ):
            service.run(SEAL)
            operator.run(ROTATE)
            by_event = "event='encryption.encrypt'"
            eventually(lambda: auditor.run(search.format(by_event)), lambda uids: uids)
            assert service.run(search.format(by_event)) == [SERVICE_UID]
            assert service.run(search.format("event='key.rotate'")) == []
            assert operator.run(search.format("event='key.rotate'")) == [OPERATOR_UID] * 2
            assert auditor.run(search.format("event='key'")) == [OPERATOR_UID] * 2
            assert service.run(search.format(f"uid={OPERATOR_UID}")) == []
            theirs = "answer = next(client.search_audit(event='key.rotate')).fields['id']"
            identity = auditor.run(theirs)
            assert service.run(search.format(f"record_id={identity!r}")) == []
            own = service.run("answer = [one.sequence for one in client.search_audit()]")
            assert own
            everything = auditor.run("answer = [one.sequence for one in client.search_audit()]")
            assert set(own) < set(everything)
            with pytest.raises(RemoteError) as refused:
                service.run("client.get_audit_checkpoint()")
            assert refused.value.reason == "NOT_ALLOWED"
            kept = auditor.run("answer = client.get_audit_checkpoint().json")
        checkpoint = sidecar.directory / "checkpoint"
        checkpoint.write_text(kept)
        assert sidecar.stop() == 0
        assert sidecar.verify_log("--checkpoint", str(checkpoint)).returncode == 0
        text = sidecar.audit_log.read_text().splitlines(keepends=True)
        sidecar.audit_log.write_text("".join(text[:2]))
        cut = sidecar.verify_log("--checkpoint", str(checkpoint))
        assert cut.returncode == 65, "the checkpoint was kept elsewhere, and knows of more"
