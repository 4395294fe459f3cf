"""What ``keysided check`` looks at of the audit log. It changes nothing, and verifies nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from keyside.audit import parse_checkpoint
from keyside_sidecar.audit.creation import require_safe_log_directory
from keyside_sidecar.audit.places import Places
from keyside_sidecar.audit.reading import find_checkpoint
from keyside_sidecar.audit.recovery import tell_what_to_do_without_log
from keyside_sidecar.audit.signing import holds_key
from keyside_sidecar.commands.findings import Finding, Grade
from keyside_sidecar.errors import AuditUnavailable, StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyside_sidecar.config import Config

_LITTLE_ROOM_BYTES: Final = 256 << 20
_TRIES: Final = 3


def check_audit_log(config: Config) -> Iterator[Finding]:
    """Look at the audit log's files; call as the sidecar's account."""
    path = config.audit.path
    try:
        require_safe_log_directory(path.parent, os.geteuid())
    except StartupError as error:
        yield Finding("audit log", Grade.FAILED, str(error), error.remedy)
        return
    yield _check_key(config)
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    if free < _LITTLE_ROOM_BYTES:
        yield Finding(
            "audit log",
            Grade.WARNING,
            f"there are only {free >> 20} MiB of room left for it in {path.parent}",
            "make room: where it can't be written, calls are refused",
        )


def _check_key(config: Config) -> Finding:
    places = Places(config.audit.path)
    try:
        for _ in range(_TRIES):  # a sidecar that runs may be in the middle of a checkpoint
            found = find_checkpoint(places.log)
            if found is None:
                remedy = tell_what_to_do_without_log(places)
                return Finding("audit log", Grade.FAILED, f"there is none at {places.log}", remedy)
            checkpoint = parse_checkpoint(found.json.encode())
            if holds_key(places, checkpoint):
                return Finding(
                    "audit log",
                    Grade.OK,
                    f"{places.log} is sealed to record {found.sequence}, and its key is there",
                    "send its checkpoints to another place, and verify it now and then",
                )
    except StartupError as error:
        return Finding("audit log", Grade.FAILED, str(error), error.remedy)
    except (AuditUnavailable, OSError):
        return Finding(
            "audit log",
            Grade.FAILED,
            f"{places.log} or its key can't be read",
            "see that the sidecar's account may read and write them",
        )
    return Finding(
        "audit log",
        Grade.FAILED,
        f"the signing key in {places.key} is not the one that the last checkpoint names",
        f"find out why (keyside audit verify {places.log.parent}); then "
        f"{places.tell_how_to_begin_anew()}",
    )
