"""``keysided init``, killed by SIGKILL before each of its steps in turn, and run again.

    python -m support.killed_init CONFIG…

A step is a call that changes something on the disk. In the directory of the first CONFIG the kill
comes before the first step, and so on, until one has no step left to be killed at. Says in JSON, a
line for each, what was there after the kill, and what the second run said. All are forked from
here, so that each costs no more than its work.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import alembic.command
import alembic.script

from keyside_sidecar import __main__ as keysided
from keyside_sidecar.commands import check, init
from keyside_sidecar.store import schema

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS: Final = (
    "fchmod",
    "fchown",
    "fsync",
    "link",
    "open",
    "rename",
    "replace",
    "unlink",
    "write",
)


class Killing:
    """Counts steps, and kills this process before one of them.

    Args:
        last: Before which.
    """

    def __init__(self, last: int) -> None:
        self._left = last
        for name in _STEPS:
            setattr(os, name, self._around(getattr(os, name)))
        setattr(schema, "upgrade", self._around(schema.upgrade))  # noqa: B010

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            if call.__name__ != "open" or given[1] & os.O_CREAT:
                self._left -= 1
                if self._left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        return wrapped


def run(arguments: list[str], kill_before: int = 0) -> tuple[int, str]:
    """Run ``keysided`` in a child; return its exit code (negative: a signal) and what it said."""
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["keysided", *arguments]
            try:
                if kill_before:
                    Killing(kill_before)
                keysided.main()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(int(str(end.code)))
            finally:
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return code, said.read().decode()


def look(directory: Path) -> dict[str, tuple[int, str]]:
    """Return what ``init`` has made: inode and content in hex of each file with its own name."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.read_bytes().hex())
        for path in sorted(directory.glob("*/*"))
        if not path.name.startswith(".")
    }


def main() -> None:
    """Go through all of them."""
    for loaded in (alembic, check, init):  # once, and not by each child
        assert loaded
    checked: dict[tuple[str, ...], tuple[int, str]] = {}
    for number, config in enumerate(sys.argv[1:], 1):
        directory = Path(config).parent
        first = run(["--config", config, "init"], number)
        after_kill = look(directory)
        second = run(["--config", config, "init"])
        stage = tuple(after_kill)
        if stage not in checked:  # verifies the store with the root key; one of each stage
            checked[stage] = run(["--config", config, "check"])
        facts = {
            "config": config,
            "first": first,
            "after_kill": after_kill,
            "second": second,
            "at_the_end": look(directory),
            "checked": checked[stage],
        }
        print(json.dumps(facts), flush=True)
        if first[0] != -signal.SIGKILL:
            return


if __name__ == "__main__":
    main()
