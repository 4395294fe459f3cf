"""The ``keyside`` command, killed by SIGKILL at a step of its choosing.

    python -m tests.unit.killed_walk SYSTEM STEP COUNT ARGUMENT…

SYSTEM is ``able``, or ``plain``: as on a file system that has neither files without a name nor an
exchange of names. STEP is what was just done: ``made`` (a new file), ``journalled``, ``link``,
``exchange``, ``rename``, ``unlink``; or what was about to be done: ``before link`` and so on. The
kill comes at the COUNTth time.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from keyside import _new_file as new_file
from keyside import cli
from keyside.cli import journal

if TYPE_CHECKING:
    from collections.abc import Callable


def be_plain() -> None:
    """Have neither O_TMPFILE nor renameat2."""
    genuine = os.open

    def open_named(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return genuine(path, flags, *more, **named)

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    setattr(os, "open", open_named)  # noqa: B010
    setattr(new_file, "exchange_names", refuse)  # noqa: B010
    setattr(new_file, "rename_without_replacing", refuse)  # noqa: B010


def main() -> None:
    """Run the command, and be killed."""
    system, step, count, *arguments = sys.argv[1:]
    times = itertools.count(1)

    def reach(name: str) -> None:
        if name == step and next(times) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(owner: Any, attribute: str, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, attribute)

        def wrapped(*given: Any, **named: Any) -> Any:
            reach(f"before {name}")
            answer = call(*given, **named)
            reach(name)
            return answer

        setattr(owner, attribute, wrapped)

    if system == "plain":
        be_plain()
    for name in ("link", "rename", "unlink"):
        wrap(os, name, name)
    wrap(new_file, "exchange_names", "exchange")
    wrap(new_file.NewFile, "__init__", "made")
    wrap(journal.Journal, "add", "journalled")
    cli.main(arguments)


if __name__ == "__main__":
    main()
