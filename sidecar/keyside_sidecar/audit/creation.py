"""Making a log: its first file, which holds one checkpoint, and its signing key.

The first checkpoint is signed with a key that nobody keeps: its public key is what ``keysided
init`` prints, and what a verifier begins with. The order on the disk::

    nothing ──► KEY.next ──► KEY.next, LOG of one line ──(its public key is told)──► KEY, LOG

A log that is used has a KEY. So one without, of one line at most, was begun and nobody has
recorded anything in it: it is made anew, and its public key told again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyside.audit import (
    FIRST_PREVIOUS,
    MAX_LINE_BYTES,
    Seal,
    cover,
    encode_line,
    hash_record,
    name_log,
    sign_checkpoint,
)
from keyside_sidecar.audit.places import Places, write_new
from keyside_sidecar.audit.signing import (
    SigningKey,
    adopt_next_key,
    hash_checkpoint,
    write_key,
)
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keyside_sidecar.config import AuditSettings

_EX_CANTCREAT: Final = 73


def find_log(path: Path) -> Path | None:
    """Return a file that shows that there is a log, or was; one that was only begun is none.

    It is ``path`` itself where the log's current file is there.
    """
    places = Places(path)
    if os.path.lexists(places.log):
        left = _find_left(places)
        is_begun = left is None and os.path.lexists(places.next_key) and _is_begun(places.log)
        return None if is_begun else places.log
    return _find_left(places)


def require_no_log(path: Path) -> None:
    """Check that there is nothing of a log, but what was only begun.

    Raises:
        StartupError: There is. Nothing is overwritten.
    """
    found = find_log(path)
    if found is not None:
        raise StartupError(
            f"there is an audit log at {path} already ({found.name}); nothing was changed",
            remedy="find out what it belongs to: where root key or store are missing, restore "
            "them from their backups; one in which keysided check finds nothing wrong stays as "
            f"it is; otherwise {Places(path).tell_how_to_begin_anew()}",
            exit_code=_EX_CANTCREAT,
        )


def _find_left(places: Places) -> Path | None:
    """Return a file that only a log which was used has, beside its current one."""
    with contextlib.suppress(OSError):
        finished = places.list_finished()
        if finished:
            return finished[0]
    return places.key if os.path.lexists(places.key) else None


def _is_begun(log: Path) -> bool:
    """Return whether a log holds no more than its first line."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        data = os.read(descriptor, MAX_LINE_BYTES + 1)
    finally:
        os.close(descriptor)
    return len(data) <= MAX_LINE_BYTES and b"\n" not in data[:-1]


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


def create_log(settings: AuditSettings, announce: Callable[[bytes], None] | None = None) -> bytes:
    """Make a log, as the account that will write it; return its first public key.

    Args:
        settings: Where.
        announce: Is given the first public key before the log counts as made: where nobody has
            heard of it, there is none.

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
    with _explaining(places):
        for begun in (places.log, places.next_key):
            begun.unlink(missing_ok=True)
        write_key(places.next_key, SigningKey(following, hash_checkpoint(line[:-1])))
        write_new(places.log, line)
    if announce is not None:
        announce(public_key)
    with _explaining(places):
        adopt_next_key(places)
    return public_key


@contextlib.contextmanager
def _explaining(places: Places) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(
            f"the audit log {places.log} can't be made: {error.strerror}",
            remedy="see that there is room, and that the sidecar's account may write there",
            exit_code=_EX_CANTCREAT,
        ) from error
