"""Brings docs/performance.md and its picture up to date with what was measured.

The document's text is written by hand. Between a pair of marks stands what a run has found, and
nothing else writes there.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import picture
from rows import write_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rows import Row

DOCUMENT = Path("docs/performance.md")
PICTURE = Path("docs/performance.svg")
_PACKAGES = (
    "grpcio",
    "uvloop",
    "cryptography",
    "tink",
    "aws-encryption-sdk",
    "aws-cryptographic-material-providers",
)


def update(rows: Sequence[Row], part: str) -> None:
    """Write what was found between the marks of ``part``, and draw the picture.

    Args:
        rows: All that were measured.
        part: ``bench`` or ``soak``.
    """
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    block = "\n".join((begin, "", *describe_run(), "", *tabulate(rows), "", end))
    pattern = re.escape(begin) + ".*" + re.escape(end)
    changed, count = re.subn(pattern, lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{DOCUMENT} does not have the marks of {part} once")
    DOCUMENT.write_text(changed)
    if part == "bench":
        PICTURE.write_text(picture.draw(rows))


def describe_run() -> list[str]:
    """Return where and when, and against what."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    commands = "; ".join(map(_version, ("age", "h2load", "cp")))
    return [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on {_machine()}.",
        f"Python {platform.python_version()}; {versions}; {commands}.",
    ]


def tabulate(rows: Sequence[Row]) -> list[str]:
    """Return the rows as a Markdown table."""
    lines = [
        "| what | unit | ours | theirs | ratio (lowest, highest) | target | met |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        theirs = ratio = ""
        if row.theirs is not None and row.ratio is not None:
            assert row.low is not None
            assert row.high is not None
            theirs = write_number(row.theirs)
            ratio = f"{write_number(row.ratio)} ({write_number(row.low)}, {write_number(row.high)})"
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        name = row.name
        if row.facts:
            facts = "; ".join(f"{fact}: {write_number(it)}" for fact, it in row.facts.items())
            name += f"<br><small>{facts}</small>"
        cells = (name, row.unit, write_number(row.ours), theirs, ratio, row.target_text, met)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _machine() -> str:
    model = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[2]
    return (
        f"{cores} cores of {model}, {memory:.0f} GiB, Linux {platform.release()} "
        f"(load over the last 15 minutes, the bench's own included: {load:.1f})"
    )


def _version(command: str) -> str:
    output = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    first = output.stdout.splitlines()[0]
    return first if command in first else f"{command} {first}"
