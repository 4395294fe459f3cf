"""The ``keyside`` command, killed by SIGKILL at a step of its choosing.

    python -m tests.unit.killed_walk STEP COUNT ARGUMENT…

STEP is ``made`` (a temporary file), ``journalled``, ``renaming`` or ``renamed``; the kill comes at
the COUNTth time.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from keyside import _temporary as temporary
from keyside import cli
from keyside.cli import journal, replacing

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Run the command, and be killed."""
    step, count, *arguments = sys.argv[1:]
    times = itertools.count(1)

    def reach(name: str) -> None:
        if name == step and next(times) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(call: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            reach(before)
            answer = call(*given, **named)
            reach(after)
            return answer

        return wrapped

    setattr(os, "rename", around(os.rename, "renaming", "renamed"))  # noqa: B010
    setattr(  # noqa: B010
        replacing, "create_temporary", around(temporary.create_temporary, "", "made")
    )
    setattr(journal.Journal, "add", around(journal.Journal.add, "", "journalled"))  # noqa: B010
    cli.main(arguments)


if __name__ == "__main__":
    main()
