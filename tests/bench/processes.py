"""What processes cost: processor time and memory, of a whole sidecar or of a command."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.sidecar import IS_ROOT, SERVICE_GID, SERVICE_UID, SIDECAR_UID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from support.sidecar import Sidecar

WHO: dict[str, Any] = (
    {"user": SERVICE_UID, "group": SERVICE_GID, "extra_groups": []} if IS_ROOT else {}
)
OWNER = SIDECAR_UID if IS_ROOT else os.geteuid()
_CPUCLOCK_SCHED = 2


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, and they in turn: all of a sidecar."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            pids += map(int, children.split())
    return pids


def family_of(sidecar: Sidecar) -> list[int]:
    """Return all processes of a sidecar: supervisor, workers, recorder."""
    assert sidecar.process is not None
    return family(sidecar.process.pid)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used, system calls included.

    It is read from their CPU-time clocks (``clock_getcpuclockid(3)``), which count nanoseconds;
    /proc/PID/stat has the same in hundredths of a second.
    """
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)


def memory_kib(pid: int, line: str) -> int:
    """Return a line of /proc/PID/status: ``VmRSS``, ``RssAnon``, ``VmHWM``."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith(f"{line}:"):
            return int(text.split()[1])
    raise SystemExit("the kernel does not say how much memory a process has")


@dataclass(frozen=True)
class Finished:
    """A command that has run to its end.

    Args:
        wall_s: How long it took.
        cpu_s: What it used.
        peak_kib: The most memory that it held; files in memory do not count.
    """

    wall_s: float
    cpu_s: float
    peak_kib: int


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command under the service's account, and take its figures.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **(environment or {})},
        cwd="/",
        **WHO,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return Finished(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
