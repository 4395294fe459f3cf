"""Checkpoints: records that are signed, and so seal all that stands before them.

A checkpoint is a record whose event is ``checkpoint``. The signature is the last of its details::

    {"v":1,"seq":N,…,"event":"checkpoint","details":{"number":7,"kind":"interval",
     "log":"<16 digits>","every_s":60,"next_key":"<64 digits>","store_id":null,
     "store_generation":null,"signature":"<128 digits>"},"hash":"<64 digits>"}

It is Ed25519 (RFC 8032) over a fixed prefix, the former line's hash, and the line's bytes up to and
not including ``,"signature":"``; so it covers every record until there, and the public key that the
next checkpoint must be signed with. The private key that made it is deleted then: who takes the
machine later can't sign another past.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keyside.audit.lines import Line, encode_json, parse_line
from keyside.audit.public_keys import is_sound_key
from keyside.errors import MalformedRecord

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS: Final = frozenset({"start", "interval", "rotation", "stop"})
# What may stand between the checkpoint that ends a run and the one that begins the next.
START_EVENTS: Final = frozenset({"log.continued", "run.start", "run.recovered", "audit.failed"})

_DOMAIN: Final = b"keyside/v1/audit-checkpoint\x00"
_SIGNATURE: Final = re.compile(rb',"signature":"([0-9a-f]{128})"\}')
_SIGNATURE_LENGTH: Final = 14 + 128 + 2
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LOG: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_STORE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MAX_COUNT: Final = 2**63 - 1
# A checkpoint says this and nothing else, in this order.
_FIELDS: Final = ("v", "seq", "id", "time", "event", "details", "hash")
_DETAILS: Final = (
    *("number", "kind", "log", "every_s", "next_key", "store_id", "store_generation"),
    "signature",
)


@dataclass(frozen=True, slots=True)
class Seal:
    """What a checkpoint says.

    Args:
        number: Counts the log's checkpoints, from 1, without a gap.
        kind: Why it was made: one of :data:`KINDS`.
        log: Names the log: see :func:`name_log`.
        every_s: How often a checkpoint is made at least, in whole seconds.
        next_key: The public key of the next checkpoint.
        store_id: The store that the sidecar used, 32 hexadecimal digits, if it is known.
        store_generation: How far that store had come at least.
    """

    number: int
    kind: str
    log: str
    every_s: int
    next_key: bytes
    store_id: str | None = None
    store_generation: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A line that is a checkpoint, whose signature may be right or not.

    Args:
        line: The whole line.
        seal: What it says.
        signature: 64 bytes.
    """

    line: Line
    seal: Seal
    signature: bytes

    def is_signed_by(self, public_key: bytes, previous: bytes) -> bool:
        """Return whether the signature is right; one by a key that is not sound never is.

        Args:
            public_key: 32 bytes: what the former checkpoint names.
            previous: The former line's hash.
        """
        if not is_sound_key(public_key):
            return False
        signed = _DOMAIN + previous + self.line.covered[:-_SIGNATURE_LENGTH]
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True


def name_log(first_key: bytes) -> str:
    """Return the 16 digits that name a log: of SHA-256 over its first public key."""
    return hashlib.sha256(first_key).hexdigest()[:16]


def sign_checkpoint(
    seal: Seal, start: bytes, previous: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return what the hash of a checkpoint's line covers.

    Args:
        seal: What it says.
        start: The line up to and including its event.
        previous: The former line's hash.
        sign: Signs with the current private key.
    """
    details = {
        "number": seal.number,
        "kind": seal.kind,
        "log": seal.log,
        "every_s": seal.every_s,
        "next_key": seal.next_key.hex(),
        "store_id": seal.store_id,
        "store_generation": seal.store_generation,
    }
    covered = start + b',"details":' + encode_json(details)[:-1].encode()
    signature = sign(_DOMAIN + previous + covered)
    return b'%b,"signature":"%b"}' % (covered, signature.hex().encode())


def read_checkpoint(line: Line) -> Checkpoint:
    """Return what a line says whose event is ``checkpoint``.

    Raises:
        MalformedRecord: It isn't one, or says something else.
    """
    details = line.fields.get("details")
    tail = _SIGNATURE.fullmatch(line.covered, max(0, len(line.covered) - _SIGNATURE_LENGTH))
    if line.event != "checkpoint" or not isinstance(details, dict) or tail is None:
        raise MalformedRecord("is no checkpoint")
    store_id, generation = details.get("store_id"), details.get("store_generation")
    sound = (
        tuple(line.fields) == _FIELDS
        and tuple(details) == _DETAILS
        and _is_count(details["number"], least=1)
        and _is_kind(details["kind"])
        and _is_text(details["log"], _LOG)
        and _is_count(details["every_s"], least=1)
        and _is_text(details["next_key"], _KEY)
        and ((store_id is None and generation is None) or is_generation(store_id, generation))
        and details["signature"] == tail[1].decode()
    )
    if not sound:
        raise MalformedRecord("is a checkpoint that does not say what one must say")
    next_key = bytes.fromhex(details["next_key"])
    if not is_sound_key(next_key):
        raise MalformedRecord("is a checkpoint that names a key which anybody could sign with")
    seal = Seal(
        details["number"],
        details["kind"],
        details["log"],
        details["every_s"],
        next_key,
        store_id,
        generation,
    )
    return Checkpoint(line, seal, bytes.fromhex(tail[1].decode()))


def parse_checkpoint(data: bytes) -> Checkpoint:
    """Return a checkpoint that was kept somewhere else: its line, with or without its end.

    Raises:
        MalformedRecord: It is none.
    """
    return read_checkpoint(parse_line(data.strip()))


def is_generation(store_id: object, generation: object) -> bool:
    """Return whether these are a store's id, 32 hexadecimal digits, and how far it has come."""
    return _is_text(store_id, _STORE_ID) and _is_count(generation)


def parse_public_key(text: str) -> bytes:
    """Return a public key's 32 bytes from its 64 hexadecimal digits.

    Raises:
        MalformedRecord: It isn't of that form, or no sound key.
    """
    if not _KEY.fullmatch(text.lower()):
        raise MalformedRecord("is not 64 hexadecimal digits")
    key = bytes.fromhex(text)
    if not is_sound_key(key):
        raise MalformedRecord("is a key that no log has: anybody could sign with it")
    return key


def _is_count(value: object, *, least: int = 0) -> bool:
    return type(value) is int and least <= value <= _MAX_COUNT


def _is_kind(value: object) -> bool:
    return isinstance(value, str) and value in KINDS


def _is_text(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None
