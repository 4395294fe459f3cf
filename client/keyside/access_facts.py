"""What the sidecar tells about access requests, grants and audit records: plain, frozen values."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyside.errors import UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from keyside.credential import Credential
    from keyside.errors import KeysideError


class AccessOperation(enum.Enum):
    """What a person may be allowed to do. Data keys are never granted."""

    UNKNOWN = "UNKNOWN"
    """An operation that this client is too old to know."""
    DECRYPT = "DECRYPT"
    REWRAP = "REWRAP"
    ENCRYPT = "ENCRYPT"


class AccessState(enum.Enum):
    """How far an access request has come."""

    UNKNOWN = "UNKNOWN"
    """A state that this client is too old to know."""
    PENDING = "PENDING"
    """Approvals are missing."""
    APPROVED = "APPROVED"
    """Every level has approved it; its requester may activate it."""
    ACTIVE = "ACTIVE"
    """A grant: its credential is served."""
    CLOSING = "CLOSING"
    """Over, and served no longer; what it opened is still to be rolled over."""
    ENDED = "ENDED"
    """Over; never changes again."""


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions ``first`` to ``last`` of a key, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Person:
    """The account that acted; ``account`` is its name then, ``""`` where it had none."""

    uid: int
    account: str


@dataclass(frozen=True, slots=True)
class AccessApproval:
    """One approval.

    Args:
        person: Who gave it.
        decided_at: When, in UTC.
        comment: What they wrote, or ``""``.
        struck: Why it counts no longer, such as ``"LEFT_GROUP"``; ``""`` while it counts.
    """

    person: Person
    decided_at: datetime | None
    comment: str
    struck: str


@dataclass(frozen=True, slots=True)
class AccessLevel:
    """One level of approval.

    Args:
        group: Whose members approve.
        approvals_needed: By how many different people; 1 or more.
        approvals: In the order in which they were given, the struck ones too.
    """

    group: str
    approvals_needed: int
    approvals: tuple[AccessApproval, ...]

    @property
    def approvals_given(self) -> int:
        """How many of the approvals count."""
        return sum(1 for approval in self.approvals if not approval.struck)

    @property
    def is_complete(self) -> bool:
        """Whether this level needs no more approvals."""
        return self.approvals_given >= self.approvals_needed


class AccessAction(enum.Enum):
    """What somebody may do about a request."""

    UNKNOWN = "UNKNOWN"
    """One that this client is too old to know."""
    APPROVE = "APPROVE"
    DENY = "DENY"
    CANCEL = "CANCEL"
    ACTIVATE = "ACTIVATE"
    REVOKE = "REVOKE"


@dataclass(frozen=True, slots=True)
class AccessProspect:
    """Whether this caller may do one thing about a request, as the sidecar would decide it now.

    Args:
        action: What.
        refused: What the call would raise; ``None`` where they may.
    """

    action: AccessAction
    refused: KeysideError | None


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """One person's request for access to one key, and the grant that it may have become.

    Args:
        id: "ar-" and 12 characters.
        key: The key's name.
        requester: Who asks.
        host: Where it was made.
        reason: Why, in the requester's words.
        ticket: Where it is asked for elsewhere, or ``""``.
        operations: What is asked.
        versions: Only these; empty for any.
        context: Pairs that an envelope's context must contain; empty for any.
        max_uses: How many envelopes; ``None`` for any number.
        duration: How long the grant lasts once it is activated.
        state: How far it has come.
        created_at: When it was made, in UTC.
        decide_by: When it ends unless every level has approved it.
        approved_at: When the last level did; ``None`` before.
        activate_by: When it ends unless it is activated; ``None`` before it is approved.
        activated_at: When it was activated; ``None`` before.
        expires_at: When the grant ends at the latest; ``None`` before it is activated.
        ended_at: When it ended; ``None`` before.
        end_reason: Why it ended, such as ``"REVOKED"``; ``""`` before.
        ended_by: Who ended it; ``None`` where it ended by itself, or has not.
        end_comment: What they wrote, or ``""``.
        levels: In the order in which they approve.
        used: Uses so far.
        prospects: What this caller may do about it, in what ``list_access`` and ``get_access``
            return; empty elsewhere, and from a sidecar that is too old to say.
    """

    id: str
    key: str
    requester: Person
    host: str
    reason: str
    ticket: str
    operations: tuple[AccessOperation, ...]
    versions: tuple[VersionRange, ...]
    context: Mapping[str, str]
    max_uses: int | None
    duration: timedelta
    state: AccessState
    created_at: datetime | None
    decide_by: datetime | None
    approved_at: datetime | None
    activate_by: datetime | None
    activated_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
    end_reason: str
    ended_by: Person | None
    end_comment: str
    levels: tuple[AccessLevel, ...]
    used: int
    prospects: tuple[AccessProspect, ...] = ()

    @property
    def waiting_level(self) -> AccessLevel | None:
        """The level whose approval is missing; ``None`` where none is."""
        if self.state is not AccessState.PENDING:
            return None
        return next((level for level in self.levels if not level.is_complete), None)

    @property
    def is_your_turn(self) -> bool | None:
        """Whether it waits for this caller; ``None`` where the sidecar did not say."""
        if self.is_over or self.state is AccessState.ACTIVE:
            return False
        asked = {AccessAction.APPROVE, AccessAction.ACTIVATE}
        told = [one for one in self.prospects if one.action in asked]
        return any(one.refused is None for one in told) if told else None

    def find_prospect(self, action: AccessAction) -> AccessProspect | None:
        """Return whether this caller may do something; ``None`` where the sidecar did not say."""
        return next((one for one in self.prospects if one.action is action), None)

    @property
    def is_over(self) -> bool:
        """Whether it is served no longer and never will be."""
        return self.state in {AccessState.CLOSING, AccessState.ENDED}


@dataclass(frozen=True, slots=True)
class AccessUse:
    """One use of a grant.

    Args:
        used_at: When, in UTC.
        operation: What was done.
        key: With which key.
        version: With which of its versions.
        envelope_sha256: The envelope's digest in hexadecimal; ``""`` where there was none.
        context: The envelope's context, as it was given.
    """

    used_at: datetime | None
    operation: AccessOperation
    key: str
    version: int
    envelope_sha256: str
    context: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AccessStory:
    """A request and, oldest first, what was opened under the grant that it became."""

    request: AccessRequest
    uses: tuple[AccessUse, ...]


@dataclass(frozen=True, slots=True)
class ActivatedAccess:
    """A grant and its credential, which the sidecar does not tell again.

    Prints without the credential; can't be pickled or copied.
    """

    request: AccessRequest
    credential: Credential


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record of this host's audit log.

    Args:
        sequence: Its place in the log.
        json: The log's line, byte for byte, without its end; see docs/audit.md.

    Raises:
        UnexpectedAnswer: The line is no JSON object.
    """

    sequence: int
    json: str
    fields: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    """The line as it reads: ``fields["event"]``, ``fields["caller"]["uid"]`` and so on."""

    def __post_init__(self) -> None:
        try:
            fields = json.loads(self.json)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise UnexpectedAnswer(
                f"record {self.sequence} of the audit log is no JSON object",
                reason="RECORD_UNREADABLE",
                remedy="verify the log: keyside audit verify FILE",
            )
        object.__setattr__(self, "fields", fields)
