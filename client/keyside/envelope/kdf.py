"""The one key derivation: NIST SP 800-108r1 in counter mode with HMAC-SHA512, for 512 bits.

512 bits are one block of HMAC-SHA512, so the whole derivation is one HMAC::

    HMAC-SHA512(key, [1]_32 || label || 0x00 || context || [512]_32)

The first 32 bytes encrypt. The last 32 never do: they commit to the key (a wrapping header's
commitment) or key the context digest. Labels hold no zero byte and differ by purpose; each
label's context has one length, or states it, so no two purposes ever share an input.

HMAC is written out here (RFC 2104, for a key shorter than SHA-512's block of 128 bytes): the
standard library's ``hmac.digest`` looks the hash function up by its name at each call, which takes
as long as computing it. A test compares this with another implementation.
"""

from __future__ import annotations

from hashlib import sha512
from typing import Final

from keyside.envelope.framing import KEY_LENGTH

_COUNTER: Final = (1).to_bytes(4)
_LENGTH_BITS: Final = (512).to_bytes(4)

_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_INNER_PADDING: Final = _INNER[:1] * (128 - KEY_LENGTH)
_OUTER_PADDING: Final = _OUTER[:1] * (128 - KEY_LENGTH)

# [1]_32 || label || 0x00, put together once.
WRAP: Final = _COUNTER + b"keyside/v1/wrap" + b"\x00"
PAYLOAD_WHOLE: Final = _COUNTER + b"keyside/v1/payload/whole" + b"\x00"
PAYLOAD_SEGMENTED: Final = _COUNTER + b"keyside/v1/payload/segmented" + b"\x00"


def derive_key_pair(key: bytes, purpose: bytes, context: bytes) -> bytes:
    """Return 64 bytes derived from ``key``: an encryption key, then a key that never encrypts.

    Args:
        key: 32 uniformly random bytes.
        purpose: ``WRAP``, ``PAYLOAD_WHOLE`` or ``PAYLOAD_SEGMENTED``.
        context: What the derived keys are for; includes a salt.
    """
    inner = key.translate(_INNER) + _INNER_PADDING + purpose + context + _LENGTH_BITS
    return sha512(key.translate(_OUTER) + _OUTER_PADDING + sha512(inner).digest()).digest()
