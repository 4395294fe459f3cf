"""Data keys of EncryptionService: for callers that seal and open in their own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration

from keyside.envelope import generate_data_key, suite_by_name, unwrap_data_key, wrap_data_key
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.rpc.encryption_messages import make_reference

if TYPE_CHECKING:
    from keyside.envelope import Suite
    from keyside_sidecar.config import Config, KeySettings
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.versions import Versions

# What one data key may seal. Far below what its suite allows (docs/envelope.md), so that what is
# charged in advance is not far from what is used.
_MAX_MESSAGES: Final = 1 << 20
_MAX_BYTES: Final = 1 << 36
# A data key takes at most this part of what rolls its version over.
_PART_OF_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is told of a key with each of its data keys."""

    suite: Suite
    max_messages: int
    max_bytes: int
    max_age: Duration


class DataKeyServicer:
    """Gives data keys to callers that policy has allowed.

    Args:
        config: For each key's suite and what its data keys may be used for.
        keyring: The key versions.
        versions: Finds those that wrapping headers name.
    """

    def __init__(self, config: Config, keyring: Keyring, versions: Versions) -> None:
        self._terms = {name: _read_terms(key) for name, key in config.keys.items()}
        self._keyring = keyring
        self._versions = versions

    async def generate_data_key(
        self, call: Call, request: pb.GenerateDataKeyRequest
    ) -> pb.GenerateDataKeyResponse:
        """Make a data key under the current version, and charge all that it may seal.

        Raises:
            StoreUnavailable: The key has not been loaded yet.
        """
        key = call.key
        assert key is not None  # noqa: S101  (the guard has read it from the request)
        terms = self._terms[key]
        version = self._keyring.charge(key, terms.max_bytes, terms.max_messages)
        if version is None:
            version = await self._keyring.reserve_and_charge(
                key, terms.max_bytes, terms.max_messages
            )
        data_key = generate_data_key()
        return pb.GenerateDataKeyResponse(
            plaintext=b"" if request.wrapped_only else data_key.material,
            wrapped=wrap_data_key(version, data_key, terms.suite),
            version=make_reference(version),
            max_age=terms.max_age,
            max_messages=terms.max_messages,
            max_bytes=terms.max_bytes,
            suite=terms.suite.name,
        )

    async def decrypt_data_key(
        self, call: Call, _request: pb.DecryptDataKeyRequest
    ) -> pb.DecryptDataKeyResponse:
        """Unwrap a data key.

        Raises:
            EnvelopeRejected: Its wrapping header does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        header = call.header
        assert header is not None  # noqa: S101  (the guard has parsed it)
        version = await self._versions.find(header, call.connection.credential.uid)
        data_key = unwrap_data_key(version, header)
        self._keyring.note_opened(version)
        return pb.DecryptDataKeyResponse(
            plaintext=data_key.material,
            version=make_reference(version),
            suite=header.suite.name,
            max_age=self._terms[header.key_name].max_age,
        )


def _read_terms(key: KeySettings) -> _Terms:
    max_age = Duration()
    max_age.FromMilliseconds(round(key.data_key_max_age_s * 1000))
    return _Terms(
        suite_by_name(key.suite),
        _bound(_MAX_MESSAGES, key.rotate_after_messages),
        _bound(_MAX_BYTES, key.rotate_after_bytes),
        max_age,
    )


def _bound(most: int, rotate_after: int | None) -> int:
    return most if rotate_after is None else min(most, max(1, rotate_after // _PART_OF_LIMIT))
