"""Make tests/vectors/envelope_v1.json: the same bytes on every run.

Usage, from the repository's root: python -m tools.make_envelope_vectors [--check]. With --check
nothing is written, and the exit code is 1 if the file is not what would be written.

Keyside offers no way to seal with chosen salts and keys. This tool replaces the random source of
its modules, in this process only, by a stream that follows from each vector's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from tools.envelope_faults import (
    add_dishonest,
    add_invalid_segmented,
    add_invalid_whole,
    add_invalid_wrapping,
)

from keyside.envelope import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    KIND_SEGMENTED,
    PayloadSealer,
    SegmentSealer,
    Suite,
    VersionKey,
    encode_context,
    generate_data_key,
    lay_out_plaintext,
    parse_payload_header,
    parse_wrapping_header,
    rewrap,
    seal,
    unwrap_data_key,
    wrap_data_key,
)
from keyside.envelope.context import digest_context
from keyside.envelope.framing import PREAMBLE
from keyside.envelope.kdf import WRAP, derive_key_pair
from keyside.envelope.payload_header import derive_segmented_keys, derive_whole_keys
from keyside.names import KeyName, VersionNumber

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "envelope_v1.json"
RANDOM_USERS = ("header", "keys", "payload", "segments")
SHOWN_CONTEXT_BYTES = 1024
SEGMENT = 4096

Context = Mapping[str, str]
Vector = dict[str, Any]


def stream(name: str, length: int) -> bytes:
    """Return bytes that follow from a name: SHAKE-256 of it."""
    return hashlib.shake_256(b"keyside envelope v1 vector: " + name.encode()).digest(length)


@contextlib.contextmanager
def scripted_randomness(name: str) -> Iterator[None]:
    """Replace the envelope modules' random source by the stream of ``name``."""
    drawn = 0

    def draw(length: int) -> bytes:
        nonlocal drawn
        drawn += length
        return stream(name, drawn)[-length:]

    with contextlib.ExitStack() as patches:
        for module in RANDOM_USERS:
            patches.enter_context(mock.patch(f"keyside.envelope.{module}.urandom", draw))
        yield


def make_version(name: str, number: int, *, variant: str = "") -> VersionKey:
    """Return a version whose id and material follow from name and number."""
    seed = f"version {name} {number}"
    return VersionKey(
        KeyName(name),
        VersionNumber(number),
        stream(f"{seed} id", 16),
        stream(f"{seed} material{variant}", 32),
    )


SMALL = make_version("k", 1)
MAIL_3 = make_version("mail-credentials", 3)
MAIL_4 = make_version("mail-credentials", 4)
LONGEST = make_version("a" + "0123456789._-" * 4 + "abcdefghij", 2**32 - 1)
# A version that agrees with MAIL_3 in all that a header says, and holds another key.
IMPOSTOR = make_version("mail-credentials", 3, variant=" of an impostor")
# MAIL_3's id and key under another number.
RENUMBERED = VersionKey(MAIL_3.key_name, VersionNumber(5), MAIL_3.version_id, MAIL_3.material)
VERSIONS = {
    "k 1": SMALL,
    "mail-credentials 3": MAIL_3,
    "mail-credentials 4": MAIL_4,
    "longest": LONGEST,
    "impostor": IMPOSTOR,
    "renumbered": RENUMBERED,
}

PAIR: Context = {"account": "alice@example.com"}
PLAINTEXT = b"correct horse battery staple"
FULLEST: Context = {
    f"{index:02}"
    + ("é" if index % 2 else "nn") * (63 if index % 2 else 31)
    + "-" * (0 if index % 2 else 64): chr(ord("A") + index % 26) * 1024
    for index in range(32)
}
# U+FFFD sorts before U+10348 as UTF-8, and after it as UTF-16.
UNICODE: Context = {"\U00010348": "b", "\ufffd": "a", "é": "composed", "e\u0301": "", "\0": "\n"}


def seal_segments(sealer: SegmentSealer, plaintext: bytes) -> bytes:
    """Return a segmented payload."""
    layout = lay_out_plaintext(len(plaintext), sealer.segment_size)
    payload = sealer.header
    for index in range(layout.count):
        part = plaintext[index * sealer.segment_size : (index + 1) * sealer.segment_size]
        payload += sealer.seal_segment(part, is_last=layout.is_last(index))
    return payload


def seal_segmented(
    name: str, version: VersionKey, plaintext: bytes, context: Context, suite: Suite
) -> bytes:
    """Return an envelope with a segmented payload."""
    with scripted_randomness(name):
        data_key = generate_data_key()
        wrapped = wrap_data_key(version, data_key, suite)
        sealer = SegmentSealer(data_key, context, suite, segment_size=SEGMENT)
        return wrapped + seal_segments(sealer, plaintext)


def seal_with_sequence(name: str, sequence: int) -> bytes:
    """Return a segmented envelope whose sequence is not 0, which no sealer of ours makes."""
    with scripted_randomness(name):
        data_key = generate_data_key()
        wrapped = wrap_data_key(MAIL_3, data_key, AES_256_GCM)
    salted = bytes((AES_256_GCM.code, KIND_SEGMENTED)) + stream(f"{name} salt", 24)
    counter, size = sequence.to_bytes(8), SEGMENT.to_bytes(4)
    pair = derive_segmented_keys(data_key.material, salted, counter, size)
    header = salted + counter + digest_context(pair[32:], counter, encode_context(PAIR)) + size
    nonce = bytes(11) + b"\x01"
    return (
        wrapped + header + AES_256_GCM.aead(pair[:32]).encrypt(nonce, PLAINTEXT, PREAMBLE + header)
    )


def describe_derivation(version: VersionKey, envelope: bytes, context: Context) -> Vector:
    """Return every value between the keys and the envelope."""
    header = parse_wrapping_header(envelope)
    data_key = unwrap_data_key(version, header)
    wrapping = derive_key_pair(version.material, WRAP, header.raw[:-80])
    payload = parse_payload_header(envelope, len(header.raw))
    if payload.kind == KIND_SEGMENTED:
        pair = derive_segmented_keys(
            data_key.material, payload.salted, payload.sequence, payload.segment_size.to_bytes(4)
        )
    else:
        pair = derive_whole_keys(data_key.material, payload.salted)
    canonical = encode_context(context)
    derived = {
        "wrapping_key": wrapping[:32].hex(),
        "key_commitment": wrapping[32:].hex(),
        "data_key": data_key.material.hex(),
        "payload_key": pair[:32].hex(),
        "context_key": pair[32:].hex(),
        "canonical_context_sha256": hashlib.sha256(canonical).hexdigest(),
    }
    if len(canonical) <= SHOWN_CONTEXT_BYTES:
        derived["canonical_context"] = canonical.hex()
    return derived


class Vectors:
    """The vectors made so far."""

    def __init__(self) -> None:
        self.valid: list[Vector] = []
        self.invalid: list[Vector] = []
        self.envelopes: dict[str, bytes] = {}

    def accept(
        self,
        name: str,
        comment: str,
        version: VersionKey,
        envelope: bytes,
        *,
        plaintext: bytes = PLAINTEXT,
        context: Context = PAIR,
    ) -> None:
        """Add an envelope that opens."""
        self.envelopes[name] = envelope
        self.valid.append(
            {
                "name": name,
                "comment": comment,
                "version": list(VERSIONS.values()).index(version),
                "context": dict(context),
                "plaintext": plaintext.hex(),
                "envelope": envelope.hex(),
                "derived": describe_derivation(version, envelope, context),
            }
        )

    def refuse(
        self,
        name: str,
        layer: str,
        envelope: bytes,
        *,
        version: str = "mail-credentials 3",
        context: Context = PAIR,
    ) -> None:
        """Add an envelope that must be refused, and by which layer."""
        self.invalid.append(
            {
                "name": name,
                "layer": layer,
                "version": list(VERSIONS).index(version),
                "context": dict(context),
                "envelope": envelope.hex(),
            }
        )


def add_valid(vectors: Vectors) -> None:
    """Add what must open."""
    with scripted_randomness("smallest"):
        smallest = seal(SMALL, b"", {}, AES_256_GCM)
    vectors.accept(
        "smallest", "empty plaintext, empty context", SMALL, smallest, plaintext=b"", context={}
    )
    for suite in (AES_256_GCM, CHACHA20_POLY1305):
        label = suite.name.lower()
        with scripted_randomness(f"whole {label}"):
            envelope = seal(MAIL_3, PLAINTEXT, PAIR, suite)
        vectors.accept(f"whole {label}", "one plaintext", MAIL_3, envelope)
        other = CHACHA20_POLY1305 if suite is AES_256_GCM else AES_256_GCM
        with scripted_randomness(f"rewrapped {label}"):
            moved = rewrap(MAIL_3, MAIL_4, envelope, other)
        vectors.accept(
            f"rewrapped {label}",
            "the envelope before, under version 4 and the other wrapping suite",
            MAIL_4,
            moved,
        )
        for kind, length in (
            ("empty", 0),
            ("one byte", 1),
            ("one full segment", SEGMENT),
            ("three segments", 2 * SEGMENT + 5),
        ):
            if suite is CHACHA20_POLY1305 and kind == "one full segment":
                kind, length = "two full segments", 2 * SEGMENT  # noqa: PLW2901
            name = f"segmented {label} {kind}"
            plaintext = stream(f"{name} plaintext", length)
            envelope = seal_segmented(name, MAIL_3, plaintext, PAIR, suite)
            vectors.accept(
                name, f"{length} bytes in segments of 4096", MAIL_3, envelope, plaintext=plaintext
            )
    with scripted_randomness("fullest context"):
        envelope = seal(MAIL_3, PLAINTEXT, FULLEST)
    vectors.accept(
        "fullest context", "32 pairs, 128 and 1024 bytes each", MAIL_3, envelope, context=FULLEST
    )
    with scripted_randomness("unicode context"):
        envelope = seal(MAIL_3, PLAINTEXT, UNICODE)
    vectors.accept(
        "unicode context",
        "sorted by UTF-8, not UTF-16; two normal forms; an empty value; control characters",
        MAIL_3,
        envelope,
        context=UNICODE,
    )
    with scripted_randomness("longest name"):
        envelope = seal(LONGEST, PLAINTEXT, PAIR)
    vectors.accept("longest name", "63 bytes of name, the last number", LONGEST, envelope)
    with scripted_randomness("batch"):
        data_key = generate_data_key()
        wrapped = wrap_data_key(MAIL_3, data_key, AES_256_GCM)
        sealer = PayloadSealer(data_key)
        for index in range(3):
            plaintext = b"record %d" % index
            context = {"record": str(index)}
            vectors.accept(
                f"batch {index}",
                "three payloads of one sealer behind one wrapping header",
                MAIL_3,
                wrapped + sealer.seal(plaintext, context),
                plaintext=plaintext,
                context=context,
            )
        sealer._sequence = 2**32 - 1  # noqa: SLF001
        payload = sealer.seal(PLAINTEXT, PAIR)
    vectors.accept("batch last", "a sealer's last sequence", MAIL_3, wrapped + payload)
    vectors.accept(
        "segmented with a sequence",
        "readers accept any sequence",
        MAIL_3,
        seal_with_sequence("segmented with a sequence", 5),
    )


def render() -> str:
    """Return the file's text."""
    vectors = Vectors()
    add_valid(vectors)
    for add_invalid in (add_invalid_wrapping, add_invalid_whole, add_invalid_segmented):
        add_invalid(vectors.envelopes, vectors.refuse)
    add_dishonest(MAIL_3, encode_context(PAIR), vectors.refuse)
    document = {
        "format": "keyside envelope, format version 1",
        "specification": "docs/envelope.md",
        "provenance": "made by tools/make_envelope_vectors.py with Keyside's own code; opened "
        "by tests/vectors/second_reader.py, which shares no code with it",
        "versions": [
            {
                "key_name": version.key_name,
                "number": version.number,
                "version_id": version.version_id.hex(),
                "material": version.material.hex(),
            }
            for version in VERSIONS.values()
        ],
        "valid": vectors.valid,
        "invalid": vectors.invalid,
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def main(arguments: list[str]) -> int:
    """Write the file, or compare it."""
    text = render()
    if arguments == ["--check"]:
        return 0 if OUTPUT.exists() and OUTPUT.read_text("ascii") == text else 1
    OUTPUT.write_text(text, "ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
