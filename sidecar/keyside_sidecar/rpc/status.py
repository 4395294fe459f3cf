"""From our errors to gRPC statuses: the one table.

Whatever is not listed becomes INTERNAL with constant text and a request id; its traceback goes to
the log and nowhere else (gRPC would otherwise send an exception's own text to the caller).
"""

from __future__ import annotations

import logging
import math
import secrets
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import (
    AccessFactsMissing,
    AccessRefused,
    AuditUnavailable,
    AuthenticationFailed,
    BadRequest,
    CheckpointNotFound,
    CustodianUnavailable,
    CustodyError,
    MessageTooLarge,
    NoSuchVersion,
    Refused,
    RotationConflict,
    StoreError,
    StoreTampered,
    StoreUnavailable,
    UnknownVersion,
    VersionDisabled,
    VersionInUse,
    WrongState,
)
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

DOMAIN: Final = "keyside"
DETAILS_KEY: Final = "grpc-status-details-bin"

_IDENTITY_REASONS: Final = frozenset(
    {
        Reason.PEER_UNKNOWN,
        Reason.PEER_NOT_UNIX,
        Reason.PEER_CREDENTIAL_UNREADABLE,
        Reason.PEER_PID_ZERO,
        Reason.PEER_OVERFLOW_UID,
        Reason.PEER_OVERFLOW_GID,
        Reason.PEER_ENDED,
        Reason.ACCOUNT_UNKNOWN,
    }
)
_REASON_CODES: Final = {
    **dict.fromkeys(Reason, grpc.StatusCode.PERMISSION_DENIED),
    **dict.fromkeys(_IDENTITY_REASONS, grpc.StatusCode.UNAUTHENTICATED),
    Reason.NAME_SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.TOO_MANY_CALLS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TOO_OFTEN: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_KIND_CODES: Final = {
    "permission": grpc.StatusCode.PERMISSION_DENIED,
    "precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
}
_NOT_ASKED: Final = (grpc.StatusCode.UNAVAILABLE, "AUTHENTICATION_UNAVAILABLE")
_AUTHENTICATION: Final = {
    "denied": (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_DENIED"),
    "unknown_account": (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_DENIED"),
    "locked": (grpc.StatusCode.UNAUTHENTICATED, "ACCOUNT_LOCKED"),
    "expired": (grpc.StatusCode.UNAUTHENTICATED, "ACCOUNT_EXPIRED"),
    "password_expired": (grpc.StatusCode.UNAUTHENTICATED, "PASSWORD_EXPIRED"),
    "limited": (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_LIMITED"),
    "busy": (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_LIMITED"),
}


class PolicyChanged(Exception):
    """The caller has been allowed something since it connected; it is asked to connect again."""


class Described(Exception):
    """A call has failed, and its failure is described (and recorded) already.

    Args:
        failure: The description.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class UnknownService(Exception):
    """A health probe asked about a service that this sidecar does not have."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A status to end a call with.

    Args:
        code: The gRPC status code.
        reason: The ``ErrorInfo.reason``.
        text: What the caller is told; constant or about the caller's own request.
        remedy: What to do about it, or ``""``.
        field_violations: (field, description) pairs for ``BadRequest``.
        request_id: Names the call in the log; given with INTERNAL.
    """

    code: grpc.StatusCode
    reason: str
    text: str
    remedy: str = ""
    field_violations: tuple[tuple[str, str], ...] = ()
    request_id: str = field(default="")

    def details(self) -> bytes:
        """Return the serialised ``google.rpc.Status``."""
        serialised: bytes = self.status().SerializeToString()
        return serialised

    def status(self) -> status_pb2.Status:
        """Return the ``google.rpc.Status``; an item of a batch has it in its result."""
        metadata = {"remedy": self.remedy, "request_id": self.request_id}
        info = error_details_pb2.ErrorInfo(
            reason=self.reason,
            domain=DOMAIN,
            metadata={name: value for name, value in metadata.items() if value},
        )
        packed = [_pack(info)]
        if self.field_violations:
            bad = error_details_pb2.BadRequest()
            for name, description in self.field_violations:
                bad.field_violations.add(field=name, description=description)
            packed.append(_pack(bad))
        code: int = self.code.value[0]
        return status_pb2.Status(code=code, message=self.text, details=packed)


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _refused(error: Refused) -> Failure:
    reason = error.reason
    return Failure(_REASON_CODES[reason], reason.name, reason.text, reason.remedy)


def _bad_request(error: BadRequest) -> Failure:
    return Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        error.reason,
        f"{error.field}: {error.description}",
        field_violations=((error.field, error.description),),
    )


def _message_too_large(error: MessageTooLarge) -> Failure:
    return Failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "MESSAGE_TOO_LARGE",
        str(error),
        "send less at once: see max_plaintext_bytes, and max_batch_bytes for batches",
    )


def _invalid_argument(error: InvalidArgument) -> Failure:
    return Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        error.reason,
        str(error),
        error.remedy,
        field_violations=(("context" if error.reason == "INVALID_CONTEXT" else "key", str(error)),),
    )


def _envelope_rejected(_error: Exception) -> Failure:
    uniform = EnvelopeRejected()
    return Failure(grpc.StatusCode.INVALID_ARGUMENT, uniform.reason, str(uniform), uniform.remedy)


def _version_disabled(error: VersionDisabled) -> Failure:
    return Failure(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"VERSION_{error.state}",
        f"version {error.number} of {error.key} is {error.state.lower()}",
        "an operator can enable it again" if error.state == "DISABLED" else "",
    )


def _no_such_version(error: NoSuchVersion) -> Failure:
    return Failure(
        grpc.StatusCode.NOT_FOUND,
        "VERSION_NOT_FOUND",
        str(error),
        "keyside keys show lists the key's versions",
    )


def _version_in_use(error: VersionInUse) -> Failure:
    return Failure(
        grpc.StatusCode.FAILED_PRECONDITION,
        "VERSION_IN_USE",
        str(error),
        "roll the key over first: keyside keys rotate",
    )


def _wrong_state(error: WrongState) -> Failure:
    return Failure(grpc.StatusCode.FAILED_PRECONDITION, "VERSION_STATE", str(error), error.remedy)


def _conflict(error: RotationConflict) -> Failure:
    return Failure(
        grpc.StatusCode.ABORTED,
        "ROTATION_CONFLICT",
        f"the current version is {error.current}, not {error.expected}",
        "look at the key again before deciding to rotate it",
    )


def _store_unavailable(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "the key store is away",
        "the call may be repeated; keyside status says since when",
    )


def _custodian_unavailable(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.UNAVAILABLE,
        "CUSTODIAN_UNAVAILABLE",
        "the root key's custodian is away",
        "the call may be repeated; keyside status says since when",
    )


def _store_refused(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.FAILED_PRECONDITION,
        "STORE_REFUSED",
        "the key store holds something that does not authenticate, and is not used",
        "an operator should read the sidecar's log now",
    )


def _policy_changed(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.UNAVAILABLE,
        "POLICY_CHANGED",
        "this account has been allowed in since it connected",
        "connect again; the client library does so by itself",
    )


def _unknown_service(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.NOT_FOUND,
        "UNKNOWN_SERVICE",
        "there is no service of that name here",
        'ask about "" or about a service of keyside.v1',
    )


def _access_refused(error: AccessRefused) -> Failure:
    return Failure(_KIND_CODES[error.kind], error.reason, error.text, error.remedy)


def _authentication_failed(error: AuthenticationFailed) -> Failure:
    code, reason = _AUTHENTICATION.get(error.outcome, _NOT_ASKED)
    remedy = error.remedy
    if error.retry_s:
        remedy = f"wait {math.ceil(error.retry_s)} s, then try again"
    return Failure(code, reason, str(error), remedy)


def _access_conflict(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.ABORTED,
        "ACCESS_CONFLICT",
        "others decide about this request at the same time",
        "look at the request again before deciding",
    )


def _audit_unavailable(error: AuditUnavailable) -> Failure:
    return Failure(
        grpc.StatusCode.UNAVAILABLE,
        "AUDIT_UNAVAILABLE",
        str(error),
        "an operator should see keyside status and the sidecar's log: nothing is done unrecorded",
    )


def _checkpoint_not_found(_error: Exception) -> Failure:
    return Failure(
        grpc.StatusCode.NOT_FOUND,
        "CHECKPOINT_NOT_FOUND",
        "the audit log has no checkpoint yet",
        "ask again after checkpoint_every (1 minute unless configured)",
    )


# The first row whose type fits decides; so a leaf stands before its parent.
_TABLE: Final[tuple[tuple[type[Exception], Callable[..., Failure]], ...]] = (
    (Refused, _refused),
    (EnvelopeRejected, _envelope_rejected),
    (UnknownVersion, _envelope_rejected),
    (InvalidArgument, _invalid_argument),
    (BadRequest, _bad_request),
    (MessageTooLarge, _message_too_large),
    (VersionDisabled, _version_disabled),
    (RotationConflict, _conflict),
    (NoSuchVersion, _no_such_version),
    (VersionInUse, _version_in_use),
    (WrongState, _wrong_state),
    (AccessRefused, _access_refused),
    (AccessFactsMissing, _access_conflict),
    (AuthenticationFailed, _authentication_failed),
    (AuditUnavailable, _audit_unavailable),
    (CheckpointNotFound, _checkpoint_not_found),
    (PolicyChanged, _policy_changed),
    (UnknownService, _unknown_service),
    (StoreUnavailable, _store_unavailable),
    (StoreTampered, _store_refused),
    (StoreError, _store_unavailable),
    (CustodianUnavailable, _custodian_unavailable),
    (CustodyError, _store_refused),
)


def describe_failure(error: Exception, method: str) -> Failure:
    """Return the status for an error; log it if it isn't one of ours.

    Args:
        error: What ended the call.
        method: The RPC's full name, for the log.
    """
    if isinstance(error, Described):
        return error.failure
    for kind, describe in _TABLE:
        if isinstance(error, kind):
            return describe(error)
    request_id = secrets.token_hex(8)
    # An exception's own text may quote a request (I7): the type and the frames are enough.
    frames = "".join(traceback.format_tb(error.__traceback__))
    event(
        _log,
        logging.ERROR,
        "unexpected error",
        type=type(error).__name__,
        method=method,
        request_id=request_id,
        frames=frames,
    )
    return Failure(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"the sidecar failed inside; request id {request_id}",
        "an operator finds the request id in the sidecar's log",
        request_id=request_id,
    )
