"""Root keys in memory: derivation, wrapping, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
import struct

import pytest

from keyside_sidecar.custody.root_key import RootKey
from keyside_sidecar.errors import CustodyError

MATERIAL = bytes(range(32))


def test_derivation_is_sp800_108_counter_mode_with_hmac_sha512() -> None:
    """As NIST SP 800-108r1, 4.1 writes it: [1]32 || label || 0x00 || context || [256]32."""
    label = b"keyside/v1/store-mac"
    for context in (b"", bytes(16)):
        fixed = struct.pack(">I", 1) + label + b"\x00" + context + struct.pack(">I", 256)
        expected = hmac.digest(MATERIAL, fixed, hashlib.sha512)[:32]
        assert RootKey(MATERIAL).derive(label, context) == expected
    assert RootKey(MATERIAL).derive(label) == RootKey(MATERIAL).derive(label, b"")


def test_key_id_is_stable_and_differs_between_keys() -> None:
    assert RootKey(MATERIAL).key_id == RootKey(MATERIAL).key_id
    assert len(RootKey(MATERIAL).key_id) == 16
    assert RootKey(MATERIAL).key_id != RootKey(bytes(32)).key_id


@pytest.mark.parametrize(
    "label",
    [
        b"",
        b"other/v1/x",
        b"keyside/v1/root-wrap",
        b"keyside/v1/root-wrap\x00x",
        b"keyside/v1/root-key-id",
        b"keyside/v1/store-mac\x00",
    ],
)
def test_labels_that_are_reserved_or_foreign_derive_nothing(label: bytes) -> None:
    with pytest.raises(ValueError, match="label"):
        RootKey(MATERIAL).derive(label)


def test_what_was_wrapped_unwraps_and_never_looks_the_same_twice() -> None:
    root = RootKey(MATERIAL)
    first, second = root.wrap(b"secret" * 5, b"here"), root.wrap(b"secret" * 5, b"here")
    assert first != second
    assert root.unwrap(first, b"here") == root.unwrap(second, b"here") == b"secret" * 5


def test_wrapped_form_is_as_documented_and_names_its_root_key() -> None:
    root = RootKey(MATERIAL)
    wrapped = root.wrap(bytes(32), b"here")
    assert len(wrapped) == 1 + 8 + 24 + 32 + 16
    assert wrapped[0] == 1
    assert wrapped[1:9].hex() == root.key_id


def test_another_binding_does_not_unwrap() -> None:
    """I6: what is wrapped for one place is of no use in another."""
    root = RootKey(MATERIAL)
    with pytest.raises(CustodyError, match="does not open"):
        root.unwrap(root.wrap(bytes(32), b"here"), b"there")


def test_another_root_key_says_which_one_is_needed() -> None:
    wrapped = RootKey(MATERIAL).wrap(bytes(32), b"here")
    with pytest.raises(CustodyError, match=RootKey(MATERIAL).key_id) as caught:
        RootKey(bytes(32)).unwrap(wrapped, b"here")
    assert RootKey(MATERIAL).key_id in caught.value.remedy


def test_every_altered_bit_cut_or_extension_is_refused() -> None:
    root = RootKey(MATERIAL)
    wrapped = root.wrap(bytes(32), b"here")
    for bit in range(8 * len(wrapped)):
        altered = bytearray(wrapped)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CustodyError):
            root.unwrap(bytes(altered), b"here")
    for length in range(len(wrapped)):
        with pytest.raises(CustodyError):
            root.unwrap(wrapped[:length], b"here")
    with pytest.raises(CustodyError):
        root.unwrap(wrapped + b"\x00", b"here")


def test_a_root_key_shows_nothing_of_itself() -> None:
    """I7: no secret in a repr, a pickle or a copy."""
    root = RootKey(MATERIAL)
    assert MATERIAL.hex() not in repr(root)
    assert "redacted" in repr(root)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(root)


def test_a_root_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        RootKey(bytes(31))
