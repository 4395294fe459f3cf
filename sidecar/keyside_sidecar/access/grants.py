"""Using a grant: whether it covers what its holder wants to do, item by item. Pure.

A use is decided upon the row as it is in the store at that moment, and is written in the same
transaction: no grant is used more often than it allows, or after it has ended, by however many
processes at once (I9).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from keyside_sidecar.access.boot_deadlines import add_deadline
from keyside_sidecar.access.elevation import end_for, review
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse_as
from keyside_sidecar.access.requests import (
    AccessOperation,
    AccessState,
    EndReason,
    VersionRange,
    merge_ranges,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyside_sidecar.access.facts import Facts
    from keyside_sidecar.access.requests import AccessItem, AccessRequest, Moment
    from keyside_sidecar.errors import AccessRefused
    from keyside_sidecar.peer.caller import Caller


@dataclass(frozen=True, slots=True)
class Usage:
    """What came of a use.

    Args:
        request: As it is now.
        verdicts: Of each item: None where it is allowed, and was counted.
    """

    request: AccessRequest
    verdicts: Sequence[AccessRefused | None]


def fits_credential(known: bytes | None, presented: bytes) -> bool:
    """Return whether a presented credential is a grant's own, by their hashes, in constant time."""
    return known is not None and hmac.compare_digest(known, presented)


def check_holder(request: AccessRequest, moment: Moment, facts: Facts, holder: Caller) -> None:
    """Check that the holder of the credential may use the grant now, for whatever it covers.

    Somebody else, or somebody on another host, is told nothing about the grant.

    Raises:
        AccessRefused: CREDENTIAL_REFUSED, GRANT_ENDED, or why policy refuses the holder.
    """
    if not facts.is_host_of(request) or holder.uid != request.requester.uid:
        raise refuse_as(Reason.CREDENTIAL_REFUSED)
    if holder.borrowed is not None:
        raise refuse_as(holder.borrowed)
    if request.state is not AccessState.ACTIVE:
        raise refuse_as(Reason.GRANT_ENDED, detail=request.end_reason or "")
    now = replace(facts, gids_of={**facts.gids_of, holder.uid: holder.gids})
    looked = review(request, moment, now)
    if not looked.lives:
        raise refuse_as(Reason.GRANT_ENDED, detail=looked.end_reason or "", after=looked)
    refusal = facts.policy.decide(holder, Operation.USE_ACCESS, request.key)
    if refusal is not None:
        raise refuse_as(refusal)


def use(
    request: AccessRequest,
    moment: Moment,
    facts: Facts,
    holder: Caller,
    items: Sequence[AccessItem],
) -> Usage:
    """Return the grant with one use counted for each item that it covers.

    Each item is judged by itself: one that isn't covered spoils no other. The last use that the
    grant allows ends it; items after that are refused.

    Args:
        request: The one whose credential was presented.
        moment: When.
        facts: As they are.
        holder: Who presented it.
        items: What they want to do.

    Raises:
        AccessRefused: Nothing may be done: as for :func:`check_holder`.
    """
    check_holder(request, moment, facts, holder)
    verdicts: list[AccessRefused | None] = []
    left, opened = request.uses_left, set(request.opened)
    for item in items:
        verdict = check_item(request, item)
        if verdict is None and left == 0:
            verdict = refuse_as(Reason.GRANT_ENDED, detail=EndReason.SPENT)
        if verdict is None:
            left -= 1
            if item.operation is not AccessOperation.ENCRYPT:
                opened.add(VersionRange(item.version, item.version))
        verdicts.append(verdict)
    count = verdicts.count(None)
    if count == 0:
        return Usage(request, tuple(verdicts))
    lasting = add_deadline(request, moment, facts.host)
    if lasting is None:
        ended = end_for(request, moment, EndReason.EXPIRED, "it was used in too many places")
        raise refuse_as(Reason.GRANT_ENDED, detail=EndReason.EXPIRED, after=ended)
    used = replace(lasting, used=request.used + count, opened=merge_ranges(opened))
    if used.uses_left == 0:
        used = end_for(used, moment, EndReason.SPENT)
    return Usage(used, tuple(verdicts))


def judge(
    request: AccessRequest,
    moment: Moment,
    facts: Facts,
    holder: Caller,
    items: Sequence[AccessItem],
) -> Sequence[AccessRefused | None]:
    """Return why the grant doesn't cover items, or None for each that it does; counts no use.

    Args:
        request: The one whose credential was presented.
        moment: When.
        facts: As they are.
        holder: Who presented it.
        items: What they want to do. How many of them the grant has uses left for shows only when
            those that came to something are counted.

    Raises:
        AccessRefused: Nothing may be done: as for :func:`check_holder`.
    """
    check_holder(request, moment, facts, holder)
    return tuple(check_item(request, item) for item in items)


def check_item(request: AccessRequest, item: AccessItem) -> AccessRefused | None:
    """Return why the grant doesn't cover an item, or None where it does."""
    covered = (
        item.key == request.key
        and item.operation in request.operations
        and (not request.versions or any(one.includes(item.version) for one in request.versions))
        and _covers_context(request, item)
    )
    return None if covered else refuse_as(Reason.GRANT_SCOPE)


def _covers_context(request: AccessRequest, item: AccessItem) -> bool:
    """Whether the pairs of the grant are among the envelope's; none are among an unknown one."""
    if item.context is None:
        return not request.context
    return all(item.context.get(name) == value for name, value in request.context.items())
