"""keyside.v1.EncryptionService: from messages to the envelope code and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.envelope import encode_context, open_envelope, rewrap, seal, suite_by_name
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.rpc.encryption_messages import copy_context, make_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import Suite, VersionKey
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.rpc.guard import Call
    from keyside_sidecar.rpc.versions import Versions


class EncryptionServicer:
    """Seals, opens, rewraps and re-encrypts for callers that policy has allowed.

    Args:
        config: For the size limit and each key's suite.
        keyring: The key versions.
        versions: Finds those that envelopes name.
    """

    def __init__(self, config: Config, keyring: Keyring, versions: Versions) -> None:
        self._max_plaintext_bytes = config.sidecar.max_plaintext_bytes
        self._suites: Mapping[str, Suite] = {
            name: suite_by_name(key.suite) for name, key in config.keys.items()
        }
        self._keyring = keyring
        self._versions = versions

    async def encrypt(self, call: Call, request: pb.EncryptRequest) -> pb.EncryptResponse:
        """Seal a plaintext under the current version.

        Raises:
            BadRequest: The plaintext is over the limit.
            InvalidArgument: The context is not valid.
            StoreUnavailable: The key has not been loaded yet.
        """
        key = call.key
        assert key is not None  # noqa: S101  (the guard has read it from the request)
        size_bytes = len(request.plaintext)
        if size_bytes > self._max_plaintext_bytes:
            raise BadRequest(
                "plaintext",
                f"has {size_bytes} bytes; at most {self._max_plaintext_bytes} are taken "
                "(max_plaintext_bytes)",
            )
        version = self._keyring.charge(key, size_bytes)
        if version is None:
            version = await self._keyring.reserve_and_charge(key, size_bytes)
        context = copy_context(request.context)
        envelope = seal(version, request.plaintext, context, self._suites[key])
        return pb.EncryptResponse(envelope=envelope, version=make_reference(version))

    async def decrypt(self, call: Call, request: pb.DecryptRequest) -> pb.DecryptResponse:
        """Open an envelope.

        Raises:
            EnvelopeRejected: It does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        # First, so that what is wrong with the context is said whether the version is known or not.
        context = copy_context(request.context)
        encode_context(context)
        version = await self._find_version(call)
        plaintext = open_envelope(version, request.envelope, context)
        self._keyring.note_opened(version)
        return pb.DecryptResponse(plaintext=plaintext, version=make_reference(version))

    async def rewrap(self, call: Call, request: pb.RewrapRequest) -> pb.RewrapResponse:
        """Move an envelope's data key under the current version.

        Raises:
            EnvelopeRejected: Its wrapping header does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        old = await self._find_version(call)
        assert call.key is not None  # noqa: S101
        new = self._keyring.charge(call.key, 0)
        if new is None:
            new = await self._keyring.reserve_and_charge(call.key, 0)
        envelope = rewrap(old, new, request.envelope, self._suites[call.key])
        self._keyring.note_opened(old)
        return pb.RewrapResponse(
            envelope=envelope, previous=make_reference(old), version=make_reference(new)
        )

    async def reencrypt(self, call: Call, request: pb.ReencryptRequest) -> pb.ReencryptResponse:
        """Open an envelope, and seal its plaintext under the current version and a new data key.

        Raises:
            EnvelopeRejected: It does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        key = call.key
        assert key is not None  # noqa: S101
        context = copy_context(request.context)
        encode_context(context)
        old = await self._find_version(call)
        plaintext = open_envelope(old, request.envelope, context)
        self._keyring.note_opened(old)
        new = self._keyring.charge(key, len(plaintext))
        if new is None:
            new = await self._keyring.reserve_and_charge(key, len(plaintext))
        envelope = seal(new, plaintext, context, self._suites[key])
        return pb.ReencryptResponse(
            envelope=envelope, previous=make_reference(old), version=make_reference(new)
        )

    async def _find_version(self, call: Call) -> VersionKey:
        assert call.header is not None  # noqa: S101  (the guard has parsed it)
        return await self._versions.find(call.header, call.connection.credential.uid)
