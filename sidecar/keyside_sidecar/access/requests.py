"""A person's request for access, and the grant that may come of it: one record for its whole life.

Plain facts. What leads from one to the next is the machine's (elevation.py, grants.py). All times
are microseconds, since 1970 or, where a name says so, of the store's observed time, which nobody
can set (store/observed.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyside.names import KeyName
    from keyside_sidecar.clock import BootTime
    from keyside_sidecar.peer.caller import Caller

AccessId = NewType("AccessId", str)

# Where a request sets no limit of its own, uses end here: each is a row in the store.
MOST_USES: Final = 1_000_000
# So many approvals one request holds, those that were struck among them.
MOST_APPROVALS: Final = 200


class AccessState(enum.StrEnum):
    """Where a request is in its life; elevation.py draws what leads where."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    ACTIVE = "ACTIVE"
    CLOSING = "CLOSING"
    ENDED = "ENDED"


class AccessOperation(enum.StrEnum):
    """What a grant can allow. Data keys are never granted, and so re-encryption is not either."""

    DECRYPT = "DECRYPT"
    REWRAP = "REWRAP"
    ENCRYPT = "ENCRYPT"


class EndReason(enum.StrEnum):
    """Why a request, or a grant, is over."""

    DENIED = "DENIED"
    CANCELLED = "CANCELLED"
    REVOKED = "REVOKED"
    EXPIRED = "EXPIRED"
    SPENT = "SPENT"
    NOT_DECIDED = "NOT_DECIDED"
    NOT_ACTIVATED = "NOT_ACTIVATED"
    POLICY_CHANGED = "POLICY_CHANGED"
    ACCOUNT_LOCKED = "ACCOUNT_LOCKED"
    LEFT_GROUP = "LEFT_GROUP"
    STORE_ROLLED_BACK = "STORE_ROLLED_BACK"


@dataclass(frozen=True, slots=True)
class Moment:
    """When something is decided.

    Args:
        now_us: By the clock that all users of the store share.
        observed_us: The store's observed time.
        up: How long the host that decides has been up.
    """

    now_us: int
    observed_us: int
    up: BootTime


@dataclass(frozen=True, slots=True)
class BootDeadline:
    """A deadline by a clock that nobody can set; it means something in one boot of one host.

    Args:
        host: Which host.
        boot: Which boot of it (``BootTime.boot``).
        begun_us: How long that boot had lasted when this was written.
        due_us: When that boot has lasted so long, it has passed.
    """

    host: str
    boot: str
    begun_us: int
    due_us: int


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody's account; ``account`` is ``""`` where the uid has no name."""

    uid: int
    account: str

    @classmethod
    def of(cls, caller: Caller) -> Person:
        """Return a caller's account, as it is recorded."""
        return cls(caller.uid, caller.account)


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The versions from ``first`` to ``last``, both included."""

    first: int
    last: int

    def includes(self, number: int) -> bool:
        """Return whether a version is one of these."""
        return self.first <= number <= self.last


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's yes.

    Args:
        person: Whose.
        decided_us: When.
        comment: What they said to it.
        struck: Why it no longer counts; ``""`` while it does.
    """

    person: Person
    decided_us: int
    comment: str = ""
    struck: str = ""


@dataclass(frozen=True, slots=True)
class AccessLevel:
    """One level of approval, as it was when access was asked for.

    Args:
        group: The group that decides, by the configuration's name.
        gid: Its number.
        approvals_needed: So many different people must approve.
        approvals: What they said, in order, those that were struck among them.
    """

    group: str
    gid: int
    approvals_needed: int
    approvals: tuple[Approval, ...] = ()

    @property
    def counting(self) -> tuple[Approval, ...]:
        """The approvals that count."""
        return tuple(approval for approval in self.approvals if not approval.struck)

    @property
    def missing(self) -> int:
        """How many approvals it still lacks."""
        return max(0, self.approvals_needed - len(self.counting))


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """A request, from being made to the end of the grant.

    Args:
        id: Names it.
        key: The one key that it is for.
        requester: Who asked, and who alone can use the grant.
        host: Where it was made, and where it belongs unless uids are shared.
        reason: Why, in the requester's words.
        ticket: A reference to somewhere else; may be ``""``.
        operations: What it allows.
        versions: Of which versions; empty for all.
        context: Pairs that an envelope's context must contain.
        max_uses: How often; 0 for no limit of its own (then ``MOST_USES``).
        duration_us: How long a grant lasts from its activation.
        policy_digest: What policy said when it was made (policy_digest.py).
        rollover: What it opened is rolled over when the grant ends.
        state: Where it is in its life.
        created_us: When it was made.
        decide_by_us: While PENDING, when it expires.
        deadline_observed_us: The deadline of the state it is in, in observed time as well: PENDING,
            APPROVED or ACTIVE.
        levels: The levels of approval, in order.
        boot_deadlines: The same deadline once more, for each boot in which it was begun, looked
            after or used (boot_deadlines.py).
        approved_us: When the last level approved.
        activate_by_us: While APPROVED, when it expires.
        activated_us: When the grant began.
        expires_us: When it expires.
        credential_hash: Of the grant's temporary credential.
        used: How often it was used.
        opened: The versions under which it opened envelopes.
        ended_us: When it was over; in CLOSING already.
        end_reason: Why.
        ended_by: By whom; None where nobody did it.
        end_comment: What they, or Keyside, said to it.
        ended_number: Counts the requests that have ended; the store gives it, in ENDED.
    """

    id: AccessId
    key: KeyName
    requester: Person
    host: str
    reason: str
    ticket: str
    operations: tuple[AccessOperation, ...]
    versions: tuple[VersionRange, ...]
    context: Mapping[str, str]
    max_uses: int
    duration_us: int
    policy_digest: bytes
    rollover: bool
    state: AccessState
    created_us: int
    decide_by_us: int
    deadline_observed_us: int
    levels: tuple[AccessLevel, ...]
    boot_deadlines: tuple[BootDeadline, ...] = ()
    approved_us: int | None = None
    activate_by_us: int | None = None
    activated_us: int | None = None
    expires_us: int | None = None
    credential_hash: bytes | None = field(default=None, repr=False)
    used: int = 0
    opened: tuple[VersionRange, ...] = ()
    ended_us: int | None = None
    end_reason: EndReason | None = None
    ended_by: Person | None = None
    end_comment: str = ""
    ended_number: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether something can still come of it, a rollover at least."""
        return self.state is not AccessState.ENDED

    @property
    def lives(self) -> bool:
        """Whether it is a request that can be granted, or a grant that can be used."""
        return self.state in {AccessState.PENDING, AccessState.APPROVED, AccessState.ACTIVE}

    @property
    def current_level(self) -> int | None:
        """The first level that lacks approvals, counted from 0; None where none does."""
        lacking = (index for index, level in enumerate(self.levels) if level.missing)
        return next(lacking, None)

    @property
    def uses_left(self) -> int:
        """How often it may still be used."""
        return max(0, (self.max_uses or MOST_USES) - self.used)


@dataclass(frozen=True, slots=True)
class AccessWish:
    """What a person asks for: as in ``AccessRequest``, before anything is made of it."""

    key: KeyName
    reason: str
    duration_us: int
    operations: tuple[AccessOperation, ...] = (AccessOperation.DECRYPT,)
    ticket: str = ""
    versions: tuple[VersionRange, ...] = ()
    context: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    max_uses: int = 0


@dataclass(frozen=True, slots=True)
class AccessItem:
    """What a holder wants to do with one envelope.

    Args:
        operation: What.
        key: The key that the envelope names.
        version: The version that it names; for encryption, the current one.
        context: The envelope's; None where it is not known (rewrapping needs none).
        envelope_sha256: Digest of the envelope, 32 bytes.
    """

    operation: AccessOperation
    key: str
    version: int
    context: Mapping[str, str] | None
    envelope_sha256: bytes


def merge_ranges(ranges: Iterable[VersionRange]) -> tuple[VersionRange, ...]:
    """Return ranges of the same versions, ascending and apart from one another."""
    merged: list[VersionRange] = []
    for following in sorted(ranges, key=lambda one: one.first):
        if merged and merged[-1].last + 1 >= following.first:
            last = max(merged[-1].last, following.last)
            merged[-1] = VersionRange(merged[-1].first, last)
        else:
            merged.append(following)
    return tuple(merged)
