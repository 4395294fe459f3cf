"""The suites an envelope may be sealed with; one byte names each in the format.

A new suite is a new row here and new vectors; a row is never removed or given another meaning,
so old envelopes stay readable. Every suite takes a 256-bit key, a 96-bit nonce and has a 128-bit
tag, and all share one key derivation (``kdf``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from keyside.errors import EnvelopeRejected, InvalidArgument

Aead = AESGCM | ChaCha20Poly1305


@dataclass(frozen=True, slots=True)
class Suite:
    """One way to encrypt and authenticate.

    Args:
        code: The byte that names it in an envelope, 1 to 255.
        name: What configuration files and people call it.
        aead: Makes the cipher of a 32-byte key.
    """

    code: int
    name: str
    aead: type[AESGCM | ChaCha20Poly1305]


AES_256_GCM: Final = Suite(1, "AES-256-GCM", AESGCM)
"""NIST SP 800-38D. The default: fastest where the processor has AES instructions."""

CHACHA20_POLY1305: Final = Suite(2, "ChaCha20-Poly1305", ChaCha20Poly1305)
"""RFC 8439. For hosts without AES instructions, and a second family should AES fall."""

SUITES: Final = (AES_256_GCM, CHACHA20_POLY1305)
DEFAULT_SUITE: Final = AES_256_GCM

SUITES_BY_CODE: Final = {suite.code: suite for suite in SUITES}
_SUITES_BY_NAME: Final = {suite.name: suite for suite in SUITES}


def suite_by_name(name: str) -> Suite:
    """Return the suite that configuration calls ``name``.

    Raises:
        InvalidArgument: There is no such suite; the message lists those there are.
    """
    suite = _SUITES_BY_NAME.get(name)
    if suite is None:
        known = " or ".join(f'"{suite.name}"' for suite in SUITES)
        raise InvalidArgument(f"a suite is {known}", reason="INVALID_SUITE")
    return suite


def decrypt_or_wipe(
    aead: Aead, nonce: bytes, sealed: memoryview, aad: bytes, buffer: memoryview
) -> None:
    """Decrypt into a buffer of exactly the plaintext's length.

    OpenSSL writes as it decrypts and checks the tag afterwards; what did not prove to be genuine
    is overwritten here before anybody is told (I11).

    Raises:
        EnvelopeRejected: The tag is not right; the buffer holds zeros.
    """
    try:
        aead.decrypt_into(nonce, sealed, aad, buffer)
    except InvalidTag:
        buffer[:] = bytes(len(buffer))
        raise EnvelopeRejected from None
