"""A second reader of envelopes, written from docs/envelope.md alone.

It shares no code with Keyside: `cryptography`'s own KBKDFHMAC derives where Keyside calls HMAC,
and nothing is cached or hurried. It exists to show that the page suffices, and says which layer
refused, which Keyside itself never does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from hmac import compare_digest

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

VersionTable = Mapping[tuple[str, int, bytes], bytes]

PREAMBLE = b"KSE\x01"


class Rejected(Exception):
    """The envelope does not open; ``layer`` is the step of "Reading" that refused it."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


def derive(key: bytes, label: bytes, context: bytes) -> tuple[bytes, bytes]:
    """The page's KDF, as its two halves."""
    output = KBKDFHMAC(
        algorithm=SHA512(),
        mode=Mode.CounterMode,
        length=64,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(key)
    return output[:32], output[32:]


def canonical(context: Mapping[str, str]) -> bytes:
    """The page's canonical context."""
    encoded = {name.encode(): value.encode() for name, value in context.items()}
    result = len(encoded).to_bytes(2, "big")
    for name in sorted(encoded):
        for part in (name, encoded[name]):
            result += len(part).to_bytes(4, "big") + part
    return result


def decrypt(suite: int, key: bytes, nonce: bytes, data: bytes, aad: bytes, *, layer: str) -> bytes:
    """AEAD by suite byte."""
    try:
        if suite == 1:
            return AESGCM(key).decrypt(nonce, data, aad)
        return ChaCha20Poly1305(key).decrypt(nonce, data, aad)
    except InvalidTag:
        raise Rejected(layer) from None


def require(condition: bool, layer: str) -> None:  # noqa: FBT001
    """Refuse in ``layer`` unless ``condition``."""
    if not condition:
        raise Rejected(layer)


def unwrap(versions: VersionTable, envelope: bytes) -> tuple[bytes, bytes]:
    """Return the data key, and the payload's bytes."""
    require(len(envelope) >= 6 and envelope[:4] == PREAMBLE, "framing")
    suite, n = envelope[4], envelope[5]
    require(suite in {1, 2} and 1 <= n <= 63 and len(envelope) >= 130 + n, "framing")
    name = envelope[6 : 6 + n]
    require(re.fullmatch(rb"[a-z0-9][a-z0-9._-]*", name) is not None, "framing")
    number = int.from_bytes(envelope[6 + n : 10 + n], "big")
    version = versions.get((name.decode("ascii"), number, envelope[10 + n : 26 + n]))
    require(number >= 1 and version is not None, "framing")
    assert version is not None
    wrapping_key, commitment = derive(version, b"keyside/v1/wrap", envelope[: 50 + n])
    require(compare_digest(commitment, envelope[50 + n : 82 + n]), "commitment")
    wrapped = envelope[82 + n : 130 + n]
    aad = envelope[: 82 + n]
    return decrypt(suite, wrapping_key, bytes(12), wrapped, aad, layer="wrapping"), envelope[
        130 + n :
    ]


def open_payload(data_key: bytes, payload: bytes, context: Mapping[str, str]) -> bytes:
    """Return the plaintext of a payload."""
    require(len(payload) >= 66, "framing")
    suite, kind = payload[0], payload[1]
    require(suite in {1, 2} and kind in {0, 1}, "framing")
    if kind == 0:
        header, body = payload[:66], payload[66:]
        require(16 <= len(body) <= 2**30 + 16, "framing")
        label, derivation = b"keyside/v1/payload/whole", PREAMBLE + header[:26]
    else:
        require(len(payload) >= 70, "framing")
        header, body = payload[:70], payload[70:]
        check_segments(header, body)
        label = b"keyside/v1/payload/segmented"
        derivation = PREAMBLE + header[:34] + header[66:70]
    payload_key, context_key = derive(data_key, label, derivation)
    digest = hashlib.sha256(
        b"keyside/v1/context\x00" + context_key + header[26:34] + canonical(context)
    ).digest()
    require(compare_digest(digest, header[34:66]), "context")
    aad = PREAMBLE + header
    if kind == 0:
        return decrypt(suite, payload_key, bytes(4) + header[26:34], body, aad, layer="payload")
    stride = int.from_bytes(header[66:70], "big") + 16
    segments = [body[start : start + stride] for start in range(0, len(body), stride)]
    plaintext = b""
    for index, segment in enumerate(segments):
        last = b"\x01" if index == len(segments) - 1 else b"\x00"
        nonce = bytes(3) + index.to_bytes(8, "big") + last
        plaintext += decrypt(suite, payload_key, nonce, segment, aad, layer="segment")
    return plaintext


def check_segments(header: bytes, body: bytes) -> None:
    """Refuse a segment size or lengths that can't be."""
    size = int.from_bytes(header[66:70], "big")
    require(size in {2**power for power in range(12, 21)}, "framing")
    count = max(1, -(-len(body) // (size + 16)))
    last = len(body) - (count - 1) * (size + 16)
    require(last >= 16 and (last > 16 or count == 1), "framing")
    require(len(body) - 16 * count <= 2**44, "framing")


def open_envelope(versions: VersionTable, envelope: bytes, context: Mapping[str, str]) -> bytes:
    """Return an envelope's plaintext.

    Args:
        versions: Key material by name, number and version id.
        envelope: A whole envelope.
        context: The pairs it was sealed with.

    Raises:
        Rejected: It does not open.
    """
    data_key, payload = unwrap(versions, envelope)
    return open_payload(data_key, payload, context)
