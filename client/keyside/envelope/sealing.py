"""Whole envelopes: a wrapping header and one payload, made, opened and rewrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.envelope.context import encode_context
from keyside.envelope.framing import TAG_LENGTH, require_bytes
from keyside.envelope.header import (
    MAX_HEADER_BYTES,
    unwrap_leading_header,
    wrap_data_key,
)
from keyside.envelope.keys import VersionKey, generate_data_key
from keyside.envelope.payload import open_one, require_plaintext, seal_one
from keyside.envelope.payload_header import (
    KIND_WHOLE,
    WHOLE_HEADER_LENGTH,
    parse_payload_header,
    require_possible_whole_body,
)
from keyside.envelope.segments import lay_out_body
from keyside.envelope.suites import DEFAULT_SUITE, Suite
from keyside.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_OVERHEAD_BYTES: Final = MAX_HEADER_BYTES + WHOLE_HEADER_LENGTH + TAG_LENGTH
"""An envelope whose payload is whole is at most this much longer than its plaintext."""


def seal(
    version: VersionKey,
    plaintext: bytes,
    context: Mapping[str, str],
    suite: Suite = DEFAULT_SUITE,
) -> bytes:
    """Return an envelope of ``plaintext`` under a data key of its own.

    Args:
        version: Wraps the data key.
        plaintext: At most 1 GiB. Its length shows.
        context: Bound to the envelope and not stored in it; see ``encode_context``.
        suite: Wraps and seals.

    Raises:
        InvalidArgument: Plaintext or context is outside its limits.
    """
    require_plaintext(plaintext)
    encoded_context = encode_context(context)
    data_key = generate_data_key()
    return wrap_data_key(version, data_key, suite) + seal_one(
        data_key, plaintext, encoded_context, suite
    )


def open_envelope(version: VersionKey, envelope: bytes, context: Mapping[str, str]) -> bytes:
    """Return an envelope's plaintext, or nothing of it at all (I11).

    Which step refuses an envelope isn't said; it may be measured, and tells nothing that the
    envelope's maker doesn't know.

    Args:
        version: The version that ``parse_wrapping_header`` finds in the envelope.
        envelope: The whole envelope, and no byte more.
        context: The pairs it was sealed with.

    Raises:
        EnvelopeRejected: The envelope does not open, whatever the cause.
        InvalidArgument: The context is not possible, or the envelope is not ``bytes``.
    """
    require_bytes(envelope, "an envelope")
    encoded_context = encode_context(context)
    data_key, payload_at = unwrap_leading_header(version, envelope)
    return open_one(data_key, envelope, payload_at, encoded_context)


def rewrap(
    old: VersionKey, new: VersionKey, envelope: bytes, suite: Suite = DEFAULT_SUITE
) -> bytes:
    """Return the envelope with its data key under ``new``; the payload is carried over as it is.

    The wrapping layer is authenticated, the payload is only required to look like one. Whoever
    had the data key still has it: this does not cure a leaked version.

    Args:
        old: The version that wraps the data key now.
        new: A version of the same key.
        envelope: An envelope, or only its wrapping header.
        suite: Wraps the data key from now on; the payload keeps its own.

    Raises:
        EnvelopeRejected: The wrapping layer does not open, or what follows is no payload.
        InvalidArgument: ``new`` is another key's version, or the envelope is not ``bytes``.
    """
    require_bytes(envelope, "an envelope")
    # The payload doesn't name its key: moving it to another would get round that key's policy.
    if old.key_name != new.key_name:
        raise InvalidArgument("rewrapping stays within one key", reason="KEY_MISMATCH")
    data_key, payload_at = unwrap_leading_header(old, envelope)
    payload = take_payload(envelope, payload_at)
    return wrap_data_key(new, data_key, suite) + payload


def take_payload(envelope: bytes, payload_at: int) -> bytes:
    """Return what follows a wrapping header, to be put behind another one of the same data key.

    Args:
        envelope: An envelope, or only its wrapping header; then nothing is returned.
        payload_at: The wrapping header's length.

    Raises:
        EnvelopeRejected: What follows is no payload.
    """
    if len(envelope) > payload_at:
        _require_possible_payload(envelope, payload_at)
    return envelope[payload_at:]


def _require_possible_payload(envelope: bytes, offset: int) -> None:
    header = parse_payload_header(envelope, offset)
    body_length = len(envelope) - offset - len(header.raw)
    if header.kind == KIND_WHOLE:
        require_possible_whole_body(body_length)
    else:
        lay_out_body(body_length, header.segment_size)
