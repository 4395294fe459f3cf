"""What a real sidecar leaves on the disk is read without Keyside, from the pages alone.

Envelopes are opened from the root key's file and the store or a backup of it, and the audit log is
verified, in an interpreter into which nothing of ours is imported.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.remote import Remote, RemoteError
from support.sidecar import OPERATOR_UID, OTHER_UID, PYTHON, SERVICE_UID, Sidecar, running_sidecar
from support.waiting import eventually
from tests.unit.record_schema import SCHEMA, is_valid

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
# Runs a file, and then says whether anything of ours was imported meanwhile.
CLEAN = """
import runpy, sys
path = sys.argv.pop(1)
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as end:
    code = end.code
names = {name.partition(".")[0] for name in sys.modules}
ours = names & {"keyside", "keyside_sidecar", "sqlalchemy", "grpc", "tests"}
sys.exit(f"imported: {ours}" if ours else code)
"""
SEAL = "answer = client.encrypt({key!r}, {text!r}.encode(), {{'row': {text!r}}}).hex()"


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with running_sidecar(settings="workers = 1") as started:
        yield started


def run_clean(file: str, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [PYTHON, "-I", "-c", CLEAN, VECTORS / file, *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


def open_without(root_key: Path, store: Path, envelopes: dict[str, str]) -> None:
    """Open envelopes; each holds the text that its context names."""
    for text, envelope in envelopes.items():
        done = run_clean(
            "second_reader.py",
            *(root_key, store, "--context", f"row={text}"),
            stdin=bytes.fromhex(envelope),
        )
        assert done == (0, text.encode(), b"")


def seal_some(sidecar: Sidecar) -> dict[str, str]:
    """Return envelopes under two keys, and under three versions of one of them."""
    envelopes = {}
    with (
        Remote(sidecar, SERVICE_UID) as service,
        Remote(sidecar, OTHER_UID) as other,
        Remote(sidecar, OPERATOR_UID) as operator,
    ):
        for text in ("eins", "zwei", "dreißig"):
            envelopes[text] = service.run(SEAL.format(key="mail-credentials", text=text))
            operator.run("client.rotate_key('mail-credentials')")
        envelopes["vier"] = other.run(SEAL.format(key="payroll", text="vier"))
        operator.run("client.disable_version('mail-credentials', 1)")
    return envelopes


def test_envelopes_open_from_root_key_and_store_or_backup(sidecar: Sidecar) -> None:
    """While it serves, after it has stopped, and after the root key was replaced."""
    envelopes = seal_some(sidecar)
    backup = sidecar.directory / "backup"
    done = sidecar.keysided("backup", str(backup))
    assert done.returncode == 0, done.stderr
    open_without(sidecar.root_key, sidecar.store, envelopes)
    open_without(sidecar.root_key, backup, envelopes)
    done = sidecar.keysided("root", "rotate")
    assert done.returncode == 0, done.stdout + done.stderr
    [former] = sidecar.root_key.parent.glob("root.key.????????????????")
    open_without(sidecar.root_key, sidecar.store, envelopes)
    open_without(former, backup, envelopes)
    for root_key, store in ((former, sidecar.store), (sidecar.root_key, backup)):
        code, opened, said = run_clean("second_reader.py", root_key, store)
        assert (code, opened) == (65, b"")
        assert b"is needed" in said
    assert sidecar.stop() == 0
    open_without(sidecar.root_key, sidecar.store, envelopes)


def read_log(sidecar: Sidecar) -> list[dict[str, Any]]:
    lines = sidecar.audit_log.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def await_event(sidecar: Sidecar, event: str) -> None:
    eventually(
        lambda: {record["event"] for record in read_log(sidecar)}, lambda seen: event in seen
    )


def test_log_is_verified_and_every_record_meets_the_schema(sidecar: Sidecar) -> None:
    """Also the records of a store that is away and comes back, and of what is refused."""
    seal_some(sidecar)
    elsewhere = sidecar.directory / "elsewhere.db"
    sidecar.store.rename(elsewhere)
    await_event(sidecar, "store.problem")
    elsewhere.rename(sidecar.store)
    await_event(sidecar, "store.sound")
    log = sidecar.audit_log
    code, said, _ = run_clean("second_verifier.py", "--public-key", sidecar.public_key, log)
    assert (code, b"intact=True" in said) == (1, True), said
    sidecar.kill()
    sidecar.start()
    with Remote(sidecar, SERVICE_UID) as service, pytest.raises(RemoteError):
        service.run("client.rotate_key('mail-credentials')")
    assert sidecar.stop() == 0
    code, said, _ = run_clean("second_verifier.py", "--public-key", sidecar.public_key, log)
    assert (code, b"completeness='closed'" in said) == (0, True), said
    records = read_log(sidecar)
    assert [record for record in records if not is_valid(record)] == []
    events = {record["event"] for record in records}
    assert {"run.recovered", "key.disable", "caller.refused", "encryption.encrypt"} <= events
    assert events <= set(SCHEMA["properties"]["event"]["examples"])
