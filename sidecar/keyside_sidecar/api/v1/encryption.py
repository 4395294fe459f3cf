"""keyside.v1.EncryptionService as messages: requests to commands, results to responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.envelope import parse_wrapping_header
from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row
from keyside_sidecar.api.v1.contexts import copy_context, make_reference
from keyside_sidecar.api.v1.times import make_duration
from keyside_sidecar.server.call import Keeps
from keyside_sidecar.services.batches import read_key
from keyside_sidecar.services.data_keys import GenerateDataKey, UnwrapDataKey
from keyside_sidecar.services.encryption import Open, Reencrypt, Rewrap, Seal

if TYPE_CHECKING:
    from keyside_sidecar.services.data_keys import GeneratedDataKey, UnwrappedDataKey
    from keyside_sidecar.services.encryption import Opened, Renewed, Sealed


def _row(name: str, operation: Operation, *, grantable: bool = False) -> Row:
    event = f"encryption.{operation.name.lower()}"
    return Row(name, operation, event, Keeps.CALL, grantable)


SERVICE: Final = pb.DESCRIPTOR.services_by_name["EncryptionService"]
ROWS: Final = (
    _row("Encrypt", Operation.ENCRYPT, grantable=True),
    _row("Decrypt", Operation.DECRYPT, grantable=True),
    _row("Rewrap", Operation.REWRAP, grantable=True),
    _row("Reencrypt", Operation.REENCRYPT),
)
DATA_KEY_ROWS: Final = (
    _row("GenerateDataKey", Operation.GENERATE_DATA_KEY),
    _row("DecryptDataKey", Operation.DECRYPT_DATA_KEY),
)


def read_encrypt(request: pb.EncryptRequest) -> Seal:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none.
    """
    return Seal(read_key(request.key), request.plaintext, copy_context(request.context))


def write_encrypt(sealed: Sealed) -> pb.EncryptResponse:
    """Return the response."""
    return pb.EncryptResponse(envelope=sealed.envelope, version=make_reference(sealed.version))


def read_decrypt(request: pb.DecryptRequest) -> Open:
    """Return what is asked for.

    Raises:
        EnvelopeRejected: The envelope has no header.
    """
    envelope = request.envelope
    return Open(parse_wrapping_header(envelope), envelope, copy_context(request.context))


def write_decrypt(opened: Opened) -> pb.DecryptResponse:
    """Return the response."""
    return pb.DecryptResponse(plaintext=opened.plaintext, version=make_reference(opened.version))


def read_rewrap(request: pb.RewrapRequest) -> Rewrap:
    """Return what is asked for.

    Raises:
        EnvelopeRejected: The envelope has no header.
    """
    return Rewrap(parse_wrapping_header(request.envelope), request.envelope)


def write_rewrap(renewed: Renewed) -> pb.RewrapResponse:
    """Return the response."""
    return pb.RewrapResponse(
        envelope=renewed.envelope,
        previous=make_reference(renewed.previous),
        version=make_reference(renewed.version),
    )


def read_reencrypt(request: pb.ReencryptRequest) -> Reencrypt:
    """Return what is asked for.

    Raises:
        EnvelopeRejected: The envelope has no header.
    """
    envelope = request.envelope
    return Reencrypt(parse_wrapping_header(envelope), envelope, copy_context(request.context))


def write_reencrypt(renewed: Renewed) -> pb.ReencryptResponse:
    """Return the response."""
    return pb.ReencryptResponse(
        envelope=renewed.envelope,
        previous=make_reference(renewed.previous),
        version=make_reference(renewed.version),
    )


def read_generate_data_key(request: pb.GenerateDataKeyRequest) -> GenerateDataKey:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none.
    """
    return GenerateDataKey(read_key(request.key), request.wrapped_only)


def write_generate_data_key(made: GeneratedDataKey) -> pb.GenerateDataKeyResponse:
    """Return the response."""
    return pb.GenerateDataKeyResponse(
        plaintext=made.plaintext,
        wrapped=made.wrapped,
        version=make_reference(made.version),
        max_age=make_duration(made.terms.max_age_s),
        max_messages=made.terms.max_messages,
        max_bytes=made.terms.max_bytes,
        suite=made.terms.suite.name,
    )


def read_decrypt_data_key(request: pb.DecryptDataKeyRequest) -> UnwrapDataKey:
    """Return what is asked for.

    Raises:
        EnvelopeRejected: The wrapped data key is none.
    """
    return UnwrapDataKey(parse_wrapping_header(request.wrapped))


def write_decrypt_data_key(unwrapped: UnwrappedDataKey) -> pb.DecryptDataKeyResponse:
    """Return the response."""
    return pb.DecryptDataKeyResponse(
        plaintext=unwrapped.plaintext,
        version=make_reference(unwrapped.version),
        suite=unwrapped.suite.name,
        max_age=make_duration(unwrapped.max_age_s),
    )
