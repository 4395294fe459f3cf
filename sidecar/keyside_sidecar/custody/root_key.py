"""A root key in memory: derivation, wrapping and unwrapping. Pure, but for fresh salts.

Wrapped form, with all lengths in bytes::

    0x01 (1) | root key id (8) | salt (24) | AES-256-GCM ciphertext and tag (n + 16)
"""

from __future__ import annotations

import os
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from keyside_sidecar.errors import RESTORE_STORE, CustodyError

ROOT_KEY_LENGTH: Final = 32
_DERIVED_LENGTH: Final = 32
_KEY_ID_LENGTH: Final = 8
_SALT_LENGTH: Final = 24
_TAG_LENGTH: Final = 16
_FORMAT: Final = b"\x01"
_HEADER_LENGTH: Final = len(_FORMAT) + _KEY_ID_LENGTH + _SALT_LENGTH

_LABEL_PREFIX: Final = b"keyside/v1/"
_LABEL_KEY_ID: Final = b"keyside/v1/root-key-id"
_LABEL_WRAP: Final = b"keyside/v1/root-wrap"

# One key seals one message only: it is derived from a fresh 192-bit salt, which repeats with
# probability 2^-96 after 2^48 wrappings. The nonce may therefore be constant.
_NONCE: Final = bytes(12)


class RootKey:
    """A root key that is held in this process's memory.

    Nothing prints, pickles or copies its bytes. Python can't wipe them.

    Args:
        material: 32 uniformly random bytes.
    """

    __slots__ = ("_key_id", "_material")

    def __init__(self, material: bytes) -> None:
        if len(material) != ROOT_KEY_LENGTH:
            raise ValueError(f"a root key is {ROOT_KEY_LENGTH} bytes")
        self._material = material
        self._key_id = _derive(material, _LABEL_KEY_ID)[:_KEY_ID_LENGTH]

    def __repr__(self) -> str:
        return f"RootKey(key_id={self.key_id!r}, material=<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RootKey can't be pickled or copied")

    @property
    def key_id(self) -> str:
        """16 hexadecimal digits that name this root key; not secret."""
        return self._key_id.hex()

    def derive(self, label: bytes, context: bytes = b"") -> bytes:
        """Return 32 bytes for label and context (NIST SP 800-108r1, counter mode, HMAC-SHA-512).

        Args:
            label: What for; fixed by the program.
            context: For which store or the like; may come from anywhere.

        Raises:
            ValueError: ``label`` doesn't begin with ``keyside/v1/``, holds a zero byte, or is one
                of this module's.
        """
        if (
            not label.startswith(_LABEL_PREFIX)
            or label.startswith((_LABEL_KEY_ID, _LABEL_WRAP))
            or b"\x00" in label
        ):
            raise ValueError("this label is reserved or not one of Keyside's")
        return _derive(self._material, label, context)

    def wrap(self, plaintext: bytes, binding: bytes) -> bytes:
        """Return ``plaintext`` sealed under a key of its own, bound to ``binding``."""
        header = _FORMAT + self._key_id + os.urandom(_SALT_LENGTH)
        return header + self._cipher(header).encrypt(_NONCE, plaintext, header + binding)

    def unwrap(self, wrapped: bytes, binding: bytes) -> bytes:
        """Return what was wrapped.

        Raises:
            CustodyError: It was altered, bound to something else, or made under another root key.
        """
        header = wrapped[:_HEADER_LENGTH]
        if len(wrapped) < _HEADER_LENGTH + _TAG_LENGTH or not header.startswith(_FORMAT):
            raise CustodyError(
                "this is not something that a root key of this kind has wrapped",
                remedy=f"run the program that wrote it, or {RESTORE_STORE}",
            )
        made_under = header[len(_FORMAT) : len(_FORMAT) + _KEY_ID_LENGTH]
        if made_under != self._key_id:
            raise CustodyError(
                f"wrapped under root key {made_under.hex()}; this one is {self.key_id}",
                remedy=f"configure the root key {made_under.hex()}, which this store belongs to",
            )
        try:
            return self._cipher(header).decrypt(_NONCE, wrapped[_HEADER_LENGTH:], header + binding)
        except InvalidTag:
            raise CustodyError(
                "what the store holds does not open under the root key: it was altered, or "
                "belongs to another store, key or version",
                remedy=RESTORE_STORE,
            ) from None

    def _cipher(self, header: bytes) -> AESGCM:
        return AESGCM(_derive(self._material, _LABEL_WRAP, header[-_SALT_LENGTH:]))


def _derive(material: bytes, label: bytes, context: bytes = b"") -> bytes:
    # label || 0x00 || context is injective: no label holds a zero byte.
    return KBKDFHMAC(
        algorithm=SHA512(),
        mode=Mode.CounterMode,
        length=_DERIVED_LENGTH,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    ).derive(material)
