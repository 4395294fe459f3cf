r"""The key that signs checkpoints: each one signs the next public key, and is deleted then.

A key's file is one line, as a root key's is (``custody/file.py``)::

    KEYSIDE-AUDIT-KEY-1:<32 bytes in base64url, no padding>:<16 hexadecimal digits>

The order on the disk, which a kill at any instant leaves in one of two states::

    KEY ──prepare: write KEY.next, fsync──► KEY, KEY.next
        ──(the checkpoint that names KEY.next's public key is written, fdatasync)──►
        ──commit: overwrite KEY, rename KEY.next to KEY, fsync the directory──► KEY

``recover`` takes the one that the log's last checkpoint names. Overwriting is a courtesy: a file
system that never writes in place, or an SSD, may keep the old bytes; and Python can't wipe memory.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyside_sidecar.audit.places import fsync_directory
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

    from keyside_sidecar.audit.places import Places

_PREFIX: Final = b"KEYSIDE-AUDIT-KEY-1:"
_LINE: Final = re.compile(rb"KEYSIDE-AUDIT-KEY-1:([A-Za-z0-9_-]{43}):([0-9a-f]{16})\n")
_LINE_LENGTH: Final = len(_PREFIX) + 43 + 1 + 16 + 1
_MODE: Final = 0o600
_EX_CONFIG: Final = 78


class Signer:
    """Holds the current signing key, and for a moment the next one."""

    __slots__ = ("_current", "_following", "_places")

    def __init__(self, places: Places, current: Ed25519PrivateKey) -> None:
        self._places = places
        self._current = current
        self._following: Ed25519PrivateKey | None = None

    def __repr__(self) -> str:
        return f"Signer({str(self._places.key)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Signer can't be pickled or copied")

    @classmethod
    def recover(cls, places: Places, public_key: bytes) -> Signer:
        """Take up the key that the log's last checkpoint names, and remove any other.

        Raises:
            StartupError: It is not there, or somebody else could have read it.
            OSError: The files can't be used.
        """
        current, following = _load(places.key), _load(places.next_key)
        if following is not None and _public(following) == public_key:
            signer = cls(places, following)
            _move(places)
            return signer
        if current is None or _public(current) != public_key:
            raise StartupError(
                f"the signing key in {places.key} is not the one that the last checkpoint in "
                f"{places.log} names: the log was cut off or put back, or the key was replaced",
                remedy="keep both as they are and find out why (keyside audit verify); then move "
                "the log's files and keys away together, and begin a new log with keysided init "
                "--only-audit",
                exit_code=_EX_CONFIG,
            )
        with contextlib.suppress(FileNotFoundError):
            places.next_key.unlink()
        return cls(places, current)

    def sign(self, data: bytes) -> bytes:
        """Return the current key's signature."""
        return self._current.sign(data)

    def prepare(self) -> bytes:
        """Make the next key, durably, and return its public key. Repeated, it makes no other.

        Raises:
            OSError: It can't be written.
        """
        if self._following is None:
            following = Ed25519PrivateKey.generate()
            with contextlib.suppress(FileNotFoundError):
                self._places.next_key.unlink()
            write_key(self._places.next_key, following)
            self._following = following
        return _public(self._following)

    def commit(self) -> None:
        """Put the next key in the current one's place: the checkpoint that names it is durable.

        Raises:
            OSError: It can't be done now; repeat it.
        """
        if self._following is None:
            return
        if self._places.next_key.exists():
            _move(self._places)
        fsync_directory(self._places.key.parent)
        self._current, self._following = self._following, None


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a new key's file, durably.

    Raises:
        OSError: It is there already, or can't be written; nothing is left of it then.
    """
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE
    )
    try:
        line = _encode(key.private_bytes_raw())
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)
    fsync_directory(path.parent)


def holds_key(places: Places, public_key: bytes) -> bool:
    """Return whether the private key to ``public_key`` is there; changes nothing.

    Raises:
        StartupError: Somebody else could have read it.
        OSError: The files can't be read.
    """
    found = (_load(places.key), _load(places.next_key))
    return any(key is not None and _public(key) == public_key for key in found)


def _move(places: Places) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(places.key, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, bytes(_LINE_LENGTH), 0)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    places.next_key.rename(places.key)
    fsync_directory(places.key.parent)


def _load(path: Path) -> Ed25519PrivateKey | None:
    """Return the key in a file; None where there is none, or one that was not finished."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        )
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        line = os.read(descriptor, _LINE_LENGTH + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & ~_MODE:
        raise StartupError(
            f"{path} belongs to uid {status.st_uid} and has mode "
            f"{stat.S_IMODE(status.st_mode):04o}; others may have read it",
            remedy="chown it to the sidecar's account, chmod 0600; where others could log in "
            "meanwhile, begin a new log with keysided init --only-audit",
            exit_code=_EX_CONFIG,
        )
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    material = base64.urlsafe_b64decode(match[1] + b"=")
    return Ed25519PrivateKey.from_private_bytes(material) if _encode(material) == line else None


def _encode(material: bytes) -> bytes:
    body = _PREFIX + base64.urlsafe_b64encode(material).rstrip(b"=")
    return body + b":" + hashlib.sha256(body).hexdigest()[:16].encode() + b"\n"


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
