"""Who may ask for access, who decides, and within which limits: ``[elevation]``, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PersonId = int | str
"""Names a person: the name in ``[people]``, or the uid of an account that isn't listed there."""


@dataclass(frozen=True, slots=True)
class PolicyLevel:
    """One level of approval.

    Args:
        gid: Members of this group decide.
        group: The group as the configuration names it.
        approvals: So many different people must approve, at least 1.
    """

    gid: int
    group: str
    approvals: int


@dataclass(frozen=True, slots=True)
class ElevationPolicy:
    """What the configuration says about people's access.

    Args:
        requester_gids: Members of one of these groups may ask.
        levels: In order; at least one.
        people: The person that an account belongs to, of those in ``[people]``.
        max_duration_us: The longest grant, in microseconds.
        request_ttl_us: How long a request waits to be decided, and then to be activated, in
            microseconds.
        max_open_requests: How many requests and grants one person may have at once.
        shared_ids: Uids mean the same people on every host of the store.
        rollover_after_grant: A key that a grant has opened is rolled over when the grant ends.
        digests: Of each key: what a request for it is bound to (policy_digest.py), 32 bytes.
    """

    requester_gids: frozenset[int]
    levels: tuple[PolicyLevel, ...]
    people: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    max_duration_us: int = 4 * 3600 * 1_000_000
    request_ttl_us: int = 24 * 3600 * 1_000_000
    max_open_requests: int = 8
    shared_ids: bool = False
    rollover_after_grant: bool = False
    digests: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def level_gids(self) -> frozenset[int]:
        """The groups that decide, at any level."""
        return frozenset(level.gid for level in self.levels)

    def person_of(self, uid: int) -> PersonId:
        """Return the person whose account this is; two accounts of one give the same."""
        return self.people.get(uid, uid)
