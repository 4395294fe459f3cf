"""What a reader of envelopes must refuse, as changes to envelopes that open.

Part of make_envelope_vectors.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyside.envelope.context import digest_context
from keyside.envelope.framing import PREAMBLE
from keyside.envelope.kdf import WRAP, derive_key_pair
from keyside.envelope.payload_header import derive_segmented_keys, derive_whole_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import VersionKey

SEGMENT = 4096

# The vector "unicode context" with "e" and a combining accent composed.
RENORMALISED = {"\U00010348": "b", "\ufffd": "a", "é": "", "\0": "\n"}


class Refuse(Protocol):
    """Adds an envelope that must be refused, and by which layer."""

    def __call__(
        self,
        name: str,
        layer: str,
        envelope: bytes,
        *,
        version: str = ...,
        context: Mapping[str, str] = ...,
    ) -> None:
        """Add it; without version and context, those of the envelopes that open."""


def flip(data: bytes, offset: int, mask: int = 1) -> bytes:
    """Return ``data`` with bits of one byte inverted."""
    changed = bytearray(data)
    changed[offset] ^= mask
    return bytes(changed)


def put(data: bytes, offset: int, value: bytes) -> bytes:
    """Return ``data`` with the bytes at ``offset`` replaced."""
    offset %= len(data)
    return data[:offset] + value + data[offset + len(value) :]


def add_invalid_wrapping(envelopes: Mapping[str, bytes], refuse: Refuse) -> None:
    """Add what the wrapping header's reader must refuse."""
    whole = envelopes["whole aes-256-gcm"]
    n = len("mail-credentials")
    end = 130 + n
    refuse("nothing", "framing", b"")
    refuse("another magic", "framing", put(whole, 0, b"age"))
    refuse("format version 0", "framing", put(whole, 3, b"\0"))
    refuse("format version 2", "framing", put(whole, 3, b"\2"))
    refuse("wrapping suite 0", "framing", put(whole, 4, b"\0"))
    refuse("wrapping suite 3", "framing", put(whole, 4, b"\3"))
    refuse("name length 0", "framing", put(whole, 5, b"\0"))
    refuse("name length 64", "framing", put(whole, 5, b"\x40"))
    refuse("name in capitals", "framing", put(whole, 6, b"MAIL"))
    refuse("name that ends in a line feed", "framing", put(whole, 5 + n, b"\n"))
    refuse("name that is not ASCII", "framing", put(whole, 6, b"\xc3\xa9"))
    refuse("version number 0", "framing", put(whole, 6 + n, bytes(4)))
    refuse("version number of another version", "framing", put(whole, 6 + n, b"\0\0\0\4"))
    refuse("version id that is not known", "framing", flip(whole, 10 + n))
    refuse("wrapping header cut short", "framing", whole[: end - 1])
    refuse("wrapping header alone", "framing", whole[:end])
    refuse("other key material", "commitment", whole, version="impostor")
    refuse("version renumbered", "commitment", put(whole, 6 + n, b"\0\0\0\5"), version="renumbered")
    refuse("wrapping suite exchanged", "commitment", put(whole, 4, b"\2"))
    refuse("wrap salt changed", "commitment", flip(whole, 26 + n))
    refuse("commitment changed", "commitment", flip(whole, 50 + n, 0x80))
    refuse("wrapped key changed", "wrapping", flip(whole, 82 + n))
    refuse("wrapped key's tag changed", "wrapping", flip(whole, end - 1))
    batch = envelopes["batch 0"]
    refuse("wrapped key of another header", "wrapping", put(whole, 82 + n, batch[82 + n : end]))
    refuse("wrapping header of another envelope", "context", batch[:end] + whole[end:])


def add_invalid_whole(envelopes: Mapping[str, bytes], refuse: Refuse) -> None:
    """Add what the reader of whole payloads must refuse."""
    whole = envelopes["whole aes-256-gcm"]
    start = 146
    body = start + 66
    refuse("payload suite 3", "framing", put(whole, start, b"\3"))
    refuse("kind 2", "framing", put(whole, start + 1, b"\2"))
    refuse("payload header cut short", "framing", whole[: body - 1])
    refuse("no body", "framing", whole[:body])
    refuse("body shorter than a tag", "framing", whole[: body + 15])
    refuse("payload suite exchanged", "context", put(whole, start, b"\2"))
    refuse("payload salt changed", "context", flip(whole, start + 2))
    refuse("sequence changed", "context", flip(whole, start + 33))
    refuse("context digest changed", "context", flip(whole, start + 34))
    refuse("no context", "context", whole, context={})
    refuse("another value", "context", whole, context={"account": "bob@example.com"})
    refuse("another case", "context", whole, context={"account": "Alice@example.com"})
    refuse("one pair more", "context", whole, context={"account": "alice@example.com", "more": ""})
    refuse(
        "name and value divided elsewhere",
        "context",
        whole,
        context={"accounta": "lice@example.com"},
    )
    refuse(
        "another normal form",
        "context",
        envelopes["unicode context"],
        context=RENORMALISED,
    )
    refuse("ciphertext changed", "payload", flip(whole, body))
    refuse("tag changed", "payload", flip(whole, -1))
    refuse("cut by a byte", "payload", whole[:-1])
    refuse("cut to a tag", "payload", whole[: body + 16])
    refuse("longer by a byte", "payload", whole + b"\0")
    refuse("longer by an envelope", "payload", whole + whole)
    first, second = envelopes["batch 0"], envelopes["batch 1"]
    refuse(
        "body of the sealer's next payload",
        "payload",
        first[:body] + second[body:],
        context={"record": "0"},
    )
    refuse("context of the sealer's next payload", "context", first, context={"record": "1"})


def add_invalid_segmented(envelopes: Mapping[str, bytes], refuse: Refuse) -> None:
    """Add what the reader of segments must refuse."""
    base = envelopes["segmented aes-256-gcm three segments"]
    start = 146
    body = start + 70
    stride = SEGMENT + 16
    head = base[:body]
    parts = [base[at : at + stride] for at in range(body, len(base), stride)]
    small = envelopes["segmented aes-256-gcm one byte"]
    refuse("segment size 0", "framing", put(small, start + 66, bytes(4)))
    refuse("segment size 2048", "framing", put(small, start + 66, b"\0\0\x08\0"))
    refuse("segment size 4095", "framing", put(small, start + 66, b"\0\0\x0f\xff"))
    refuse("segment size 2 MiB", "framing", put(small, start + 66, b"\0\x20\0\0"))
    refuse("segment size cut short", "framing", small[: body - 1])
    refuse("no segment", "framing", small[:body])
    refuse("segment size changed", "context", put(small, start + 66, b"\0\0\x20\0"))
    refuse("kind made whole", "context", put(small, start + 1, b"\0"))
    refuse("only segment emptied", "segment", small[: body + 16])
    refuse("only segment changed", "segment", flip(small, body))
    refuse("only segment longer", "segment", small + b"\0")
    refuse("segment changed", "segment", head + parts[0] + flip(parts[1], 0) + parts[2])
    refuse("segments exchanged", "segment", head + parts[1] + parts[0] + parts[2])
    refuse("first segment dropped", "segment", head + parts[1] + parts[2])
    refuse("segment repeated", "segment", head + parts[0] + parts[0] + parts[2])
    refuse("cut between segments", "segment", head + parts[0] + parts[1])
    refuse("cut within the last segment", "segment", base[:-1])
    refuse("last segment cut to a tag", "framing", base[: -len(parts[2]) + 16])
    refuse("last segment cut below a tag", "framing", base[: -len(parts[2]) + 15])
    other = envelopes["segmented chacha20-poly1305 three segments"][-21:]
    refuse("last segment of another stream", "segment", head + parts[0] + parts[1] + other)
    full = envelopes["segmented aes-256-gcm one full segment"]
    refuse("a segment after the last", "segment", full + parts[2])


def add_dishonest(version: VersionKey, canonical_context: bytes, refuse: Refuse) -> None:
    """Add what someone with the keys made, so that every tag in it is right.

    Only a reader that compares commitment and digest, and counts segments, refuses these.
    """
    data_key, salt = b"d" * 32, b"s" * 24
    begin = version.header_prefixes[1] + salt
    pair = derive_key_pair(version.material, WRAP, begin)

    def wrap(commitment: bytes) -> bytes:
        header = begin + commitment
        return header + AESGCM(pair[:32]).encrypt(bytes(12), data_key, header)

    def seal_whole(key: bytes, digest: bytes) -> bytes:
        header = b"\x01\x00" + salt + bytes(8) + digest
        return header + AESGCM(key).encrypt(bytes(12), b"plaintext", PREAMBLE + header)

    whole = derive_whole_keys(data_key, b"\x01\x00" + salt)
    digest = digest_context(whole[32:], bytes(8), canonical_context)
    honest = seal_whole(whole[:32], digest)
    refuse("false commitment, right tags", "commitment", wrap(bytes(32)) + honest)
    lying = seal_whole(whole[:32], bytes(32))
    refuse("false context digest, right tags", "context", wrap(pair[32:]) + lying)

    salted, size = b"\x01\x01" + salt, SEGMENT.to_bytes(4)
    stream = derive_segmented_keys(data_key, salted, bytes(8), size)
    header = salted + bytes(8) + digest_context(stream[32:], bytes(8), canonical_context) + size
    aead, aad = AESGCM(stream[:32]), PREAMBLE + header
    full = aead.encrypt(bytes(12), bytes(SEGMENT), aad)
    empty = aead.encrypt(bytes(10) + b"\x01\x01", b"", aad)
    refuse(
        "an empty last segment after a full one, right tags",
        "framing",
        wrap(pair[32:]) + header + full + empty,
    )
