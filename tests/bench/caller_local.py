"""What a caller's process runs for local.py; given to it as text.

Where a pair is bound to the message, Keyside and the AWS SDK take it as a context, Tink as
associated data. All seal with AES-256-GCM. The AWS SDK's suite is its committing one without a
signature, its fastest; its caching manager is given a raw AES master key, since it does not accept
the keyrings of the material providers' library, and one of those is measured without a cache.
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Any

import tink
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput
from aws_encryption_sdk import EncryptionSDKClient
from aws_encryption_sdk.caches.local import LocalCryptoMaterialsCache
from aws_encryption_sdk.identifiers import AlgorithmSuite, EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.key_providers.raw import RawMasterKey, WrappingKey
from aws_encryption_sdk.materials_managers.caching import CachingCryptoMaterialsManager
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tink import aead

from keyside import LocalCipher

if TYPE_CHECKING:
    from collections.abc import Callable

    import keyside

SMALL = os.urandom(256)
LARGE = os.urandom(1 << 20)
CONTEXT = {"record": "4711"}
AAD = b"record=4711"
FRAME_BYTES = 4096
SUITE = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY


def make_contenders(client: keyside.Client) -> dict[str, Callable[[], Any]]:
    """Return everything that is measured; each seals or opens one message."""
    cipher = LocalCipher(client, "mail-credentials")
    made = {
        **_pair("", lambda: cipher.seal(SMALL), cipher.open),
        **_pair(
            "context_",
            lambda: cipher.seal(SMALL, CONTEXT),
            lambda sealed: cipher.open(sealed, CONTEXT),
        ),
        **make_tink(),
        **make_aws(),
        **make_aes(),
        **make_large(cipher),
    }
    for name, once in made.items():
        result = once()
        if name.endswith("open") and result not in {SMALL, len(LARGE)}:
            raise RuntimeError(f"{name} does not open what was sealed")
    return made


def _pair(
    prefix: str, seal: Callable[[], Any], unseal: Callable[[Any], Any]
) -> dict[str, Callable[[], Any]]:
    sealed = seal()
    return {f"{prefix}seal": seal, f"{prefix}open": lambda: unseal(sealed)}


def make_tink() -> dict[str, Callable[[], Any]]:
    """Return Tink's AEAD under a key of its own."""
    aead.register()
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    primitive = handle.primitive(aead.Aead)
    return {
        **_pair(
            "tink_",
            lambda: primitive.encrypt(SMALL, b""),
            lambda sealed: primitive.decrypt(sealed, b""),
        ),
        **_pair(
            "tink_context_",
            lambda: primitive.encrypt(SMALL, AAD),
            lambda sealed: primitive.decrypt(sealed, AAD),
        ),
    }


def make_aes() -> dict[str, Callable[[], Any]]:
    """Return what ``cryptography`` does, with a random nonce in front and nothing else."""
    aes = AESGCM(os.urandom(32))

    def seal() -> bytes:
        nonce = os.urandom(12)
        return nonce + aes.encrypt(nonce, SMALL, None)

    return _pair("aes_", seal, lambda sealed: aes.decrypt(sealed[:12], sealed[12:], None))


def make_aws() -> dict[str, Callable[[], Any]]:
    """Return the AWS Encryption SDK with cached materials, and with a raw keyring."""
    client = EncryptionSDKClient()
    secret = os.urandom(32)
    wrapping = WrappingKey(
        wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
        wrapping_key=secret,
        wrapping_key_type=EncryptionKeyType.SYMMETRIC,
    )
    manager = CachingCryptoMaterialsManager(
        master_key_provider=RawMasterKey(
            provider_id="bench", key_id=b"bench", wrapping_key=wrapping
        ),
        cache=LocalCryptoMaterialsCache(100),
        max_age=3600.0,
        max_messages_encrypted=2**20,
    )
    library = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    keyring = library.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="bench",
            key_name="bench",
            wrapping_key=secret,
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )

    def make(prefix: str, **materials: Any) -> dict[str, Callable[[], Any]]:
        settings = {"algorithm": SUITE, "encryption_context": CONTEXT, "frame_length": FRAME_BYTES}
        return _pair(
            prefix,
            lambda: client.encrypt(source=SMALL, **settings, **materials)[0],
            lambda sealed: client.decrypt(source=sealed, **materials)[0],
        )

    return {**make("aws_", materials_manager=manager), **make("aws_keyring_", keyring=keyring)}


def make_large(cipher: LocalCipher) -> dict[str, Callable[[], Any]]:
    """Return sealing and opening of 1 MiB, each into a new bytearray."""
    aes = AESGCM(os.urandom(32))
    room = cipher.sealed_length(len(LARGE))
    envelope = cipher.seal(LARGE, CONTEXT)
    nonce = os.urandom(12)
    sealed = aes.encrypt(nonce, LARGE, AAD)

    def seal_large() -> int:
        return cipher.seal_into(LARGE, bytearray(room), CONTEXT)

    def open_large() -> int:
        return cipher.open_into(envelope, bytearray(len(LARGE)), CONTEXT)

    def aes_seal() -> int:
        return aes.encrypt_into(os.urandom(12), LARGE, AAD, bytearray(len(LARGE) + 16))

    def aes_open() -> int:
        return aes.decrypt_into(nonce, sealed, AAD, bytearray(len(LARGE)))

    return {
        "large_seal": seal_large,
        "large_open": open_large,
        "aes_large_seal": aes_seal,
        "aes_large_open": aes_open,
    }


def measure_round(
    contenders: dict[str, Callable[[], Any]], number: int, slice_s: float
) -> dict[str, float]:
    """Measure each once, another one first each time; return messages per second."""
    names = list(contenders)
    first = number % len(names)
    rates = {}
    for name in names[first:] + names[:first]:
        gc.collect()
        rates[name] = measure(contenders[name], slice_s)
    return rates


def measure(once: Callable[[], Any], slice_s: float) -> float:
    """Return how often it can be done in a second, tried for ``slice_s``."""
    began = time.perf_counter()
    once()
    repeat = max(1, int(0.005 / (time.perf_counter() - began)))
    done = 0
    began = time.perf_counter()
    while (taken := time.perf_counter() - began) < slice_s:
        for _ in range(repeat):
            once()
        done += repeat
    return done / taken
