"""Which program a process runs, for the record: it decides nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MAX_EXE_BYTES: Final = 255
# Each byte that isn't UTF-8 becomes four characters.
MAX_EXE_LENGTH: Final = 4 * MAX_EXE_BYTES


def read_exe(pid: int, proc: Path = Path("/proc")) -> str | None:
    r"""Return the path of the program that a process runs, as ``/proc/PID/exe`` has it.

    *Not* guaranteed: that the file at this path is still the one that runs (the kernel adds
    " (deleted)" where it is gone), or that it lies there for us too: the process may be in another
    mount namespace. That the number still names the process is the caller's to check, *afterwards*.

    Returns:
        The path, with bytes that aren't UTF-8 as ``\xNN``; None where the path is longer than 255
        bytes or may not be read, which needs the same account or CAP_SYS_PTRACE. Never raises.
    """
    try:
        raw = os.fsencode((proc / str(pid) / "exe").readlink())
    except (OSError, ValueError):
        return None
    return raw.decode(errors="backslashreplace") if 0 < len(raw) <= MAX_EXE_BYTES else None
