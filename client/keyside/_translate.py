"""From a gRPC status to the error that a caller of this package would want.

The sidecar's own statuses carry google.rpc.ErrorInfo with the domain "keyside"; only their text is
passed on. Any other status comes from gRPC itself or from something that is no sidecar: its text
may quote a request, so it is never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from keyside.errors import (
    AccessRefused,
    AuthenticationFailed,
    Conflict,
    DeadlineExceeded,
    EnvelopeRejected,
    InvalidArgument,
    KeysideError,
    LimitExceeded,
    NoSuchRecord,
    NoSuchRequest,
    NoSuchVersion,
    NotIdentified,
    NotPermitted,
    Unavailable,
    UnexpectedAnswer,
    VersionUnusable,
    WrongVersionState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

DOMAIN: Final = "keyside"
_DETAILS_KEY: Final = "grpc-status-details-bin"

_BY_CODE: Final[dict[str, type[KeysideError]]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "UNAUTHENTICATED": NotIdentified,
    "PERMISSION_DENIED": NotPermitted,
    "ABORTED": Conflict,
    "RESOURCE_EXHAUSTED": LimitExceeded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}
_BY_REASON: Final[dict[str, type[KeysideError]]] = {
    "ENVELOPE_REJECTED": EnvelopeRejected,
    "VERSION_DISABLED": VersionUnusable,
    "VERSION_DESTROYED": VersionUnusable,
    "VERSION_NOT_FOUND": NoSuchVersion,
    "VERSION_IN_USE": WrongVersionState,
    "VERSION_STATE": WrongVersionState,
    "ROTATION_CONFLICT": Conflict,
    "AUTHENTICATION_DENIED": AuthenticationFailed,
    "AUTHENTICATION_LIMITED": AuthenticationFailed,
    "AUTHENTICATION_UNAVAILABLE": Unavailable,
    "ACCOUNT_LOCKED": AuthenticationFailed,
    "ACCOUNT_EXPIRED": AuthenticationFailed,
    "PASSWORD_EXPIRED": AuthenticationFailed,
    "ACCESS_NOT_FOUND": NoSuchRequest,
    "RECORD_NOT_FOUND": NoSuchRecord,
    "CHECKPOINT_NOT_FOUND": NoSuchRecord,
    "GRANT_ENDED": NotPermitted,
    "GRANT_SCOPE": NotPermitted,
    "CREDENTIAL_REFUSED": NotPermitted,
}
# What the state of an access request does not allow; a later sidecar may know more such reasons.
_ACCESS: Final = "ACCESS_"
_NOT_LISTENING: Final = "Connection refused"
_TOO_LARGE: Final = "larger than max"


@dataclass(frozen=True, slots=True)
class _Details:
    reason: str = ""
    remedy: str = ""
    request_id: str = ""
    violations: tuple[tuple[str, str], ...] = field(default=())


def translate_status(
    code: str, text: str, metadata: Iterable[tuple[str, str | bytes]], socket: str
) -> KeysideError:
    """Return the error for a call that ended with a status other than OK.

    Args:
        code: The status code's name.
        text: The status message.
        metadata: The trailing metadata.
        socket: The socket's path, to name it.
    """
    details = _read_details(metadata)
    if not details.reason:
        return _translate_foreign(code, text, details, socket)
    return _make_error(code, text, details)


def translate_item(status: status_pb2.Status) -> KeysideError:
    """Return the error for an item of a batch, whose status is in the answer and not OK."""
    details = _read_status(status)
    try:
        code = code_pb2.Code.Name(status.code)
    except ValueError:
        code = "UNKNOWN"
    if not details.reason:
        error = UnexpectedAnswer(f"the sidecar answered an item with {code} and said no more")
        error.code = code
        return error
    return _make_error(code, status.message, details)


def _make_error(code: str, text: str, details: _Details) -> KeysideError:
    kind = _choose_kind(code, details.reason)
    if details.violations:
        named = "; ".join(f"{name}: {why}" for name, why in details.violations)
        text = named if named in text or not text else f"{text} ({named})"
    error = kind(
        text or details.reason,
        reason=details.reason,
        remedy=details.remedy,
        request_id=details.request_id,
    )
    error.code = code
    if isinstance(error, InvalidArgument):
        error.violations = details.violations
    return error


def _choose_kind(code: str, reason: str) -> type[KeysideError]:
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if code == "FAILED_PRECONDITION" and reason.startswith(_ACCESS):
        return AccessRefused
    return _BY_CODE.get(code, UnexpectedAnswer)


def _translate_foreign(code: str, text: str, details: _Details, socket: str) -> KeysideError:
    request_id = details.request_id
    error: KeysideError
    if code == "UNAVAILABLE" and _NOT_LISTENING in text:
        error = Unavailable(
            f"nothing listens on {socket}",
            remedy="start the sidecar (systemctl start keyside, or keysided --config FILE serve)",
        )
    elif code == "CANCELLED":
        error = Unavailable(
            f"the sidecar at {socket} broke the call off: too many calls waited to begin, or it "
            "was stopped",
            remedy="have fewer calls in flight, or put more into each (batches); keyside status",
            request_id=request_id,
        )
    elif code == "UNAVAILABLE":
        error = Unavailable(
            f"the connection to the sidecar at {socket} was lost",
            remedy="see whether the sidecar is starting or stopping: keyside status",
            request_id=request_id,
        )
    elif code == "DEADLINE_EXCEEDED":
        error = DeadlineExceeded("no answer in time", remedy="see keyside status, or wait longer")
    elif code == "RESOURCE_EXHAUSTED" and _TOO_LARGE in text:
        error = LimitExceeded(
            "the message is larger than the sidecar accepts",
            reason="MESSAGE_TOO_LARGE",
            remedy="encrypt less at once: max_plaintext_bytes is 1 MiB unless configured",
        )
    elif code == "UNIMPLEMENTED":
        error = UnexpectedAnswer(
            f"what listens on {socket} does not know this call",
            reason="METHOD_UNKNOWN",
            remedy="compare the client's and the sidecar's versions",
        )
    else:
        error = UnexpectedAnswer(
            f"what listens on {socket} answered with {code} and said no more",
            remedy="see the sidecar's log",
            request_id=request_id,
        )
    error.code = code
    return error


def _read_details(metadata: Iterable[tuple[str, str | bytes]]) -> _Details:
    packed = next((value for name, value in metadata if name == _DETAILS_KEY), b"")
    if not isinstance(packed, bytes):
        return _Details()
    try:
        return _read_status(status_pb2.Status.FromString(packed))
    except DecodeError:
        return _Details()


def _read_status(status: status_pb2.Status) -> _Details:
    reason = remedy = request_id = ""
    violations: list[tuple[str, str]] = []
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    try:
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
                if info.domain == DOMAIN:
                    reason = info.reason
                    remedy = info.metadata.get("remedy", "")
                    request_id = info.metadata.get("request_id", "")
            elif detail.Is(bad.DESCRIPTOR):
                detail.Unpack(bad)
                violations += [(one.field, one.description) for one in bad.field_violations]
    except DecodeError:
        return _Details()
    return _Details(reason, remedy, request_id, tuple(violations))
