"""What the host sees of a running sidecar: no core dumps, no way in, no secrets outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.marks import find_secrets, read_root_key
from support.remote import Remote
from support.sidecar import SIDECAR_UID, Sidecar, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """One that has keys in memory."""
    with running_sidecar(settings="workers = 2") as running:
        yield running


def list_processes(sidecar: Sidecar) -> list[Path]:
    """Return where /proc describes the supervisor, its workers and its recorder."""
    assert sidecar.process is not None
    pids = (sidecar.process.pid, *sidecar.workers(), sidecar.recorder())
    return [Path(f"/proc/{pid}") for pid in pids]


def read_status(process: Path) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_i7_no_process_can_leave_a_core_dump(sidecar: Sidecar) -> None:
    """Not dumpable either: a core that goes through a pipe ignores the limit."""
    for process in list_processes(sidecar):
        (limit,) = (
            line
            for line in (process / "limits").read_text().splitlines()
            if line.startswith("Max core file size")
        )
        assert limit.split()[4:6] == ["0", "0"]
        # The kernel gives root the files of a process that is not dumpable.
        assert (process / "limits").stat().st_uid == 0


def test_workers_and_recorder_run_as_the_account_with_nothing_of_root_left(
    sidecar: Sidecar,
) -> None:
    for process in list_processes(sidecar)[1:]:
        status = read_status(process)
        assert status["Uid"].split() == [str(SIDECAR_UID)] * 4
        assert status["Gid"].split() == [str(SIDECAR_UID)] * 4
        assert set(status["Groups"].split()) <= {str(SIDECAR_UID)}
        assert {int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert status["Umask"] == "0077"


def test_i7_not_even_the_same_account_looks_into_a_worker(sidecar: Sidecar) -> None:
    with Remote(sidecar, SIDECAR_UID) as same_account:
        for process in list_processes(sidecar)[1:]:
            for name in ("mem", "environ", "maps", "fd/0"):
                code = (
                    "try:\n    open(path, 'rb').read(1)\n    answer = 'opened'\n"
                    "except PermissionError:\n    answer = 'refused'"
                )
                assert same_account.run(code, path=str(process / name)) == "refused", name


def test_i7_no_key_material_in_arguments_or_environment(sidecar: Sidecar) -> None:
    secrets = {"the root key": read_root_key(sidecar.root_key)}
    places = {
        f"{process.name}/{name}": (process / name).read_bytes()
        for process in list_processes(sidecar)
        for name in ("cmdline", "environ", "comm")
    }
    assert len(places) == 12
    assert find_secrets(places, secrets) == []
