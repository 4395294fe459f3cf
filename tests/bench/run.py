"""``make bench``: everything that Keyside promises to be fast at, beside its peers, in one run.

What is compared takes turns within each round; figures are medians over the rounds, and ratios are
computed round by round. Machines are shared and noisy: read the ratios, not the figures.

Writes build/bench.json (build/soak.json with ``--soak``), prints a table and, after a whole run,
brings docs/performance.md and docs/performance.svg up to date. Ends with 1 where something could
not be measured, and the documents stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import archive
import batches
import document
import file_sealing
import idle
import latency
import local
import soak_memory
import soak_mixed
import starting
import table
import unary
from plan import FULL, QUICK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from plan import Plan
    from rows import Row

BUILD = Path("build")
PARTS: dict[str, Callable[[Plan], Iterable[Row]]] = {
    "unary": unary.run,
    "latency": latency.run,
    "batches": batches.run,
    "local": local.run,
    "files": file_sealing.run,
    "start": starting.run,
    "idle": idle.run,
    "archive": archive.run,
}
SOAK: dict[str, Callable[[Plan], Iterable[Row]]] = {
    "memory": soak_memory.run,
    "mixed": soak_mixed.run,
}


def measure(parts: dict[str, Callable[[Plan], Iterable[Row]]], plan: Plan) -> tuple[list[Row], int]:
    """Return all rows, and how many parts could not be measured."""
    rows: list[Row] = []
    failed = 0
    for name, part in parts.items():
        began = time.monotonic()
        try:
            rows += table.show_part(name, part(plan))
        except (Exception, SystemExit):  # noqa: BLE001  (the others are measured all the same)
            traceback.print_exc()
            print(f"bench: {name} could not be measured", file=sys.stderr)
            failed += 1
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    return rows, failed


def main() -> int:
    """Measure and report; return an exit code."""
    parser = argparse.ArgumentParser(description="Measure Keyside beside its peers.")
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument("--soak", action="store_true", help="the long rows, and nothing else")
    parser.add_argument("parts", nargs="*", help="only these", metavar="PART")
    arguments = parser.parse_args()
    parts = SOAK if arguments.soak else PARTS
    for name in arguments.parts:
        if name not in parts:
            parser.error(f"there is no {name}; there are {', '.join(parts)}")
    chosen = {name: parts[name] for name in arguments.parts or parts}
    rows, failed = measure(chosen, QUICK if arguments.quick else FULL)
    BUILD.mkdir(exist_ok=True)
    result = BUILD / ("soak.json" if arguments.soak else "bench.json")
    result.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    if failed:
        return 1
    if chosen == parts and not arguments.quick:
        document.update(rows, "soak" if arguments.soak else "bench")
    missed = [row.name for row in rows if row.met is False]
    print(f"\n{len(rows)} rows in {result}; {len(missed)} miss their target")
    # The soak's rows are right or wrong; the others are as fast as the machine is today.
    return 1 if arguments.soak and missed else 0


if __name__ == "__main__":
    sys.exit(main())
