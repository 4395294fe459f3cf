r"""The key that signs checkpoints: each one signs the next public key, and is deleted then.

A key's file is one line, as a root key's is (``custody/file.py``)::

    KEYSIDE-AUDIT-KEY-2:<32 bytes in base64url, no padding>:<64 digits>:<16 digits>

The 64 hexadecimal digits are SHA-256 of the line that names its public key: the checkpoint that was
signed with the key before it, which is gone. So a checkpoint that somebody else has put in that
one's place, or has edited, is known without that key. The last 16 are of SHA-256 of what stands
before them, against half-written files.

The order on the disk, which a kill at any instant leaves in one of two states::

    (the checkpoint is made in memory; it names the following key)
    KEY ──prepare: write KEY.next with the checkpoint's hash, fsync──► KEY, KEY.next
        ──(the checkpoint is written, fdatasync)──►
        ──commit: overwrite KEY, rename KEY.next to KEY, fsync the directory──► KEY

``recover`` takes the one that belongs to the log's last checkpoint. Overwriting is a courtesy: a
file system that never writes in place, or an SSD, may keep the old bytes; and Python can't wipe
memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyside_sidecar.audit.places import Places, fsync_directory, write_new
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

    from keyside.audit import Checkpoint

_PREFIX: Final = b"KEYSIDE-AUDIT-KEY-2:"
_OLD_PREFIX: Final = b"KEYSIDE-AUDIT-KEY-1:"
_LINE: Final = re.compile(
    rb"KEYSIDE-AUDIT-KEY-2:([A-Za-z0-9_-]{43}):([0-9a-f]{64}):([0-9a-f]{16})\n"
)
_LINE_LENGTH: Final = len(_PREFIX) + 43 + 1 + 64 + 1 + 16 + 1
_MODE: Final = 0o600
_EX_CONFIG: Final = 78


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the SHA-256 of the checkpoint that names its public key, in hex."""

    private: Ed25519PrivateKey = field(repr=False)
    named_by: str

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    def belongs_to(self, checkpoint: Checkpoint) -> bool:
        """Return whether ``checkpoint``, every byte of it, is the one that names this key."""
        return (
            self.public == checkpoint.seal.next_key
            and hash_checkpoint(checkpoint.line.encode()) == self.named_by
        )


def hash_checkpoint(line: bytes) -> str:
    """Return SHA-256 of a checkpoint's line, without its end: 64 hexadecimal digits."""
    return hashlib.sha256(line).hexdigest()


class Signer:
    """Holds the current signing key, and for a moment the next one."""

    __slots__ = ("_current", "_drawn", "_following", "_places")

    def __init__(self, places: Places, current: SigningKey) -> None:
        self._places = places
        self._current = current
        self._drawn: Ed25519PrivateKey | None = None
        self._following: SigningKey | None = None

    def __repr__(self) -> str:
        return f"Signer({str(self._places.key)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Signer can't be pickled or copied")

    @classmethod
    def recover(cls, places: Places, checkpoint: Checkpoint) -> Signer:
        """Take up the key that belongs to the log's last checkpoint, and remove any other.

        Raises:
            StartupError: It is not there, or somebody else could have read it.
            OSError: The files can't be used.
        """
        current, following = _load(places.key), _load(places.next_key)
        if following is not None and following.belongs_to(checkpoint):
            signer = cls(places, following)
            adopt_next_key(places)
            return signer
        if current is None or not current.belongs_to(checkpoint):
            raise StartupError(
                f"the signing key in {places.key} is not the one that the last checkpoint in "
                f"{places.log} names: the log was cut off, changed or put back, or the key was "
                "replaced",
                remedy=f"find out why (keyside audit verify {places.log.parent}); then "
                f"{places.tell_how_to_begin_anew()}",
                exit_code=_EX_CONFIG,
            )
        with contextlib.suppress(FileNotFoundError):
            places.next_key.unlink()
        return cls(places, current)

    def sign(self, data: bytes) -> bytes:
        """Return the current key's signature."""
        return self._current.private.sign(data)

    def draw(self) -> bytes:
        """Make the next key, in memory, and return its public key. Repeated, it makes no other."""
        if self._drawn is None:
            self._drawn = Ed25519PrivateKey.generate()
        return self._drawn.public_key().public_bytes_raw()

    def prepare(self, line: bytes) -> None:
        """Write the key that was drawn, durably, before the checkpoint that names it.

        Args:
            line: The checkpoint's, without its end.

        Raises:
            OSError: It can't be written.
        """
        assert self._drawn is not None  # noqa: S101
        following = SigningKey(self._drawn, hash_checkpoint(line))
        _write_next(self._places, following)
        self._drawn, self._following = None, following

    def commit(self) -> None:
        """Put the next key in the current one's place: the checkpoint that names it is durable.

        Whatever was done to the files meanwhile, the former key is not left behind under its name.

        Raises:
            OSError: It can't be done now; repeat it.
        """
        following = self._following
        if following is None:
            return
        if _holds(self._places.next_key, following):
            adopt_next_key(self._places)
        elif not _holds(self._places.key, following):  # somebody has removed or replaced it
            _write_next(self._places, following)
            adopt_next_key(self._places)
        fsync_directory(self._places.key.parent)
        self._current, self._following = following, None


def _write_next(places: Places, key: SigningKey) -> None:
    with contextlib.suppress(FileNotFoundError):
        places.next_key.unlink()
    write_key(places.next_key, key)


def write_key(path: Path, key: SigningKey) -> None:
    """Write a new key's file, durably.

    Raises:
        OSError: It is there already, or can't be written; nothing is left of it then.
    """
    write_new(path, _encode(key))


def holds_key(places: Places, checkpoint: Checkpoint) -> bool:
    """Return whether the private key that ``checkpoint`` names is there; changes nothing.

    Raises:
        StartupError: Somebody else could have read it.
        OSError: The files can't be read.
    """
    found = (_load(places.key), _load(places.next_key))
    return any(key is not None and key.belongs_to(checkpoint) for key in found)


def adopt_next_key(places: Places) -> None:
    """Put the next key in the current one's place, durably, and overwrite that.

    Raises:
        OSError: It can't be done now; repeat it.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(
            places.key, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        )
        try:
            # Whatever else somebody has put in its place is not ours to overwrite.
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and _is_key(descriptor):
                os.pwrite(descriptor, bytes(_LINE_LENGTH), 0)
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    places.next_key.rename(places.key)
    fsync_directory(places.key.parent)


def _is_key(descriptor: int) -> bool:
    return os.pread(descriptor, len(_PREFIX), 0) == _PREFIX


def _holds(path: Path, key: SigningKey) -> bool:
    """Return whether a file holds ``key``, and only our account can read it."""
    try:
        found = _load(path)
    except (OSError, StartupError):
        return False
    return found is not None and _encode(found) == _encode(key)


def _load(path: Path) -> SigningKey | None:
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
            remedy=f"chown {os.geteuid()} {path}; chmod 0600 {path}; where others could log in "
            f"meanwhile, {_places_of(path).tell_how_to_begin_anew()}",
            exit_code=_EX_CONFIG,
        )
    if line.startswith(_OLD_PREFIX):
        raise StartupError(
            f"the signing key in {path} is of a form that no release has written",
            remedy=_places_of(path).tell_how_to_begin_anew(),
            exit_code=_EX_CONFIG,
        )
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    material = base64.urlsafe_b64decode(match[1] + b"=")
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(material), match[2].decode())
    return key if _encode(key) == line else None


def _places_of(key: Path) -> Places:
    return Places(key.with_name(key.name.removesuffix(".next").removesuffix(".key")))


def _encode(key: SigningKey) -> bytes:
    material = base64.urlsafe_b64encode(key.private.private_bytes_raw()).rstrip(b"=")
    body = b"%b%b:%b" % (_PREFIX, material, key.named_by.encode())
    return body + b":" + hashlib.sha256(body).hexdigest()[:16].encode() + b"\n"
