"""A small sidecar that seals and opens real envelopes, under keys that it makes up.

It shares nothing with the double's "encryption" by reversing. Every version can be asked to open
again, whatever became current, so that a test can see that nothing was lost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
from tests.unit.sidecar_double import Double, Failure

from keyside.envelope import (
    DEFAULT_SUITE,
    VersionKey,
    generate_data_key,
    open_envelope,
    parse_wrapping_header,
    rewrap,
    seal,
    unwrap_data_key,
    wrap_data_key,
)
from keyside.errors import EnvelopeRejected
from keyside.names import KeyName, VersionNumber
from keyside.v1 import encryption_pb2, keys_pb2

if TYPE_CHECKING:
    from pathlib import Path

KEY = KeyName("mail")


class EnvelopeDouble(Double):
    """Does everything for real; ``pause_s`` slows rewrapping and re-encrypting down."""

    def __init__(self, socket: Path | str, versions: int = 1) -> None:
        super().__init__(socket)
        self.materials: list[VersionKey] = []
        self.pause_s = 0.0
        self.rewrapped: list[bytes] = []
        self.reencrypted: list[bytes] = []
        self.refused: set[int] = set()
        self.max_plaintext_bytes = 1024 * 1024
        self.allow_data_keys = True
        self.max_messages = 2**20
        self.max_bytes = 2**36
        self.max_age_s = 300.0
        for _ in range(versions):
            self.rotate()

    @property
    def current(self) -> VersionKey:
        """The version that wraps from now on."""
        return self.materials[-1]

    def rotate(self) -> None:
        """Make another version current."""
        number = VersionNumber(len(self.materials) + 1)
        identity = number.to_bytes(16)
        self.materials.append(VersionKey(KEY, number, identity, bytes([number]) * 32))

    def seal(self, plaintext: bytes, context: dict[str, str] | None = None) -> bytes:
        """Return an envelope under the current version."""
        return seal(self.current, plaintext, context or {}, DEFAULT_SUITE)

    def open(self, envelope: bytes, context: dict[str, str] | None = None) -> bytes:
        """Return what an envelope under any version holds."""
        return open_envelope(self._find(envelope), envelope, context or {})

    def Encrypt(  # noqa: N802
        self, request: encryption_pb2.EncryptRequest, context: Any
    ) -> encryption_pb2.EncryptResponse:
        """Seal, up to the double's largest plaintext."""
        self._begin("Encrypt", context)
        size_bytes = len(request.plaintext)
        if size_bytes > self.max_plaintext_bytes:
            text = f"has {size_bytes} bytes; at most {self.max_plaintext_bytes} are taken "
            text += "(max_plaintext_bytes)"
            self.failures.append(
                Failure(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"plaintext: {text}",
                    reason="INVALID_ARGUMENT",
                    violations={"plaintext": text},
                )
            )
            self._begin("refused", context)
        return encryption_pb2.EncryptResponse(
            envelope=self.seal(request.plaintext, dict(request.context))
        )

    def Decrypt(  # noqa: N802
        self, request: encryption_pb2.DecryptRequest, context: Any
    ) -> encryption_pb2.DecryptResponse:
        """Open, up to a message of the double's largest plaintext."""
        self._begin("Decrypt", context)
        if len(request.envelope) > self.max_plaintext_bytes + 1024:
            self.failures.append(
                Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "too long", reason="MESSAGE_TOO_LARGE")
            )
            self._begin("refused", context)
        self._admit(request.envelope, context)
        try:
            plaintext = self.open(request.envelope, dict(request.context))
        except EnvelopeRejected:
            self._reject(context)
        return encryption_pb2.DecryptResponse(plaintext=plaintext)

    def GenerateDataKey(  # noqa: N802
        self, request: encryption_pb2.GenerateDataKeyRequest, context: Any
    ) -> encryption_pb2.GenerateDataKeyResponse:
        """Make a data key, with the bounds that the test set."""
        self._begin("GenerateDataKey", context)
        if not self.allow_data_keys:
            self._refuse_data_keys(context)
        data_key = generate_data_key()
        answer = encryption_pb2.GenerateDataKeyResponse(
            plaintext=b"" if request.wrapped_only else data_key.material,
            wrapped=wrap_data_key(self.current, data_key, DEFAULT_SUITE),
            max_messages=self.max_messages,
            max_bytes=self.max_bytes,
            suite=DEFAULT_SUITE.name,
        )
        answer.max_age.FromMilliseconds(round(self.max_age_s * 1000))
        answer.version.key, answer.version.number = request.key, self.current.number
        return answer

    def DecryptDataKey(  # noqa: N802
        self, request: encryption_pb2.DecryptDataKeyRequest, context: Any
    ) -> encryption_pb2.DecryptDataKeyResponse:
        """Unwrap a data key."""
        self._begin("DecryptDataKey", context)
        if not self.allow_data_keys:
            self._refuse_data_keys(context)
        self._admit(request.wrapped, context)
        header = parse_wrapping_header(request.wrapped)
        try:
            data_key = unwrap_data_key(self._find(request.wrapped), header)
        except EnvelopeRejected:
            self._reject(context)
        answer = encryption_pb2.DecryptDataKeyResponse(plaintext=data_key.material)
        answer.max_age.FromMilliseconds(round(self.max_age_s * 1000))
        answer.version.key, answer.version.number = header.key_name, header.version_number
        return answer

    def Rewrap(  # noqa: N802
        self, request: encryption_pb2.RewrapRequest, context: Any
    ) -> encryption_pb2.RewrapResponse:
        """Move the envelope under the current version."""
        self._begin("Rewrap", context)
        self._admit(request.envelope, context)
        time.sleep(self.pause_s)
        self.rewrapped.append(request.envelope)
        try:
            envelope = rewrap(self._find(request.envelope), self.current, request.envelope)
        except EnvelopeRejected:
            self._reject(context)
        return encryption_pb2.RewrapResponse(envelope=envelope)

    def Reencrypt(  # noqa: N802
        self, request: encryption_pb2.ReencryptRequest, context: Any
    ) -> encryption_pb2.ReencryptResponse:
        """Seal the plaintext anew."""
        self._begin("Reencrypt", context)
        self._admit(request.envelope, context)
        time.sleep(self.pause_s)
        try:
            plaintext = self.open(request.envelope, dict(request.context))
        except EnvelopeRejected:
            self._reject(context)
        self.reencrypted.append(plaintext)
        return encryption_pb2.ReencryptResponse(
            envelope=self.seal(plaintext, dict(request.context))
        )

    def GetKey(  # noqa: N802
        self, request: keys_pb2.GetKeyRequest, context: Any
    ) -> keys_pb2.GetKeyResponse:
        """Say which version is current."""
        self._begin("GetKey", context)
        key = keys_pb2.Key(name=request.name, current_version=self.current.number)
        version = keys_pb2.KeyVersion(
            number=self.current.number,
            id=self.current.version_id,
            state=keys_pb2.KEY_VERSION_STATE_CURRENT,
        )
        return keys_pb2.GetKeyResponse(key=key, versions=[version])

    def _find(self, envelope: bytes) -> VersionKey:
        number = parse_wrapping_header(envelope).version_number
        if number > len(self.materials):
            raise EnvelopeRejected
        return self.materials[number - 1]

    def _admit(self, envelope: bytes, context: Any) -> None:
        try:
            number = int(parse_wrapping_header(envelope).version_number)
        except EnvelopeRejected:
            self._reject(context)
        if number in self.refused:
            self.failures.append(
                Failure(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"version {number} of mail is disabled",
                    reason="VERSION_DISABLED",
                    metadata={"remedy": "an operator can enable it again"},
                )
            )
            self._begin("refused", context)

    def _reject(self, context: Any) -> None:
        error = EnvelopeRejected()
        self.failures.append(
            Failure(grpc.StatusCode.INVALID_ARGUMENT, str(error), reason=error.reason)
        )
        self._begin("rejected", context)
