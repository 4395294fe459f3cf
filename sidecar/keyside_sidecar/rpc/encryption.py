"""keyside.v1.EncryptionService: from messages to the envelope code and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.envelope import encode_context, open_envelope, rewrap, seal, suite_by_name
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import BadRequest, Refused, UnknownVersion
from keyside_sidecar.rpc.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import Suite, VersionKey
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.config import Config
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.rpc.guard import Call


# Of versions that do not exist, for one account.
_LOOKUPS: Final = 100
_LOOKUPS_PER_SECOND: Final = 10


class EncryptionServicer:
    """Seals, opens, rewraps and re-encrypts for callers that policy has allowed.

    Args:
        config: For the size limit and each key's suite.
        keyring: The key versions.
        clock: For the limit on look-ups of unknown versions.
    """

    def __init__(self, config: Config, keyring: Keyring, clock: Clock) -> None:
        self._max_plaintext_bytes = config.sidecar.max_plaintext_bytes
        self._suites: Mapping[str, Suite] = {
            name: suite_by_name(key.suite) for name, key in config.keys.items()
        }
        self._keyring = keyring
        self._lookups = Allowance(clock, burst=_LOOKUPS, per_second=_LOOKUPS_PER_SECOND)

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
        envelope = seal(version, request.plaintext, dict(request.context), self._suites[key])
        return pb.EncryptResponse(envelope=envelope, version=_reference(version))

    async def decrypt(self, call: Call, request: pb.DecryptRequest) -> pb.DecryptResponse:
        """Open an envelope.

        Raises:
            EnvelopeRejected: It does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        # First, so that what is wrong with the context is said whether the version is known or not.
        context = dict(request.context)
        encode_context(context)
        version = await self._version(call)
        plaintext = open_envelope(version, request.envelope, context)
        self._keyring.note_opened(version)
        return pb.DecryptResponse(plaintext=plaintext, version=_reference(version))

    async def rewrap(self, call: Call, request: pb.RewrapRequest) -> pb.RewrapResponse:
        """Move an envelope's data key under the current version.

        Raises:
            EnvelopeRejected: Its wrapping header does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        old = await self._version(call)
        assert call.key is not None  # noqa: S101
        new = self._keyring.charge(call.key, 0)
        if new is None:
            new = await self._keyring.reserve_and_charge(call.key, 0)
        envelope = rewrap(old, new, request.envelope, self._suites[call.key])
        self._keyring.note_opened(old)
        return pb.RewrapResponse(
            envelope=envelope, previous=_reference(old), version=_reference(new)
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
        context = dict(request.context)
        encode_context(context)
        old = await self._version(call)
        plaintext = open_envelope(old, request.envelope, context)
        self._keyring.note_opened(old)
        new = self._keyring.charge(key, len(plaintext))
        if new is None:
            new = await self._keyring.reserve_and_charge(key, len(plaintext))
        envelope = seal(new, plaintext, context, self._suites[key])
        return pb.ReencryptResponse(
            envelope=envelope, previous=_reference(old), version=_reference(new)
        )

    async def _version(self, call: Call) -> VersionKey:
        header = call.header
        assert header is not None  # noqa: S101
        name = header.key_name, header.version_number, header.version_id
        cached = self._keyring.cached(*name)
        if cached is not None:
            return cached
        if not self._keyring.needs_look(*name):
            return await self._keyring.version(*name)  # from memory too, if only to refuse it
        uid = call.connection.credential.uid
        if not self._lookups.has_some(uid):
            raise Refused(Reason.TOO_MANY_CALLS)
        try:
            return await self._keyring.version(*name)
        except UnknownVersion:
            self._lookups.charge(uid)
            raise


def _reference(version: VersionKey) -> pb.KeyVersionRef:
    return pb.KeyVersionRef(key=version.key_name, number=version.number)
