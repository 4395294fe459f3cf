"""Whole envelopes sealed and opened under a data key that is at hand: a few microseconds each.

The bytes are those of ``seal`` and ``open_envelope``; what is spared is everything that does not
depend on the message. A ``DirectSealer`` goes COUNTING → SPENT, like a ``PayloadSealer``: at its
bound of messages or bytes, and at a fork.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from hashlib import sha256
from hmac import compare_digest
from itertools import count, islice
from os import urandom
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from keyside.envelope.context import DIGEST_LABEL
from keyside.envelope.forks import MARKS, set_mark
from keyside.envelope.framing import PREAMBLE, SALT_LENGTH, TAG_LENGTH
from keyside.envelope.keys import DataKey, Unshareable
from keyside.envelope.payload import MAX_BYTES_PER_SEALER, MAX_MESSAGES_PER_SEALER
from keyside.envelope.payload_header import (
    KIND_WHOLE,
    MAX_WHOLE_BYTES,
    SALTED_LENGTH,
    WHOLE_HEADER_LENGTH,
    PayloadKeys,
    derive_whole_keys,
)
from keyside.envelope.suites import Suite, decrypt_or_wipe
from keyside.errors import EnvelopeRejected, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

_NONCE_PREFIX: Final = bytes(4)
_COUNTER_END: Final = SALTED_LENGTH + 8
_COPY_BELOW: Final = 8192
_LONG: Final = 131_072
_LONGEST_KEPT: Final = 4 * 1024 * 1024


class _LockedCount:
    """Counts from 0 under a lock: for interpreters in which ``next(count())`` needs one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            number = self._next
            self._next = number + 1
        return number


def _count_up() -> Iterator[int]:
    """Return a counter from which no two threads get the same number.

    Under the interpreter's global lock ``next`` of ``itertools.count`` is one indivisible step.
    """
    is_locked = getattr(sys, "_is_gil_enabled", None)
    return count() if is_locked is None or is_locked() else _LockedCount()


class DirectSealer(Unshareable):
    """Seals whole envelopes under one data key, and says when it is spent.

    Safe to share between threads. A forked child can't use it.

    Args:
        header: The wrapping header that holds ``data_key``.
        data_key: 32 bytes of key.
        suite: What seals the payloads.
        max_messages: Envelopes to seal at most; never more than 2**32.
        max_bytes: Bytes of plaintext to seal at most; never more than 2**36.

    Attributes:
        capacity: How long one message may be, if it is the first: ``max_bytes``, less what does
            not divide among the messages.
    """

    __slots__ = (
        "_digest_prefix",
        "_encrypt",
        "_encrypt_into",
        "_limit",
        "_mark",
        "_prefix",
        "_salted",
        "_scratch",
        "_scratch_lock",
        "_sequences",
        "_unit",
        "capacity",
    )

    def __init__(
        self, header: bytes, data_key: DataKey, suite: Suite, *, max_messages: int, max_bytes: int
    ) -> None:
        # First of all: a fork from here on copies the salt, and must be noticed.
        self._mark = set_mark()
        self._salted = bytes((suite.code, KIND_WHOLE)) + urandom(SALT_LENGTH)
        keys = PayloadKeys(derive_whole_keys(data_key.material, self._salted), suite)
        self._encrypt = keys.aead.encrypt
        self._encrypt_into = keys.aead.encrypt_into
        self._digest_prefix = DIGEST_LABEL + keys.context_key
        self._prefix = header
        # One counter for both bounds: a message of up to ``_unit`` bytes takes one number, a longer
        # one as many as it has units. All numbers together are never more than either bound.
        max_bytes = min(max_bytes, MAX_BYTES_PER_SEALER)
        self._limit = min(max_messages, MAX_MESSAGES_PER_SEALER, max_bytes)
        self._unit = max_bytes // self._limit
        self.capacity = self._unit * self._limit
        self._sequences = _count_up()
        # Holds what goes into envelopes, and nothing secret.
        self._scratch = memoryview(bytearray())
        self._scratch_lock = threading.Lock()

    def seal(
        self, plaintext: bytes | memoryview, length: int, encoded_context: bytes
    ) -> bytes | None:
        """Return an envelope; ``None`` where this sealer is spent, and nothing was sealed.

        Args:
            plaintext: Bytes, or a view of bytes.
            length: Its length; at most 1 GiB.
            encoded_context: From ``encode_context``.
        """
        # Taken first and looked at afterwards: whatever forks in between seals this message only.
        sequence = next(self._sequences)
        if sequence >= self._limit or MARKS[0] != self._mark:
            return None
        if length > self._unit and not self._charge(length):
            return None
        counter = sequence.to_bytes(8)
        header = (
            self._salted
            + counter
            + sha256(self._digest_prefix + counter + encoded_context).digest()
        )
        if _LONG <= length <= _LONGEST_KEPT and self._scratch_lock.acquire(blocking=False):
            try:
                return self._seal_long(header, counter, plaintext, length)
            finally:
                self._scratch_lock.release()
        body = self._encrypt(_NONCE_PREFIX + counter, plaintext, PREAMBLE + header)
        return self._prefix + header + body

    def _seal_long(
        self, header: bytes, counter: bytes, plaintext: bytes | memoryview, length: int
    ) -> bytes:
        """Encrypt where there is memory already, and copy that once.

        Two new objects of a MiB, one of them short-lived, cost ten times as much as the
        encryption: the allocator gives their pages back to the kernel, and asks for new ones.
        """
        end = len(self._prefix) + len(header) + length + TAG_LENGTH
        if len(self._scratch) < end:
            self._scratch = memoryview(bytearray(end))
        buffer = self._scratch[:end]
        begin = end - length - TAG_LENGTH
        buffer[:begin] = self._prefix + header
        nonce = _NONCE_PREFIX + counter
        self._encrypt_into(nonce, plaintext, PREAMBLE + header, buffer[begin:])
        return buffer.tobytes()

    def seal_into(
        self,
        plaintext: bytes | memoryview,
        length: int,
        encoded_context: bytes,
        buffer: memoryview,
    ) -> int | None:
        """Write an envelope to a buffer's beginning and return its length, as ``seal`` does."""
        sequence = next(self._sequences)
        if sequence >= self._limit or MARKS[0] != self._mark:
            return None
        if length > self._unit and not self._charge(length):
            return None
        counter = sequence.to_bytes(8)
        digest = sha256(self._digest_prefix + counter + encoded_context).digest()
        header = self._salted + counter + digest
        begin = len(self._prefix) + WHOLE_HEADER_LENGTH
        end = begin + length + TAG_LENGTH
        buffer[:begin] = self._prefix + header
        self._encrypt_into(_NONCE_PREFIX + counter, plaintext, PREAMBLE + header, buffer[begin:end])
        return end

    def _charge(self, length: int) -> bool:
        """Use up what a long message counts for beyond its own number; say whether it was there."""
        more = -(-length // self._unit) - 1
        if more >= self._limit:
            return False
        deque(islice(self._sequences, more - 1), maxlen=0)
        return next(self._sequences) < self._limit


class DirectKeys(Unshareable):
    """What opens the whole payloads of one data key and salt: ``open_directly``.

    Safe to share between threads.

    Args:
        data_key: From the wrapping header.
        salted: The payload header's bytes through its salt.
        suite: What sealed the payloads.
    """

    __slots__ = ("aead", "decrypt", "digest_prefix")

    def __init__(self, data_key: DataKey, salted: bytes, suite: Suite) -> None:
        keys = PayloadKeys(derive_whole_keys(data_key.material, salted), suite)
        self.aead = keys.aead
        self.decrypt = keys.aead.decrypt
        self.digest_prefix = DIGEST_LABEL + keys.context_key


def open_directly(
    keys: DirectKeys, envelope: bytes | bytearray, payload_at: int, encoded_context: bytes
) -> bytes:
    """Return a whole payload's plaintext.

    Args:
        keys: Those of the payload's data key and salt.
        envelope: The whole envelope.
        payload_at: Where its payload begins.
        encoded_context: From ``encode_context``.

    Raises:
        EnvelopeRejected: It was altered, or sealed for another context.
    """
    body_at = payload_at + WHOLE_HEADER_LENGTH
    header = bytes(envelope[payload_at:body_at])
    counter = require_context(keys, header, encoded_context)
    body: bytes | bytearray | memoryview
    if len(envelope) < _COPY_BELOW:
        body = envelope[body_at:]
    else:
        body = memoryview(envelope)[body_at:]
        require_possible_length(len(body))
    try:
        return keys.decrypt(_NONCE_PREFIX + counter, body, PREAMBLE + header)
    except InvalidTag:
        raise EnvelopeRejected from None


def open_directly_into(
    keys: DirectKeys,
    envelope: memoryview,
    payload_at: int,
    encoded_context: bytes,
    buffer: memoryview,
) -> int:
    """Write the plaintext to a buffer's beginning and return its length, as ``open_directly`` does.

    After a refusal the buffer holds zeros there, and no byte of what was refused.
    """
    body_at = payload_at + WHOLE_HEADER_LENGTH
    header = bytes(envelope[payload_at:body_at])
    counter = require_context(keys, header, encoded_context)
    body = envelope[body_at:]
    length = require_possible_length(len(body))
    nonce, aad = _NONCE_PREFIX + counter, PREAMBLE + header
    decrypt_or_wipe(keys.aead, nonce, body, aad, buffer[:length])
    return length


def require_context(keys: DirectKeys, header: bytes, encoded_context: bytes) -> bytes:
    """Return a whole payload header's counter.

    Raises:
        EnvelopeRejected: It was sealed for another context, or under another key.
    """
    counter = header[SALTED_LENGTH:_COUNTER_END]
    digest = sha256(keys.digest_prefix + counter + encoded_context).digest()
    if not compare_digest(header[_COUNTER_END:], digest):
        raise EnvelopeRejected
    return counter


def require_possible_length(body_length: int) -> int:
    """Return the plaintext's length of a whole payload's body.

    Raises:
        EnvelopeRejected: No sealer makes such a body.
    """
    if not TAG_LENGTH <= body_length <= MAX_WHOLE_BYTES + TAG_LENGTH:
        raise EnvelopeRejected
    return body_length - TAG_LENGTH


def require_room(buffer: memoryview, length: int) -> None:
    """Refuse a buffer that can't take what is to be written.

    Raises:
        InvalidArgument: It is read-only or too short; says how long it must be.
    """
    if buffer.readonly or len(buffer) < length:
        raise InvalidArgument(
            f"the buffer must be writable and have {length} bytes", reason="INVALID_BUFFER"
        )
