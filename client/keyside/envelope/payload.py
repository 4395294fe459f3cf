"""The payload layer: many payloads under one data key, each bound to suite, place and context.

A ``PayloadSealer`` goes FRESH → COUNTING → SPENT. It draws one salt and derives one key; every
payload takes the next number of its counter as nonce. It is spent when its bound of messages or
bytes is reached, or when the process forks; then a new sealer of the same data key takes over.
"""

from __future__ import annotations

import threading
from hmac import compare_digest
from os import urandom
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from keyside.envelope.context import digest_context, encode_context
from keyside.envelope.forks import mark_process
from keyside.envelope.framing import PREAMBLE, SALT_LENGTH, require_bytes
from keyside.envelope.keys import DataKey, Unshareable
from keyside.envelope.payload_header import (
    KIND_WHOLE,
    MAX_WHOLE_BYTES,
    SALTED_LENGTH,
    WHOLE_HEADER_LENGTH,
    PayloadKeys,
    derive_whole_keys,
    parse_payload_header,
    require_possible_whole_body,
)
from keyside.envelope.segments import open_all_segments
from keyside.envelope.suites import DEFAULT_SUITE, SUITES_BY_CODE, Suite
from keyside.errors import EnvelopeRejected, InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGES_PER_SEALER: Final = 2**32
MAX_BYTES_PER_SEALER: Final = 2**36
"""Bounds of one derived key, argued in docs/envelope.md."""

_CACHED_KEYS: Final = 16
_COPY_BELOW: Final = 4096
_NONCE_PREFIX: Final = bytes(4)
_SEQUENCE_END: Final = SALTED_LENGTH + 8


class PayloadSealer(Unshareable):
    """Seals payloads under one data key, each with its own nonce and context.

    An envelope is a wrapping header followed by one payload, so one ``wrap_data_key`` serves
    every payload of one data key. Safe to share between threads; refuses to go on in a forked
    child, where the same nonces would be used again.

    Args:
        data_key: 32 bytes of key that no other call uses.
        suite: What seals the payloads.
    """

    __slots__ = (
        "_bytes_left",
        "_keys",
        "_lock",
        "_process",
        "_salted",
        "_sequence",
    )

    def __init__(self, data_key: DataKey, suite: Suite = DEFAULT_SUITE) -> None:
        # First of all: a fork from here on copies the salt, and must be noticed.
        self._process = mark_process()
        self._salted, self._keys = _begin_whole(data_key, suite)
        self._sequence = 0
        self._bytes_left = MAX_BYTES_PER_SEALER
        self._lock = threading.Lock()

    def seal(self, plaintext: bytes, context: Mapping[str, str]) -> bytes:
        """Return ``plaintext`` as a payload: header and body.

        Args:
            plaintext: At most 1 GiB.
            context: The same pairs must be given to open it; see ``encode_context``.

        Raises:
            InvalidArgument: Plaintext or context is outside its limits.
            LimitExceeded: The sealer is spent: it has sealed 2**32 payloads or 64 GiB, or this
                is a forked child. Nothing was sealed; make a new sealer.
        """
        require_plaintext(plaintext)
        encoded_context = encode_context(context)
        # Looked at before the lock, which another thread may have held when this child forked,
        # and again within, because a signal handler may fork in between.
        if self._process != mark_process():
            raise _spent_by_fork()
        with self._lock:
            if self._process != mark_process():
                raise _spent_by_fork()
            sequence = self._sequence
            if sequence >= MAX_MESSAGES_PER_SEALER or len(plaintext) > self._bytes_left:
                raise _spent("this sealer has sealed as much as one key may")
            self._sequence = sequence + 1
            self._bytes_left -= len(plaintext)
        return _seal_whole(self._keys, self._salted, sequence, plaintext, encoded_context)


class PayloadOpener(Unshareable):
    """Opens payloads of one data key; those of one sealer share one derivation.

    Safe to share between threads.

    Args:
        data_key: From ``unwrap_data_key``.
    """

    __slots__ = ("_data_key", "_keys")

    def __init__(self, data_key: DataKey) -> None:
        self._data_key = data_key
        self._keys: dict[bytes, PayloadKeys] = {}

    def open(self, payload: bytes, context: Mapping[str, str], *, offset: int = 0) -> bytes:
        """Return the plaintext of a payload, whole or segmented.

        Args:
            payload: Header and body, or an envelope.
            context: The pairs it was sealed with.
            offset: Where in ``payload`` the payload begins.

        Raises:
            EnvelopeRejected: It was altered, or sealed for another context or data key.
            InvalidArgument: The context is not possible, or the payload is not ``bytes``.
        """
        encoded_context = encode_context(context)
        require_bytes(payload, "a payload")
        # Keys are kept under the beginning of a header that was read: it need not be read again.
        keys = self._keys.get(payload[offset : offset + SALTED_LENGTH]) if offset >= 0 else None
        if keys is None:
            header = parse_payload_header(payload, offset)
            if header.kind != KIND_WHOLE:
                body = memoryview(payload)[offset + len(header.raw) :]
                return open_all_segments(header, self._data_key, encoded_context, body)
            keys = _derive_whole(self._data_key, header.salted, header.suite)
            # Salts come from whoever made the payloads: never more than a few are kept.
            if len(self._keys) >= _CACHED_KEYS:
                self._keys.clear()
            self._keys[header.salted] = keys
        return _open_whole(keys, payload, offset, encoded_context)


def require_plaintext(plaintext: bytes) -> None:
    """Refuse a plaintext that no whole payload can hold.

    Raises:
        InvalidArgument: It is not ``bytes``, or longer than 1 GiB.
    """
    require_bytes(plaintext, "a plaintext")
    if len(plaintext) > MAX_WHOLE_BYTES:
        raise InvalidArgument(
            f"a plaintext is at most {MAX_WHOLE_BYTES} bytes unless it is sealed in segments",
            reason="PLAINTEXT_TOO_LARGE",
        )


def seal_one(data_key: DataKey, plaintext: bytes, encoded_context: bytes, suite: Suite) -> bytes:
    """Return the only payload of its salt: what a sealer does that is used once.

    Args:
        data_key: Seals nothing else.
        plaintext: Checked by ``require_plaintext``.
        encoded_context: From ``encode_context``.
        suite: What seals it.
    """
    salted, keys = _begin_whole(data_key, suite)
    return _seal_whole(keys, salted, 0, plaintext, encoded_context)


def open_one(data_key: DataKey, data: bytes, offset: int, encoded_context: bytes) -> bytes:
    """Return the plaintext of a payload, whole or segmented, that is opened on its own.

    Args:
        data_key: From the wrapping header.
        data: A payload, or an envelope.
        offset: Where in ``data`` the payload begins.
        encoded_context: From ``encode_context``.

    Raises:
        EnvelopeRejected: It was altered, or sealed for another context or data key.
    """
    salted, suite = data[offset : offset + SALTED_LENGTH], None
    if len(salted) == SALTED_LENGTH and salted[1] == KIND_WHOLE:
        suite = SUITES_BY_CODE.get(salted[0])
    if suite is None:  # segmented, or nothing that opens
        header = parse_payload_header(data, offset)
        body = memoryview(data)[offset + len(header.raw) :]
        return open_all_segments(header, data_key, encoded_context, body)
    keys = _derive_whole(data_key, salted, suite)
    return _open_whole(keys, data, offset, encoded_context)


def _begin_whole(data_key: DataKey, suite: Suite) -> tuple[bytes, PayloadKeys]:
    salted = bytes((suite.code, KIND_WHOLE)) + urandom(SALT_LENGTH)
    return salted, _derive_whole(data_key, salted, suite)


def _derive_whole(data_key: DataKey, salted: bytes, suite: Suite) -> PayloadKeys:
    return PayloadKeys(derive_whole_keys(data_key.material, salted), suite)


def _seal_whole(
    keys: PayloadKeys, salted: bytes, sequence: int, plaintext: bytes, encoded_context: bytes
) -> bytes:
    counter = sequence.to_bytes(8)
    header = salted + counter + digest_context(keys.context_key, counter, encoded_context)
    return header + keys.aead.encrypt(_NONCE_PREFIX + counter, plaintext, PREAMBLE + header)


def _open_whole(keys: PayloadKeys, data: bytes, offset: int, encoded_context: bytes) -> bytes:
    """Open a payload whose header has the suite, kind and salt that ``keys`` were derived for."""
    body_at = offset + WHOLE_HEADER_LENGTH
    require_possible_whole_body(len(data) - body_at)
    header = data[offset:body_at]
    counter = header[SALTED_LENGTH:_SEQUENCE_END]
    expected = digest_context(keys.context_key, counter, encoded_context)
    if not compare_digest(expected, header[_SEQUENCE_END:]):
        raise EnvelopeRejected
    # A copy is cheaper than a view of a few hundred bytes, and dearer for a large body.
    body = data[body_at:] if len(data) < _COPY_BELOW else memoryview(data)[body_at:]
    try:
        return keys.aead.decrypt(_NONCE_PREFIX + counter, body, PREAMBLE + header)
    except InvalidTag:
        raise EnvelopeRejected from None


def _spent_by_fork() -> LimitExceeded:
    return _spent("this sealer's process has forked")


def _spent(message: str) -> LimitExceeded:
    return LimitExceeded(
        message,
        reason="SEALER_SPENT",
        remedy="make a new sealer; it may use the same data key",
    )
