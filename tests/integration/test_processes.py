"""The supervisor and what it keeps: workers, and the recorder that owns the audit log."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.peers import connect_as
from support.processes import await_ended
from support.remote import Remote
from support.sidecar import (
    OPERATOR_UID,
    OTHER_UID,
    SIDECAR_UID,
    Sidecar,
    running_sidecar,
    sidecar_directory,
)
from support.waiting import eventually

pytestmark = pytest.mark.root

KEY = "mail-credentials"
MAX_PER_UID = 4


def read_records(sidecar: Sidecar) -> list[dict[str, Any]]:
    """Return the records of the audit log's current file; half a line is not one yet."""
    text = sidecar.audit_log.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def list_events(sidecar: Sidecar, event: str) -> list[dict[str, Any]]:
    """Return the records of one event."""
    return [record for record in read_records(sidecar) if record["event"] == event]


def test_the_recorder_is_replaced_and_every_worker_records_with_the_new_one() -> None:
    """I8: what a person does is recorded again within seconds; no worker is lost for it."""
    with running_sidecar(settings="workers = 2") as sidecar:
        workers, recorder = sidecar.workers(), sidecar.recorder()
        with Remote(sidecar) as service:
            service.run(f"client.encrypt({KEY!r}, b'before')")
        os.kill(recorder, signal.SIGKILL)
        eventually(lambda: len(list_events(sidecar, "run.start")), lambda count: count >= 2)
        # Open at the same time, so that each worker has one.
        with Remote(sidecar, OPERATOR_UID) as first, Remote(sidecar, OPERATOR_UID) as second:
            for operator in (first, second):
                operator.run(f"client.rotate_key({KEY!r}, timeout_s=10)")
        outcomes = [each for each in list_events(sidecar, "key.rotate") if "outcome" in each]
        assert {each["outcome"] for each in outcomes} == {"ok"}
        assert {each["worker"] for each in outcomes} == set(workers)
        assert sidecar.workers() == workers
        assert sidecar.recorder() != recorder
        assert sidecar.stop() == 0
        assert list_events(sidecar, "encryption.encrypt"), "what the first one had not written yet"


def test_a_worker_that_ends_is_on_the_record_and_its_successor_records() -> None:
    with running_sidecar() as sidecar:
        (worker,) = sidecar.workers()
        os.kill(worker, signal.SIGKILL)
        ((ended,), _) = eventually(
            lambda: (list_events(sidecar, "worker.ended"), sidecar.workers()),
            lambda seen: seen[0] and set(seen[1]) - {worker},
        )
        assert (ended["worker"], ended["details"]) == (worker, {"code": -signal.SIGKILL})
        with Remote(sidecar, OPERATOR_UID) as operator:
            operator.run(f"client.rotate_key({KEY!r}, timeout_s=10)")
        intent, outcome = list_events(sidecar, "key.rotate")
        assert (intent["phase"], outcome["outcome"]) == ("intent", "ok")
        assert [outcome["worker"]] == sidecar.workers()
        assert sidecar.stop() == 0


def test_the_workers_last_records_come_before_the_end_of_the_run() -> None:
    """What was served while it was told to stop, and then run.end and the last checkpoint."""
    with running_sidecar(settings="workers = 2") as sidecar, Remote(sidecar) as service:
        service.run(f"for _ in range(20): client.encrypt({KEY!r}, b'a token')")
        assert sidecar.stop() == 0
        records = read_records(sidecar)
        assert len([each for each in records if each["event"] == "encryption.encrypt"]) == 20
        assert [each["event"] for each in records[-2:]] == ["run.end", "checkpoint"]
        assert records[-1]["details"]["kind"] == "stop"
        assert sidecar.notified == ["READY=1", "STOPPING=1"]


def test_nothing_is_served_without_a_recorder_that_has_its_log() -> None:
    """The recorder says why, and the supervisor ends with its code."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        sidecar.audit_log.rename(directory / "elsewhere.jsonl")
        sidecar.start(wait=False)
        assert sidecar.wait() == 78
        log = sidecar.log.read_text()
        assert "recorder can't start" in log
        assert "worker ready" not in log


def test_connections_that_are_refused_for_want_of_room_are_on_the_record() -> None:
    """Counted for each uid, and not one by one: a stranger must not be able to fill the disk."""
    with running_sidecar(settings=f"max_connections_per_uid = {MAX_PER_UID}") as sidecar:
        held = [connect_as(OTHER_UID, sidecar.socket) for _ in range(MAX_PER_UID + 3)]
        eventually(sidecar.log.read_text, lambda log: "too many are open" in log)
        for connection in held:
            connection.close()
        assert sidecar.stop() == 0
        (record,) = list_events(sidecar, "connection.refused")
        assert record["caller"] == {"uid": OTHER_UID}
        assert (record["outcome"], record["reason"]) == ("refused", "TOO_MANY_OPEN")
        assert record["count"] == 3


def test_the_recorder_ends_with_a_supervisor_that_was_killed() -> None:
    """It seals what it has, and lets the next one have the log."""
    with running_sidecar() as sidecar:
        recorder = sidecar.recorder()
        assert sidecar.process is not None
        sidecar.process.kill()
        assert sidecar.wait() == -signal.SIGKILL
        await_ended([recorder], 5.0)
        assert read_records(sidecar)[-1]["event"] == "checkpoint"
        sidecar.start()
        assert sidecar.stop() == 0


def test_the_recorder_runs_as_the_account_with_nothing_of_root_left() -> None:
    with running_sidecar() as sidecar:
        lines = Path(f"/proc/{sidecar.recorder()}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"] == status["Gid"] == [str(SIDECAR_UID)] * 4
        assert {int(status[f"Cap{name}"][0], 16) for name in ("Prm", "Eff", "Amb")} == {0}
        assert status["NoNewPrivs"] == ["1"]
        sockets = [
            link
            for link in map(os.readlink, Path(f"/proc/{sidecar.recorder()}/fd").iterdir())
            if link.startswith("socket:")
        ]
        assert len(sockets) == 2, "the supervisor's channel and one worker's"
