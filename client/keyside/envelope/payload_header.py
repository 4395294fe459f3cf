"""The payload header: how a payload is sealed, under which derived key, for which context.

    suite 1 | kind 1 | salt 24 | sequence 8 | context digest 32 | segment size 4 (segmented only)

Integers are big-endian. docs/envelope.md is the specification.
"""

from __future__ import annotations

import struct
from hmac import compare_digest
from typing import Final, NamedTuple

from keyside.envelope.context import digest_context
from keyside.envelope.framing import KEY_LENGTH, PREAMBLE, TAG_LENGTH, require_bytes
from keyside.envelope.kdf import PAYLOAD_SEGMENTED, PAYLOAD_WHOLE, derive_key_pair
from keyside.envelope.keys import Unshareable
from keyside.envelope.suites import SUITES_BY_CODE, Aead, Suite
from keyside.errors import EnvelopeRejected, InvalidArgument

KIND_WHOLE: Final = 0
KIND_SEGMENTED: Final = 1

MAX_WHOLE_BYTES: Final = 2**30
"""The longest plaintext of a whole payload; more needs segments."""

MIN_SEGMENT_BYTES: Final = 4096
MAX_SEGMENT_BYTES: Final = 2**20

_COMMON: Final = struct.Struct(">BB24s8s32s")
_SEGMENT_SIZE: Final = struct.Struct(">I")
_SEGMENTED_LENGTH: Final = _COMMON.size + _SEGMENT_SIZE.size

SALTED_LENGTH: Final = 26

WHOLE_HEADER_LENGTH: Final = _COMMON.size


class PayloadHeader(NamedTuple):
    """A payload header as it was read; nothing in it is authenticated yet.

    Args:
        suite: What seals the payload.
        kind: ``KIND_WHOLE`` or ``KIND_SEGMENTED``.
        salted: The header's bytes through its salt.
        sequence: 8 bytes, a big-endian number.
        context_digest: 32 bytes.
        segment_size: Plaintext bytes in a segment; 0 where the payload is whole.
        raw: The header's bytes; the body begins after them.
    """

    suite: Suite
    kind: int
    salted: bytes
    sequence: bytes
    context_digest: bytes
    segment_size: int
    raw: bytes


class PayloadKeys(Unshareable):
    """What a data key derives to for one salt. Its repr shows nothing, so tracebacks don't either.

    Args:
        pair: From ``derive_whole_keys`` or ``derive_segmented_keys``.
        suite: What the payload key is for.
    """

    __slots__ = ("aead", "context_key")

    def __init__(self, pair: bytes, suite: Suite) -> None:
        self.aead: Aead = suite.aead(pair[:KEY_LENGTH])
        self.context_key = pair[KEY_LENGTH:]


def parse_payload_header(data: bytes, offset: int = 0) -> PayloadHeader:
    """Read how a payload is sealed. Authenticates nothing.

    Args:
        data: A payload, or an envelope.
        offset: Where in ``data`` the payload begins.

    Raises:
        EnvelopeRejected: There is no payload header of this format there.
        InvalidArgument: ``data`` is not ``bytes``.
    """
    require_bytes(data, "a payload")
    end = offset + _COMMON.size
    if offset < 0 or len(data) < end:
        raise EnvelopeRejected
    code, kind, _, sequence, context_digest = _COMMON.unpack_from(data, offset)
    suite = SUITES_BY_CODE.get(code)
    if suite is None:
        raise EnvelopeRejected
    segment_size = 0
    if kind != KIND_WHOLE:
        if kind != KIND_SEGMENTED or len(data) < offset + _SEGMENTED_LENGTH:
            raise EnvelopeRejected
        (segment_size,) = _SEGMENT_SIZE.unpack_from(data, end)
        end = offset + _SEGMENTED_LENGTH
        if not is_segment_size(segment_size):
            raise EnvelopeRejected
    salted = data[offset : offset + SALTED_LENGTH]
    return PayloadHeader(
        suite, kind, salted, sequence, context_digest, segment_size, data[offset:end]
    )


def is_segment_size(size: int) -> bool:
    """Return whether ``size`` is a power of two from 4 KiB to 1 MiB."""
    return MIN_SEGMENT_BYTES <= size <= MAX_SEGMENT_BYTES and size & (size - 1) == 0


def require_segment_size(size: int) -> None:
    """Refuse a segment size outside the format.

    Raises:
        InvalidArgument: It is no power of two from 4 KiB to 1 MiB.
    """
    if not isinstance(size, int) or not is_segment_size(size):
        raise InvalidArgument(
            f"a segment size is a power of two from {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}",
            reason="INVALID_SEGMENT_SIZE",
        )


def derive_whole_keys(data_key: bytes, salted: bytes) -> bytes:
    """Return payload key and context key of every whole payload with this suite and salt.

    Args:
        data_key: 32 bytes.
        salted: The payload header's bytes through its salt.
    """
    return derive_key_pair(data_key, PAYLOAD_WHOLE, PREAMBLE + salted)


def derive_segmented_keys(data_key: bytes, salted: bytes, sequence: bytes, size: bytes) -> bytes:
    """Return payload key and context key of one segmented payload.

    Args:
        data_key: 32 bytes.
        salted: The payload header's bytes through its salt.
        sequence: Its sequence, 8 bytes.
        size: Its segment size, 4 bytes.
    """
    return derive_key_pair(data_key, PAYLOAD_SEGMENTED, PREAMBLE + salted + sequence + size)


def check_context(header: PayloadHeader, keys: PayloadKeys, encoded_context: bytes) -> None:
    """Compare the context, and with it the data key, with what the payload was sealed for.

    Raises:
        EnvelopeRejected: Context or data key is another.
    """
    expected = digest_context(keys.context_key, header.sequence, encoded_context)
    if not compare_digest(expected, header.context_digest):
        raise EnvelopeRejected


def require_possible_whole_body(body_length: int) -> None:
    """Refuse a whole payload's body that no sealer makes.

    Raises:
        EnvelopeRejected: It is shorter than a tag, or longer than the format allows.
    """
    if not TAG_LENGTH <= body_length <= MAX_WHOLE_BYTES + TAG_LENGTH:
        raise EnvelopeRejected
