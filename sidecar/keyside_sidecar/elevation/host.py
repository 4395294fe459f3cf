"""Which host this is: a request belongs to the one where it was made."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Final

_MACHINE_ID: Final = Path("/etc/machine-id")
_LABEL: Final = b"keyside/v1/host\x00"
_MAX_NAME_LENGTH: Final = 200


def describe_host(machine_id: Path = _MACHINE_ID) -> str:
    """Return the host's name and what tells it from another one of that name.

    Two hosts may have one name, and a name may change hands. The machine id is not to be shown
    (machine-id(5)), so what is shown is made from it. A host without one goes by its name alone.
    """
    name = socket.gethostname()[:_MAX_NAME_LENGTH]
    try:
        found = machine_id.read_bytes().strip()
    except OSError:
        return name
    return f"{name}/{hashlib.sha256(_LABEL + found).hexdigest()[:16]}" if found else name
