"""A large file on memory-backed storage: ``keyside encrypt`` beside age and cp.

Whole commands are measured, their start included, into a file that is new each time. What was
read is removed before the next command: they all find as much memory, and the machine needs less.
Peak memory is the process's own (``ru_maxrss``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from processes import OWNER, WHO
from processes import run as run_command
from rows import Target, compare, middle, pick, take_turns
from support.sidecar import PYTHON, running_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plan import Plan
    from rows import Figures, Row
    from support.sidecar import Sidecar

STORAGE = Path("/dev/shm")
MAX_PEAK_MIB = 120
MIB = 1 << 20
# The file, and what is made of it.
_COPIES = 2


class Bench:
    """The commands, on one file."""

    def __init__(self, sidecar: Sidecar, directory: Path, size: int) -> None:
        self._size = size
        self._environment = {
            "KEYSIDE_SOCKET": str(sidecar.socket),
            "KEYSIDE_EXPECTED_OWNER": str(OWNER),
        }
        self._keyside = Path(PYTHON).with_name("keyside")
        self._plain = directory / "plain"
        self._sealed = directory / "sealed"
        self._opened = directory / "opened"
        self._part = os.urandom(MIB)
        with self._plain.open("wb") as file:
            for _ in range(size // MIB):
                file.write(self._part)
        identity = directory / "identity"
        subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True, **WHO)
        self._identity = identity
        made = subprocess.run(
            ["age-keygen", "-y", identity], check=True, capture_output=True, text=True, **WHO
        )
        self._recipient = made.stdout.strip()

    def keyside(self) -> Figures:
        """Encrypt and decrypt with Keyside."""
        return self._both(
            (self._keyside, "encrypt", "mail-credentials", "-i", self._plain, "-o", self._sealed),
            (self._keyside, "decrypt", "-i", self._sealed, "-o", self._opened),
        )

    def age(self) -> Figures:
        """Encrypt to one recipient and decrypt with age."""
        return self._both(
            ("age", "-r", self._recipient, "-o", self._sealed, self._plain),
            ("age", "-d", "-i", self._identity, "-o", self._opened, self._sealed),
        )

    def copy(self) -> Figures:
        """Copy there and back."""
        return self._both(("cp", self._plain, self._sealed), ("cp", self._sealed, self._opened))

    def _both(self, *commands: Sequence[str | Path]) -> Figures:
        """Run two commands. Beside what each makes, only what it reads takes up memory."""
        figures: Figures = {}
        for verb, command in zip(("encrypt", "decrypt"), commands, strict=True):
            done = run_command(command, self._environment)
            figures |= {verb: self._size / MIB / done.wall_s, f"{verb} peak": done.peak_kib / 1024}
            (self._plain if verb == "encrypt" else self._sealed).unlink()
        self._check()
        self._opened.rename(self._plain)
        return figures

    def _check(self) -> None:
        buffer = bytearray(MIB)
        with self._opened.open("rb", buffering=0) as file:
            for _ in range(self._size // MIB):
                if file.readinto(buffer) != MIB or buffer != self._part:
                    raise SystemExit(f"{self._opened} is not what was sealed")
            if file.read(1):
                raise SystemExit(f"{self._opened} is longer than what was sealed")


def run(plan: Plan) -> Iterator[Row]:
    """Seal and open, in turns, and copy."""
    free = shutil.disk_usage(STORAGE).free
    size = plan.file_bytes
    # A machine with little memory measures a smaller file, and the rows say how large it was.
    while size * _COPIES > min(free, _available_bytes()) and size > 256 * MIB:
        size //= 2
    directory = Path(tempfile.mkdtemp(prefix="ks-bench-", dir=STORAGE))
    try:
        if WHO:
            os.chown(directory, WHO["user"], WHO["group"])
        with running_sidecar() as sidecar:
            yield from _measure(Bench(sidecar, directory, size), size, plan.slow_rounds)
    finally:
        shutil.rmtree(directory)


def _measure(bench: Bench, size: int, rounds: int) -> Iterator[Row]:
    contenders = {"keyside": bench.keyside, "age": bench.age, "cp": bench.copy}
    taken = take_turns(contenders, rounds, warm_up=False)
    for verb in ("encrypt", "decrypt"):
        title = f"{verb} a file of {size / (1 << 30):.3g} GiB"
        for peer, bound in (("age", 1.3), ("cp", 0.6)):
            rates = pick(taken, "keyside", verb), pick(taken, peer, verb)
            yield compare(f"{title} / {peer}", "MiB/s", *rates, target=Target(bound))
        yield compare(
            f"{title}, peak memory",
            "MiB",
            pick(taken, "keyside", f"{verb} peak"),
            target=Target(MAX_PEAK_MIB, of_ratio=False, at_least=False),
            facts={"age, MiB": middle(taken, "age", f"{verb} peak")},
        )


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
