"""What is so outside the request itself, when something about it is decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyside_sidecar.errors import AccessFactsMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.requests import AccessRequest


@dataclass(frozen=True, slots=True)
class Facts:
    """What a decision is based on.

    Args:
        policy: The whole policy, as it is now.
        host: This host's name.
        gids_of: The groups of accounts as they are now; empty for an account that doesn't exist.
            For a decision, of everybody in :func:`uids_to_check`.
        locked_uids: The accounts that can't be logged in to now (locked, expired), as far as that
            was asked.
    """

    policy: Policy
    host: str
    gids_of: Mapping[int, frozenset[int]]
    locked_uids: frozenset[int] = frozenset()

    def is_host_of(self, request: AccessRequest) -> bool:
        """Return whether uids in the request mean this host's accounts."""
        elevation = self.policy.elevation
        return request.host == self.host or (elevation is not None and elevation.shared_ids)

    def require_gids(self, uid: int) -> frozenset[int]:
        """Return an account's groups.

        Raises:
            AccessFactsMissing: They weren't asked for.
        """
        if uid not in self.gids_of:
            raise AccessFactsMissing({uid})
        return self.gids_of[uid]


def uids_to_check(request: AccessRequest) -> frozenset[int]:
    """Return whose groups a decision about the request needs: requester and approvers."""
    approvers = (approval.person.uid for level in request.levels for approval in level.counting)
    return frozenset({request.requester.uid, *approvers})
