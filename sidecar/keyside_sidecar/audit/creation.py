"""Making a log: its first file, which holds one checkpoint, and its signing key.

The first checkpoint is signed with a key that nobody keeps: its public key is what ``keysided
init`` prints, and what a verifier begins with.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyside.audit import (
    FIRST_PREVIOUS,
    Seal,
    cover,
    encode_line,
    hash_record,
    name_log,
    sign_checkpoint,
)
from keyside_sidecar.audit.places import Places, write_new
from keyside_sidecar.audit.signing import SigningKey, hash_checkpoint, write_key
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.config import AuditSettings

_MODE: Final = 0o600
_EX_CANTCREAT: Final = 73


def require_no_log(path: Path) -> None:
    """Check that there is nothing of a log.

    Raises:
        StartupError: There is. Nothing is overwritten.
    """
    places = Places(path)
    with contextlib.suppress(OSError):
        for found in places.list_parts():
            raise StartupError(
                f"there is an audit log at {path} already ({found.name}); nothing was changed",
                remedy="if keysided check finds nothing wrong with it, there is nothing to do; "
                f"otherwise {places.tell_how_to_begin_anew()}",
                exit_code=_EX_CANTCREAT,
            )


def require_safe_log_directory(directory: Path, uid: int) -> None:
    """Check that the account can make files in ``directory``, and nobody else can but root.

    Raises:
        StartupError: It can't, or somebody else can.
    """
    try:
        status = directory.stat()
    except OSError as error:
        raise StartupError(
            f"the audit log's directory {directory} can't be used: {error.strerror}",
            remedy=f"create {directory}, owned by the sidecar's account, mode 0700",
        ) from error
    if status.st_uid != uid or status.st_mode & 0o022:
        raise StartupError(
            f"the audit log's directory {directory} belongs to uid {status.st_uid} and has mode "
            f"{stat.S_IMODE(status.st_mode):04o}; it must belong to the sidecar's account (uid "
            f"{uid}), and nobody else may make files in it",
            remedy=f"chown it to that account; chmod 0700 {directory}",
        )


def create_log(settings: AuditSettings) -> bytes:
    """Make a log, as the account that will write it; return its first public key.

    Raises:
        StartupError: There is one already, its directory is not safe, or it can't be made.
    """
    places = Places(settings.path)
    require_safe_log_directory(places.log.parent, os.geteuid())
    require_no_log(settings.path)
    first, following = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public_key = first.public_key().public_bytes_raw()
    seal = Seal(
        1,
        "start",
        name_log(public_key),
        max(1, round(settings.checkpoint_every_s)),
        following.public_key().public_bytes_raw(),
    )
    start = cover(1, Stamps(SystemClock()).stamp({"event": "checkpoint"}))
    covered = sign_checkpoint(seal, start, FIRST_PREVIOUS, first.sign)
    line = encode_line(covered, hash_record(FIRST_PREVIOUS, covered))
    try:
        write_key(places.key, SigningKey(following, hash_checkpoint(line[:-1])))
        try:
            write_new(places.log, line)
        except OSError:
            places.key.unlink()
            raise
    except OSError as error:
        raise StartupError(
            f"the audit log {places.log} can't be made: {error.strerror}",
            remedy="see that there is room, and that the sidecar's account may write there",
            exit_code=_EX_CANTCREAT,
        ) from error
    return public_key
