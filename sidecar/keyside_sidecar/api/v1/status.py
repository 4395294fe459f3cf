"""Statuses: failures as gRPC and google.rpc spell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from keyside_sidecar.services.failures import Failure

DOMAIN: Final = "keyside"


def make_status(failure: Failure) -> status_pb2.Status:
    """Return the ``google.rpc.Status``; an item of a batch has it in its result."""
    metadata = {"remedy": failure.remedy, "request_id": failure.request_id}
    info = error_details_pb2.ErrorInfo(
        reason=failure.reason,
        domain=DOMAIN,
        metadata={name: value for name, value in metadata.items() if value},
    )
    details = [_pack(info)]
    if failure.field_violations:
        bad = error_details_pb2.BadRequest()
        for name, description in failure.field_violations:
            bad.field_violations.add(field=name, description=description)
        details.append(_pack(bad))
    return status_pb2.Status(code=failure.code.value, message=failure.text, details=details)


def encode_status(failure: Failure) -> bytes:
    """Return the ``google.rpc.Status``, serialised: the call's ``grpc-status-details-bin``."""
    encoded: bytes = make_status(failure).SerializeToString()
    return encoded


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
