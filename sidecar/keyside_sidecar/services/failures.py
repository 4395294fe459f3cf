"""Failures: what each error means to a caller. One table, for every front door.

Whatever is not listed becomes INTERNAL with constant text and a request id; its traceback goes to
the log and nowhere else.
"""

from __future__ import annotations

import enum
import logging
import secrets
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

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
    UnknownVersion,
    VersionDisabled,
    VersionInUse,
    WrongState,
)
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Code(enum.Enum):
    """Canonical status codes (google.rpc.Code), as far as calls end with them."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Described(Exception):
    """A call has failed, and its failure is described (and recorded) already.

    Args:
        failure: The description.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class PolicyChanged(Exception):
    """The caller has been allowed something since it connected; it is asked to connect again."""


class UnknownService(Exception):
    """A health probe asked about a service that this sidecar does not have."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a call, or an item of a batch, ends with.

    Args:
        code: The status code.
        reason: A constant for programs: the ``ErrorInfo.reason``.
        text: What the caller is told; constant or about the caller's own request.
        remedy: What to do about it, or ``""``.
        field_violations: (field, description) pairs, where fields of the request are wrong.
        request_id: Names the call in the log; given with INTERNAL.
    """

    code: Code
    reason: str
    text: str
    remedy: str = ""
    field_violations: tuple[tuple[str, str], ...] = ()
    request_id: str = field(default="")


@dataclass(frozen=True, slots=True)
class _Row:
    """What one type of error means; in the texts ``{error}`` stands for the error.

    Args:
        kind: The type, or types. The first row that fits decides, so a leaf stands before its
            parent.
        code: The status code, or what reads it from the error.
        reason: As :class:`Failure` has it …
        text: … likewise …
        remedy: … and likewise.
        field: The field of the request that is wrong, if one is.
        description: What is wrong with it.
    """

    kind: type[Exception] | tuple[type[Exception], ...]
    code: Code | Callable[[Any], Code]
    reason: str
    text: str = "{error}"
    remedy: str = ""
    field: str | Callable[[Any], str] = ""
    description: str = "{error}"

    def describe(self, error: Exception) -> Failure:
        """Return an error's failure."""

        def fill(template: str) -> str:
            return template.format(error=error)

        wrong = fill(self.field) if isinstance(self.field, str) else self.field(error)
        violations = ((wrong, fill(self.description)),) if wrong else ()
        code = self.code if isinstance(self.code, Code) else self.code(error)
        return Failure(code, fill(self.reason), fill(self.text), fill(self.remedy), violations)


_REASON_CODES: Final = {
    **dict.fromkeys(Reason, Code.PERMISSION_DENIED),
    **dict.fromkeys(
        (
            Reason.PEER_UNKNOWN,
            Reason.PEER_NOT_UNIX,
            Reason.PEER_CREDENTIAL_UNREADABLE,
            Reason.PEER_PID_ZERO,
            Reason.PEER_OVERFLOW_UID,
            Reason.PEER_OVERFLOW_GID,
            Reason.PEER_ENDED,
            Reason.ACCOUNT_UNKNOWN,
        ),
        Code.UNAUTHENTICATED,
    ),
    Reason.NAME_SERVICE_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.TOO_MANY_CALLS: Code.RESOURCE_EXHAUSTED,
    Reason.TOO_OFTEN: Code.RESOURCE_EXHAUSTED,
}
_KIND_CODES: Final = {
    "permission": Code.PERMISSION_DENIED,
    "precondition": Code.FAILED_PRECONDITION,
    "not_found": Code.NOT_FOUND,
    "invalid": Code.INVALID_ARGUMENT,
}
_UNIFORM: Final = EnvelopeRejected()

_ROWS: Final = (
    _Row(
        Refused,
        lambda error: _REASON_CODES[error.reason],
        "{error.reason.name}",
        "{error.reason.text}",
        "{error.reason.remedy}",
    ),
    _Row(
        (EnvelopeRejected, UnknownVersion),
        Code.INVALID_ARGUMENT,
        _UNIFORM.reason,
        str(_UNIFORM),
        _UNIFORM.remedy,
    ),
    _Row(
        InvalidArgument,
        Code.INVALID_ARGUMENT,
        "{error.reason}",
        remedy="{error.remedy}",
        field=lambda error: "context" if error.reason == "INVALID_CONTEXT" else "key",
    ),
    _Row(
        BadRequest,
        Code.INVALID_ARGUMENT,
        "{error.reason}",
        field="{error.field}",
        description="{error.description}",
    ),
    _Row(
        MessageTooLarge,
        Code.RESOURCE_EXHAUSTED,
        "MESSAGE_TOO_LARGE",
        remedy="send less at once: see max_plaintext_bytes, and max_batch_bytes for batches",
    ),
    _Row(
        VersionDisabled,
        Code.FAILED_PRECONDITION,
        "VERSION_{error.state}",
        remedy="{error.remedy}",
    ),
    _Row(
        RotationConflict,
        Code.ABORTED,
        "ROTATION_CONFLICT",
        "the current version is {error.current}, not {error.expected}",
        "look at the key again before deciding to rotate it",
    ),
    _Row(
        NoSuchVersion,
        Code.NOT_FOUND,
        "VERSION_NOT_FOUND",
        remedy="keyside keys show lists the key's versions",
    ),
    _Row(
        VersionInUse,
        Code.FAILED_PRECONDITION,
        "VERSION_IN_USE",
        remedy="roll the key over first: keyside keys rotate",
    ),
    _Row(WrongState, Code.FAILED_PRECONDITION, "VERSION_STATE", remedy="{error.remedy}"),
    _Row(
        AccessRefused,
        lambda error: _KIND_CODES[error.kind],
        "{error.reason}",
        "{error.text}",
        "{error.remedy}",
    ),
    _Row(
        AccessFactsMissing,
        Code.ABORTED,
        "ACCESS_CONFLICT",
        "others decide about this request at the same time",
        "look at the request again before deciding",
    ),
    _Row(
        AuthenticationFailed,
        lambda error: Code.UNAVAILABLE if error.is_away else Code.UNAUTHENTICATED,
        "{error.reason}",
        remedy="{error.remedy}",
    ),
    _Row(
        AuditUnavailable,
        Code.UNAVAILABLE,
        "AUDIT_UNAVAILABLE",
        remedy="an operator should see keyside status and the sidecar's log: nothing is done "
        "unrecorded",
    ),
    _Row(
        CheckpointNotFound,
        Code.NOT_FOUND,
        "CHECKPOINT_NOT_FOUND",
        "the audit log has no checkpoint yet",
        "ask again after checkpoint_every (1 minute unless configured)",
    ),
    _Row(
        PolicyChanged,
        Code.UNAVAILABLE,
        "POLICY_CHANGED",
        "this account has been allowed in since it connected",
        "connect again; the client library does so by itself",
    ),
    _Row(
        UnknownService,
        Code.NOT_FOUND,
        "UNKNOWN_SERVICE",
        "there is no service of that name here",
        'ask about "" or about a service of keyside.v1',
    ),
    _Row(
        CustodianUnavailable,
        Code.UNAVAILABLE,
        "CUSTODIAN_UNAVAILABLE",
        "the root key's custodian is away",
        "the call may be repeated; keyside status says since when",
    ),
    _Row(
        (StoreTampered, CustodyError),
        Code.FAILED_PRECONDITION,
        "STORE_REFUSED",
        "the key store holds something that does not authenticate, and is not used",
        "an operator should read the sidecar's log now",
    ),
    _Row(
        StoreError,
        Code.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "the key store is away",
        "the call may be repeated; keyside status says since when",
    ),
)


def describe_failure(error: Exception, what: str) -> Failure:
    """Return an error's failure; log it if it isn't one of ours.

    Args:
        error: What ended the call.
        what: The call's full name, for the log.
    """
    if isinstance(error, Described):
        return error.failure
    for row in _ROWS:
        if isinstance(error, row.kind):
            return row.describe(error)
    request_id = secrets.token_hex(8)
    # An exception's own text may quote a request (I7): the type and the frames are enough.
    frames = "".join(traceback.format_tb(error.__traceback__))
    event(
        _log,
        logging.ERROR,
        "unexpected error",
        type=type(error).__name__,
        method=what,
        request_id=request_id,
        frames=frames,
    )
    return Failure(
        Code.INTERNAL,
        "INTERNAL",
        f"the sidecar failed inside; request id {request_id}",
        "an operator finds the request id in the sidecar's log",
        request_id=request_id,
    )
