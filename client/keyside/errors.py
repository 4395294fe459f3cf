"""What can go wrong, as a caller of Keyside would want to tell it apart.

KeysideError
├── InvalidArgument           the request itself is wrong; says which field and limit
├── EnvelopeRejected          the envelope does not open; deliberately says no more
├── NotPermitted              policy refuses, or the key does not exist (they look alike)
│   ├── NotIdentified         the sidecar could not establish who is calling
│   └── AuthenticationFailed  the password was not accepted, or the account can't be used
├── VersionUnusable           the envelope's key version is disabled or destroyed
├── NoSuchVersion             the key has no version of that number
├── WrongVersionState         the version's state does not allow this change, or it is in use
├── NoSuchRequest             there is no access request of that id
├── AccessRefused             the access request, as it is now, does not allow this
├── NoSuchRecord              the audit log holds no such record
├── Conflict                  someone else changed the key first
├── LimitExceeded             too many calls or too large a message
├── Unavailable               the sidecar, its store or the name service is away; may be retried
│   └── DeadlineExceeded      no answer in time
├── UntrustedSocket           the socket is not owned by whom it should be; nothing was sent
├── MalformedRecord           a line is no record of an audit log, or no checkpoint; says why
├── UnexpectedAnswer          the sidecar failed inside, or answered what this client can't read
└── ClosedClient              the client was closed, or can't be used here: a fork, another loop

Every error has ``code`` (the gRPC status code's name, such as ``"UNAVAILABLE"``, or ``None`` where
the client itself refused before anything was sent), ``reason`` (a constant such as
``"NOT_ALLOWED"``), ``retryable`` and ``remedy`` (what to do, or ``""``). None ever holds a
plaintext, a key, an envelope, a password or a credential.
"""

from __future__ import annotations

from typing import ClassVar


class KeysideError(Exception):
    """Root of everything that this package raises on purpose.

    Args:
        message: One sentence for a person.
        reason: A constant for a program; the class's own unless given.
        remedy: What to do about it.
        request_id: Names the call in the sidecar's log, where the sidecar gave one.
    """

    code: str | None = None
    reason: str = "KEYSIDE_ERROR"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, reason: str = "", remedy: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message)
        if reason:
            self.reason = reason
        self.remedy = remedy
        self.request_id = request_id


class InvalidArgument(KeysideError):
    """The request is wrong in itself; the message names the field and its limit.

    ``violations`` holds (field, description) pairs where the sidecar named them, else nothing.
    """

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"
    violations: tuple[tuple[str, str], ...] = ()


class EnvelopeRejected(KeysideError):
    """The envelope does not open.

    Altered, cut short, extended, opened with another context, made by another store, or no
    envelope at all: these look alike on purpose (I11).
    """

    code = "INVALID_ARGUMENT"
    reason = "ENVELOPE_REJECTED"

    def __init__(
        self,
        message: str = "the envelope was not accepted",
        *,
        reason: str = "",
        remedy: str = "give the whole, unaltered envelope and the context it was made with",
        request_id: str = "",
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy, request_id=request_id)


class NotPermitted(KeysideError):
    """Policy refuses this caller, or there is no such key; the two look alike.

    To the holder of a grant, ``reason`` says more: ``GRANT_ENDED`` (expired, revoked or used up),
    ``GRANT_SCOPE`` (it does not cover this operation, version or context) or
    ``CREDENTIAL_REFUSED`` (the credential is no grant's of this caller).
    """

    code: str | None = "PERMISSION_DENIED"
    reason = "NOT_ALLOWED"


class NotIdentified(NotPermitted):
    """The sidecar could not establish who is calling."""

    code = "UNAUTHENTICATED"
    reason = "PEER_UNKNOWN"


class AuthenticationFailed(NotPermitted):
    """The caller could not prove to be the person that the account belongs to.

    ``reason`` is ``AUTHENTICATION_DENIED`` (the password is wrong), ``AUTHENTICATION_LIMITED`` (too
    many failures; the remedy says how long to wait), ``ACCOUNT_LOCKED``, ``ACCOUNT_EXPIRED`` or
    ``PASSWORD_EXPIRED``. Where the password could not be checked at all, the call raises
    ``Unavailable`` with reason ``AUTHENTICATION_UNAVAILABLE``.
    """

    code = "UNAUTHENTICATED"
    reason = "AUTHENTICATION_DENIED"


class VersionUnusable(KeysideError):
    """The envelope's key version is disabled (reversible) or destroyed."""

    code = "FAILED_PRECONDITION"
    reason = "VERSION_DISABLED"


class NoSuchVersion(KeysideError):
    """The key has no version of that number."""

    code = "NOT_FOUND"
    reason = "VERSION_NOT_FOUND"


class WrongVersionState(KeysideError):
    """The version is in a state that does not allow this change; the message names it.

    ``reason`` is ``VERSION_IN_USE`` for the current version (roll the key over first), and
    ``VERSION_STATE`` for anything else.
    """

    code = "FAILED_PRECONDITION"
    reason = "VERSION_STATE"


class NoSuchRequest(KeysideError):
    """There is no access request of that id."""

    code = "NOT_FOUND"
    reason = "ACCESS_NOT_FOUND"


class AccessRefused(KeysideError):
    """The access request, as it is now, does not allow this; the message says why.

    ``reason`` is a constant such as ``ACCESS_NOT_APPROVED``, ``ACCESS_DECIDED_ALREADY`` or
    ``ACCESS_ENDED``. What a request does not allow to this caller, such as a decision about their
    own (``ACCESS_OWN_REQUEST``), is ``NotPermitted``.
    """

    code = "FAILED_PRECONDITION"
    reason = "ACCESS_STATE"


class NoSuchRecord(KeysideError):
    """The audit log holds no such record."""

    code = "NOT_FOUND"
    reason = "RECORD_NOT_FOUND"


class Conflict(KeysideError):
    """The key was changed by someone else meanwhile; look again and decide again."""

    code = "ABORTED"
    reason = "ROTATION_CONFLICT"


class LimitExceeded(KeysideError):
    """Too many calls at once, or too large a message; the message states the limit."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"


class Unavailable(KeysideError):
    """The sidecar, its store or the name service is away; the same call may succeed later."""

    code = "UNAVAILABLE"
    reason = "SIDECAR_UNAVAILABLE"
    retryable = True


class DeadlineExceeded(Unavailable):
    """No answer came in time; the call may or may not have been carried out."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"
    retryable = False


class UntrustedSocket(KeysideError):
    """The socket or a directory above it could have been put there by someone else."""

    reason = "UNTRUSTED_SOCKET"


class MalformedRecord(KeysideError):
    """Something is no record of an audit log, no checkpoint or no public key of one."""

    reason = "MALFORMED_RECORD"


class UnexpectedAnswer(KeysideError):
    """The sidecar failed inside, or answered with something this client does not know."""

    code = "INTERNAL"
    reason = "INTERNAL"


class ClosedClient(KeysideError):
    """The client was closed, or can't be used after this fork or in this event loop."""

    reason = "CLIENT_CLOSED"
