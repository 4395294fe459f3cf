"""How many files the sidecar's processes may have open."""

from __future__ import annotations

import resource
from typing import Final

from keyside_sidecar.errors import StartupError

# The caller's socket, both ends of the inner connection, and the pidfd.
_PER_CONNECTION: Final = 4
_BESIDE: Final = 128


def check_descriptor_limit(max_connections: int) -> None:
    """Raise the limit on open files to what the connections need.

    Raises:
        StartupError: The hard limit does not allow it.
    """
    needed = max_connections * _PER_CONNECTION + _BESIDE
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartupError(
            f"max_connections = {max_connections} needs {needed} open files",
            remedy="raise LimitNOFILE, or lower max_connections",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
