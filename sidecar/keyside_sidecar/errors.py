"""What can go wrong inside the sidecar.

SidecarError
├── ConfigError               the configuration file is wrong; holds every problem found
├── StartupError              the sidecar or a command can't start; says why and what to do
├── Refused                   access control says no; holds a Reason (access/reasons.py)
├── AccessRefused             a request for access, or a grant, does not allow what is asked
├── AccessFactsMissing        it can't be decided yet: the groups of some accounts are wanted
├── RequestError
│   ├── BadRequest            a field of a request is wrong; holds field and description
│   ├── MessageTooLarge       a request is longer than its call takes; holds both lengths
│   ├── UnknownVersion        no such version of the key; becomes the uniform envelope error
│   ├── VersionDisabled       disabled or destroyed; holds key, number, state
│   ├── RotationConflict      the current version is no longer the expected one
│   ├── NoSuchVersion         an operator named a version that the key does not have
│   ├── VersionInUse          an operator would take away the version that encrypts
│   ├── WrongState            the version's state does not allow what an operator asks
│   └── AuthenticationFailed  a person did not prove who they are; says what stood in the way
├── StoreError
│   ├── StoreUnavailable      the database can't be reached or is locked for too long
│   │   └── StoreContended    another process changed the store at the same time
│   ├── StoreTampered         a row's MAC or the store's digest does not fit (I6)
│   └── StoreSchemaError      the schema is older or newer than this program
├── AuditUnavailable          it can't be recorded, so it isn't done or isn't answered (I8)
├── CheckpointNotFound        the audit log has no checkpoint yet
└── CustodyError              the root key is missing, unsafe, or does not unwrap
    └── CustodianUnavailable  the custodian can't be reached

Leaves carry data (key, version), never secrets. What each means to a caller is in
``services/failures.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from keyside_sidecar.access.reasons import Reason
    from keyside_sidecar.access.requests import AccessRequest

RefusalKind = Literal["permission", "precondition", "not_found", "invalid"]


class SidecarError(Exception):
    """Root of everything that the sidecar raises on purpose."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in the configuration: where, what, and what would be right."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(SidecarError):
    """The configuration is wrong; ``problems`` holds all of them."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class StartupError(SidecarError):
    """The sidecar can't start, or an administrative command can't run.

    Args:
        message: What is wrong.
        remedy: What to do about it.
        exit_code: The sysexits(3) code that the command ends with.
    """

    def __init__(self, message: str, *, remedy: str = "", exit_code: int = 78) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.exit_code = exit_code


class Refused(SidecarError):
    """Access control refuses the call."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class AccessRefused(SidecarError):
    """A request for access, or the grant that came of it, does not allow what is asked.

    Args:
        reason: A constant, such as ``"ACCESS_OWN_REQUEST"``.
        text: What whoever asked is told.
        remedy: What to do about it.
        kind: What sort of refusal it is.
        after: The request as looking at it has left it, where that changed it: its time was over,
            say. The store holds that, although what was asked is refused.
    """

    def __init__(
        self,
        reason: str,
        text: str,
        remedy: str,
        kind: RefusalKind = "precondition",
        *,
        after: AccessRequest | None = None,
    ) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text
        self.remedy = remedy
        self.kind: RefusalKind = kind
        self.after = after


class AccessFactsMissing(SidecarError):
    """The request has changed: look at it again, with the groups of these accounts, too."""

    def __init__(self, uids: Iterable[int]) -> None:
        super().__init__("the request changed meanwhile")
        self.uids = frozenset(uids)


class RequestError(SidecarError):
    """The request can't be served as it is."""


class BadRequest(RequestError):
    """A field of the request is wrong."""

    def __init__(self, field: str, description: str, *, reason: str = "INVALID_ARGUMENT") -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description
        self.reason = reason


class MessageTooLarge(RequestError):
    """The request's message is longer than this call takes.

    Args:
        size_bytes: How long it is.
        limit_bytes: How long it may be.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the message has {size_bytes} bytes; this call takes {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class UnknownVersion(RequestError):
    """The key has no version of that number and id."""

    def __init__(self, key: str, number: int) -> None:
        super().__init__(f"{key} has no such version {number}")
        self.key = key
        self.number = number


class VersionDisabled(RequestError):
    """The version is disabled or destroyed.

    Args:
        key: The key's name.
        number: The version's number.
        state: ``"DISABLED"`` or ``"DESTROYED"``.
    """

    def __init__(self, key: str, number: int, state: str) -> None:
        super().__init__(f"version {number} of {key} is {state.lower()}")
        self.key = key
        self.number = number
        self.state = state
        self.remedy = "an operator can enable it again" if state == "DISABLED" else ""


class RotationConflict(RequestError):
    """The key's current version is not the one that the request expected."""

    def __init__(self, key: str, expected: int, current: int) -> None:
        super().__init__(f"the current version of {key} is {current}, not {expected}")
        self.key = key
        self.expected = expected
        self.current = current


class NoSuchVersion(RequestError):
    """The key has no version of that number."""

    def __init__(self, key: str, number: int) -> None:
        super().__init__(f"{key} has no version {number}")
        self.key = key
        self.number = number


class VersionInUse(RequestError):
    """The version is the key's current one."""

    def __init__(self, key: str, number: int) -> None:
        super().__init__(f"version {number} of {key} is the current one")
        self.key = key
        self.number = number


class WrongState(RequestError):
    """The version is in a state that does not allow what is asked.

    Args:
        key: The key's name.
        number: The version's number.
        state: Its state.
        problem: What is in the way, to follow "version 3 of KEY ".
        remedy: What to do about it.
    """

    def __init__(self, key: str, number: int, state: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"version {number} of {key} {problem}")
        self.key = key
        self.number = number
        self.state = state
        self.remedy = remedy


class AuthenticationFailed(RequestError):
    """A person's password was not accepted, or their account is not in good standing.

    Args:
        outcome: ``"denied"``, ``"locked"``, ``"expired"``, ``"password_expired"``,
            ``"unknown_account"``, ``"limited"`` (too many failures), ``"busy"`` or
            ``"unavailable"`` (PAM hangs, crashes or may not do its work).
        retry_s: With ``"limited"`` and ``"busy"``, in how many seconds it may be tried again.
    """

    def __init__(self, outcome: str, retry_s: float = 0.0) -> None:
        self.reason, text, self.remedy = _AUTHENTICATION[outcome]
        super().__init__(text)
        self.outcome = outcome
        self.retry_s = retry_s
        if retry_s:
            self.remedy = f"wait {math.ceil(retry_s)} s, then try again"

    @property
    def is_away(self) -> bool:
        """Whether nobody has looked at the password: PAM does not work now."""
        return self.outcome == "unavailable"


_ASK: Final = "ask the host's administrator"
# By outcome: a constant for programs, what the person is told, and what to do about it.
_AUTHENTICATION: Final = {
    "denied": (
        "AUTHENTICATION_DENIED",
        "the password is not accepted",
        "try again with your account's password",
    ),
    "locked": ("ACCOUNT_LOCKED", "your account is locked", _ASK),
    "expired": ("ACCOUNT_EXPIRED", "your account has expired", _ASK),
    "password_expired": (
        "PASSWORD_EXPIRED",
        "your password has expired",
        "change it with passwd, then try again",
    ),
    "unknown_account": ("AUTHENTICATION_DENIED", "your uid has no account on this host", _ASK),
    "limited": (
        "AUTHENTICATION_LIMITED",
        "too many failures: authentication is refused for a while",
        "wait, then try again",
    ),
    "busy": (
        "AUTHENTICATION_LIMITED",
        "too many authentications are under way",
        "wait a moment, then try again",
    ),
    "unavailable": (
        "AUTHENTICATION_UNAVAILABLE",
        "authentication does not work now",
        "ask the host's administrator: the sidecar's log says why",
    ),
}


# Two steps, because a restore never overwrites a store.
RESTORE_STORE: Final = (
    "move the store away, keep it, and make it anew from its newest backup with keysided restore "
    "FILE"
)


class StoreError(SidecarError):
    """Something about the store; ``remedy`` says what to do about it."""

    remedy: str = ""


class StoreUnavailable(StoreError):
    """The store can't be reached now; what is in memory goes on being served."""

    remedy = (
        "see that the store's file or server is there and lets the sidecar's account in; it is "
        "tried again by itself"
    )

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        if remedy:
            self.remedy = remedy


class StoreContended(StoreUnavailable):
    """Another process changed the store at the same time; nothing was changed."""


class StoreTampered(StoreError):
    """A row was changed by someone without the root key, removed, or put back from the past."""

    remedy = f"find out who could write to the store; then {RESTORE_STORE}"

    def __init__(self, place: str) -> None:
        super().__init__(f"the store's {place} does not carry a valid authentication code")
        self.place = place


class StoreSchemaError(StoreError):
    """The store's schema is not the one that this program knows."""

    remedy = "do what this names; where it is no store of Keyside's, correct url in [store]"


class AuditUnavailable(SidecarError):
    """The audit log does not take records now (I8).

    Args:
        done: What was asked took effect all the same; only its answer is withheld.
    """

    def __init__(self, *, done: bool = False) -> None:
        super().__init__(
            "the audit log can't be written to now: what you asked for may have been done all the "
            "same, and is not answered"
            if done
            else "the audit log can't be written to now, and nothing is done unrecorded"
        )
        self.done = done


class CheckpointNotFound(SidecarError):
    """The audit log has no checkpoint yet."""


class CustodyError(SidecarError):
    """The root key can't be used."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class CustodianUnavailable(CustodyError):
    """The root key's custodian can't be reached now."""


REFUSALS: Final = (Refused, AccessRefused, AuthenticationFailed)
"""What callers are told who may not do what they ask: recorded as refused, and not as failed."""
