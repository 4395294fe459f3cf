"""The primitives under the envelope agree with public vectors and an independent KDF."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from keyside.envelope import AES_256_GCM, CHACHA20_POLY1305, SUITES, Suite, suite_by_name
from keyside.envelope.kdf import PAYLOAD_SEGMENTED, PAYLOAD_WHOLE, WRAP, derive_key_pair
from keyside.errors import InvalidArgument

# McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", 2005, appendix B, test case 16.
GCM_KEY = "feffe9928665731c6d6a8f9467308308" * 2
GCM_NONCE = "cafebabefacedbaddecaf888"
GCM_AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
GCM_PLAINTEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_SEALED = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    "76fc6ece0f4e1768cddf8853bb2d551b"
)

# RFC 8439, section 2.8.2.
CHACHA_KEY = bytes(range(0x80, 0xA0)).hex()
CHACHA_NONCE = "070000004041424344454647"
CHACHA_AAD = "50515253c0c1c2c3c4c5c6c7"
CHACHA_PLAINTEXT = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you "
    b"only one tip for the future, sunscreen would be it."
).hex()
CHACHA_SEALED = (
    "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
    "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
    "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
    "3ff4def08e4b7a9de576d26586cec64b6116"
    "1ae10b594f09e26a7e902ecbd0600691"
)


@pytest.mark.parametrize(
    ("suite", "key", "nonce", "aad", "plaintext", "sealed"),
    [
        (AES_256_GCM, GCM_KEY, GCM_NONCE, GCM_AAD, GCM_PLAINTEXT, GCM_SEALED),
        (
            CHACHA20_POLY1305,
            CHACHA_KEY,
            CHACHA_NONCE,
            CHACHA_AAD,
            CHACHA_PLAINTEXT,
            CHACHA_SEALED,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Suite) else "",
)
def test_suite_gives_the_known_answer(
    *, suite: Suite, key: str, nonce: str, aad: str, plaintext: str, sealed: str
) -> None:
    """Each registered suite is the cipher that its name says."""
    aead = suite.aead(bytes.fromhex(key))
    parts = bytes.fromhex(nonce), bytes.fromhex(plaintext), bytes.fromhex(aad)
    assert aead.encrypt(*parts).hex() == sealed


@pytest.mark.parametrize(
    ("purpose", "label"),
    [
        (WRAP, b"keyside/v1/wrap"),
        (PAYLOAD_WHOLE, b"keyside/v1/payload/whole"),
        (PAYLOAD_SEGMENTED, b"keyside/v1/payload/segmented"),
    ],
)
@pytest.mark.parametrize("context", [b"", b"\x00", bytes(range(256))])
def test_kdf_agrees_with_an_independent_sp800_108(
    purpose: bytes, label: bytes, context: bytes
) -> None:
    """The derivation is SP 800-108r1's counter mode as `cryptography` implements it."""
    key = bytes(range(32))
    expected = KBKDFHMAC(
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
    assert derive_key_pair(key, purpose, context) == expected


def test_suite_names_are_found() -> None:
    """Configuration's names lead to the suites."""
    assert [suite_by_name(suite.name) for suite in SUITES] == list(SUITES)


def test_suite_codes_never_change() -> None:
    """A code that changed its meaning would make old envelopes unreadable (I5)."""
    assert {suite.name: suite.code for suite in SUITES} == {
        "AES-256-GCM": 1,
        "ChaCha20-Poly1305": 2,
    }


def test_unknown_suite_is_refused_with_those_there_are() -> None:
    """The message lists what may be written."""
    with pytest.raises(InvalidArgument, match=r"AES-256-GCM.*ChaCha20-Poly1305") as caught:
        suite_by_name("aes-256-gcm")
    assert caught.value.reason == "INVALID_SUITE"
