"""The wrapping layer: a data key under a key version, and the names to find that version by.

    magic "KSE" 3 | format version 1 | suite 1 | n 1 | key name n | version number 4 |
    version id 16 | salt 24 | key commitment 32 | wrapped data key 48

Integers are big-endian. docs/envelope.md is the specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hmac import compare_digest
from os import urandom
from typing import Final

from cryptography.exceptions import InvalidTag

from keyside.envelope.framing import (
    COMMITMENT_LENGTH,
    KEY_LENGTH,
    PREAMBLE,
    SALT_LENGTH,
    VERSION_ID_LENGTH,
    WRAPPED_KEY_LENGTH,
    require_bytes,
)
from keyside.envelope.kdf import WRAP, derive_key_pair
from keyside.envelope.keys import DataKey, VersionKey
from keyside.envelope.suites import SUITES_BY_CODE, Suite
from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside.names import MAX_KEY_NAME_LENGTH, KeyName, VersionNumber, parse_key_name

_SUITE_AT: Final = len(PREAMBLE)
_NAME_AT: Final = _SUITE_AT + 2
_NUMBER_LENGTH: Final = 4
_AFTER_NAME: Final = _NUMBER_LENGTH + VERSION_ID_LENGTH
AFTER_PREFIX: Final = SALT_LENGTH + COMMITMENT_LENGTH + WRAPPED_KEY_LENGTH

NAME_LENGTH_AT: Final = _NAME_AT - 1
LENGTH_BESIDE_NAME: Final = _NAME_AT + _AFTER_NAME + AFTER_PREFIX
"""A wrapping header has this many bytes and the key's name, whose length stands in one of them."""

MAX_HEADER_BYTES: Final = _NAME_AT + MAX_KEY_NAME_LENGTH + _AFTER_NAME + AFTER_PREFIX

# A fixed nonce is safe here and nowhere else: a wrapping key is derived from the version and a
# fresh 192-bit salt, and encrypts exactly one message, the 32 bytes of one data key.
_WRAPPING_NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class WrappingHeader:
    """A wrapping header as it was read; nothing in it is authenticated yet.

    Args:
        suite: What wraps the data key; the payload names its own suite.
        key_name: The key.
        version_number: The version's number.
        version_id: The version's 16-byte id.
        raw: The header's bytes; the payload begins after them.
    """

    suite: Suite
    key_name: KeyName
    version_number: VersionNumber
    version_id: bytes
    raw: bytes = field(repr=False)


def parse_wrapping_header(envelope: bytes) -> WrappingHeader:
    """Read which key version an envelope needs. Authenticates nothing.

    Args:
        envelope: An envelope, or any beginning of one that holds the wrapping header.

    Raises:
        EnvelopeRejected: It does not begin with a wrapping header of this format.
        InvalidArgument: It is not ``bytes``.
    """
    require_bytes(envelope, "an envelope")
    if len(envelope) < _NAME_AT or not envelope.startswith(PREAMBLE):
        raise EnvelopeRejected
    suite = SUITES_BY_CODE.get(envelope[_SUITE_AT])
    name_end = _NAME_AT + envelope[_NAME_AT - 1]
    prefix_end = name_end + _AFTER_NAME
    if suite is None or len(envelope) < prefix_end + AFTER_PREFIX:
        raise EnvelopeRejected
    try:
        # Latin-1 maps every byte to one character; parse_key_name refuses all but its own.
        key_name = parse_key_name(envelope[_NAME_AT:name_end].decode("latin-1"))
    except InvalidArgument:
        raise EnvelopeRejected from None
    number_end = name_end + _NUMBER_LENGTH
    number = int.from_bytes(envelope[name_end:number_end])
    if number == 0:
        raise EnvelopeRejected
    return WrappingHeader(
        suite,
        key_name,
        VersionNumber(number),
        envelope[number_end:prefix_end],
        envelope[: prefix_end + AFTER_PREFIX],
    )


def cut_wrapping_header(envelope: bytes) -> bytes:
    """Return the bytes that a wrapping header would take at the beginning of an envelope.

    Nothing in them is checked. Envelopes that begin with the same bytes have the same data key: it
    need be unwrapped only once.

    Args:
        envelope: An envelope, or anything that claims to be one.
    """
    if len(envelope) < _NAME_AT:
        return envelope
    return envelope[: _NAME_AT + envelope[_NAME_AT - 1] + _AFTER_NAME + AFTER_PREFIX]


def wrap_data_key(version: VersionKey, data_key: DataKey, suite: Suite) -> bytes:
    """Return a wrapping header that holds ``data_key`` under ``version``.

    Two calls never return the same bytes. There is no number of calls per version that a user
    could reach: see "How many" in docs/envelope.md.
    """
    begin = version.header_prefixes[suite.code] + urandom(SALT_LENGTH)
    pair = derive_key_pair(version.material, WRAP, begin)
    begin += pair[KEY_LENGTH:]
    return begin + suite.aead(pair[:KEY_LENGTH]).encrypt(_WRAPPING_NONCE, data_key.material, begin)


def unwrap_data_key(version: VersionKey, header: WrappingHeader) -> DataKey:
    """Return the data key of a wrapping header.

    Args:
        version: The version that ``header`` names.
        header: From ``parse_wrapping_header``; only its ``raw`` bytes are believed.

    Raises:
        EnvelopeRejected: The header names another version, was altered, or was made with other
            key material.
    """
    data_key, end = unwrap_leading_header(version, header.raw)
    if end != len(header.raw):
        raise EnvelopeRejected
    return data_key


def unwrap_leading_header(version: VersionKey, envelope: bytes) -> tuple[DataKey, int]:
    """Return the data key that an envelope begins with, and the wrapping header's length.

    The header is checked against ``version`` byte for byte, so it needs no parsing first.

    Raises:
        EnvelopeRejected: As for ``unwrap_data_key``.
    """
    code = envelope[_SUITE_AT] if len(envelope) > _SUITE_AT else 0
    prefix = version.header_prefixes.get(code)
    if prefix is None or not envelope.startswith(prefix):
        raise EnvelopeRejected
    end = len(prefix) + AFTER_PREFIX
    if len(envelope) < end:
        raise EnvelopeRejected
    # Derived keys stay in a frame that returns: a traceback may show the locals of one that raises.
    data_key = _decrypt_data_key(version, SUITES_BY_CODE[code], envelope[:end])
    if data_key is None:
        raise EnvelopeRejected
    return data_key, end


def _decrypt_data_key(version: VersionKey, suite: Suite, header: bytes) -> DataKey | None:
    begin = header[:-WRAPPED_KEY_LENGTH]
    pair = derive_key_pair(version.material, WRAP, begin[:-COMMITMENT_LENGTH])
    # Neither suite commits to its key: this comparison does, so it comes before decryption.
    if not compare_digest(pair[KEY_LENGTH:], begin[-COMMITMENT_LENGTH:]):
        return None
    try:
        wrapping = suite.aead(pair[:KEY_LENGTH])
        return DataKey(wrapping.decrypt(_WRAPPING_NONCE, header[-WRAPPED_KEY_LENGTH:], begin))
    except InvalidTag:
        return None
