"""The envelope: Keyside's byte format for one stored ciphertext. Pure; no I/O, no clock.

An envelope is a *wrapping header* (a data key under a key version) followed by one *payload*
(the plaintext under the data key, bound to a context). ``docs/envelope.md`` specifies it to the
byte and argues its bounds. Both sides of the socket import this package; it needs nothing but
the standard library and ``cryptography``.

- One plaintext: ``seal``, ``open_envelope``, ``rewrap``.
- Many under one data key: ``generate_data_key``, ``wrap_data_key``, ``PayloadSealer``; then
  ``parse_wrapping_header``, ``unwrap_data_key``, ``PayloadOpener``.
- Large ones: ``SegmentSealer``, ``SegmentOpener`` and their ``SegmentLayout``.

What is published here stays: an envelope of format version 1 opens in every later release.
"""

from keyside.envelope.context import (
    MAX_CONTEXT_NAME_BYTES,
    MAX_CONTEXT_PAIRS,
    MAX_CONTEXT_VALUE_BYTES,
    encode_context,
)
from keyside.envelope.framing import FORMAT_VERSION
from keyside.envelope.header import (
    MAX_HEADER_BYTES,
    WrappingHeader,
    cut_wrapping_header,
    parse_wrapping_header,
    unwrap_data_key,
    unwrap_leading_header,
    wrap_data_key,
)
from keyside.envelope.keys import DataKey, VersionKey, generate_data_key
from keyside.envelope.payload import (
    MAX_BYTES_PER_SEALER,
    MAX_MESSAGES_PER_SEALER,
    PayloadOpener,
    PayloadSealer,
)
from keyside.envelope.payload_header import (
    KIND_SEGMENTED,
    KIND_WHOLE,
    MAX_SEGMENT_BYTES,
    MAX_WHOLE_BYTES,
    MIN_SEGMENT_BYTES,
    PayloadHeader,
    parse_payload_header,
)
from keyside.envelope.sealing import (
    MAX_OVERHEAD_BYTES,
    open_envelope,
    rewrap,
    seal,
    take_payload,
)
from keyside.envelope.segments import (
    DEFAULT_SEGMENT_BYTES,
    MAX_STREAM_BYTES,
    SegmentLayout,
    SegmentOpener,
    SegmentSealer,
    lay_out_body,
    lay_out_plaintext,
)
from keyside.envelope.suites import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    DEFAULT_SUITE,
    SUITES,
    Suite,
    suite_by_name,
)

__all__ = [
    "AES_256_GCM",
    "CHACHA20_POLY1305",
    "DEFAULT_SEGMENT_BYTES",
    "DEFAULT_SUITE",
    "FORMAT_VERSION",
    "KIND_SEGMENTED",
    "KIND_WHOLE",
    "MAX_BYTES_PER_SEALER",
    "MAX_CONTEXT_NAME_BYTES",
    "MAX_CONTEXT_PAIRS",
    "MAX_CONTEXT_VALUE_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_MESSAGES_PER_SEALER",
    "MAX_OVERHEAD_BYTES",
    "MAX_SEGMENT_BYTES",
    "MAX_STREAM_BYTES",
    "MAX_WHOLE_BYTES",
    "MIN_SEGMENT_BYTES",
    "SUITES",
    "DataKey",
    "PayloadHeader",
    "PayloadOpener",
    "PayloadSealer",
    "SegmentLayout",
    "SegmentOpener",
    "SegmentSealer",
    "Suite",
    "VersionKey",
    "WrappingHeader",
    "cut_wrapping_header",
    "encode_context",
    "generate_data_key",
    "lay_out_body",
    "lay_out_plaintext",
    "open_envelope",
    "parse_payload_header",
    "parse_wrapping_header",
    "rewrap",
    "seal",
    "suite_by_name",
    "take_payload",
    "unwrap_data_key",
    "unwrap_leading_header",
    "wrap_data_key",
]
