"""The life of a request for access: who may do what to it, and when. Pure.

::

            approve (not the last)          approve (the last one that is missing)
               ┌─────┐                                  │
               │     ▼                                  ▼                 activate
    make ───► PENDING ───────────────────────────► APPROVED ────────────────────► ACTIVE ──┐ use
                │  ▲                                 │  │                          │  ▲    │
                │  └── activate, an approver is gone ┘  │                          │  └────┘
                │                                       │                          │
                │ NOT_DECIDED, CANCELLED, DENIED        │ NOT_ACTIVATED, CANCELLED,│ EXPIRED,
                │                                       │ DENIED                   │ SPENT
                │      and any of them: REVOKED, POLICY_CHANGED, LEFT_GROUP, ACCOUNT_LOCKED,
                │                       STORE_ROLLED_BACK  │                       │
                ▼                                          ▼                       ▼
              ENDED ◄──────────────────────────────────────┴──── finish ──── CLOSING (what was
                                                             rollover        opened is rolled over)

* Levels are in order: the first that lacks an approval is asked, no other. One person counts once,
  at whatever level; whoever asked counts nowhere, nor do their other accounts. Somebody's approval
  counts for as long as they are in the group that they gave it for and their account is in order,
  until the grant begins: it is looked at again with every approval and at activation, and struck
  (kept, with the reason) otherwise. Then the request is PENDING at that level again.
* An approver of *any* level may deny, before their turn and after it, until the grant begins: who
  knows already that it must not be needn't wait for others to say yes. From then on it is revoked.
* A deadline has passed when any of three clocks says so: the store's wall clock, which can be set;
  the time since this host was started, which can't (boot_deadlines.py); the store's observed time,
  which counts on all hosts. Observed time moves in steps, the next of which may count what went by
  before the request began; so its deadline is so much later. A grant ends too where the clock is
  earlier than its beginning, and where its host was started anew. Nothing is ever renewed.
* What looks at a request ends it, if time, policy, the requester's groups or account say so by
  then; the refusal carries the request as it is afterwards (``AccessRefused.after``).
* Uids mean somebody on one host. A request is decided, activated, used and cancelled on the host
  where it was made, unless uids are shared. Approvers and operators of any host may revoke, since
  that only takes away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.boot_deadlines import (
    add_deadline,
    begin_deadline,
    deadline_of,
    has_passed,
    was_restarted,
)
from keyside_sidecar.access.policy import Operation, Subject
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse, refuse_as, refuse_ended
from keyside_sidecar.access.requests import (
    MOST_APPROVALS,
    AccessLevel,
    AccessRequest,
    AccessState,
    Approval,
    EndReason,
    Person,
    merge_ranges,
)
from keyside_sidecar.access.wish import check_text, check_wish, order_operations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyside_sidecar.access.elevation_policy import ElevationPolicy
    from keyside_sidecar.access.facts import Facts
    from keyside_sidecar.access.requests import AccessId, AccessWish, Moment
    from keyside_sidecar.peer.caller import Caller

# In the whole store: every use of a grant checks all of them.
MOST_OPEN: Final = 1000
# The longest step of observed time (keys/caretaker.py): three ticks of ten seconds.
OBSERVED_STEP_US: Final = 30 * 1_000_000


def make_request(  # noqa: PLR0917  (as every decision takes them, and two more)
    wish: AccessWish,
    requester: Caller,
    facts: Facts,
    moment: Moment,
    access_id: AccessId,
    open_requests: Sequence[AccessRequest],
) -> AccessRequest:
    """Return a new request.

    Args:
        wish: What is asked for.
        requester: Who asks.
        facts: As they are.
        moment: When.
        access_id: Its name.
        open_requests: All that have not ended.

    Raises:
        AccessRefused: Whoever asks may not, or has too many requests.
        BadRequest: The wish can't be granted as it is.
    """
    _require_allowed(facts, requester, Operation.REQUEST_ACCESS, wish.key)
    elevation = _require_elevation(facts)
    check_wish(wish, elevation)
    if len(open_requests) >= MOST_OPEN:
        raise refuse("ACCESS_BOOK_FULL")
    person = elevation.person_of(requester.uid)
    own = [
        known
        for known in open_requests
        if known.lives
        and facts.is_host_of(known)
        and elevation.person_of(known.requester.uid) == person
    ]
    if len(own) >= elevation.max_open_requests:
        raise refuse("ACCESS_TOO_MANY_OPEN")
    return AccessRequest(
        id=access_id,
        key=wish.key,
        requester=Person.of(requester),
        host=facts.host,
        reason=wish.reason,
        ticket=wish.ticket,
        operations=order_operations(wish.operations),
        versions=merge_ranges(wish.versions),
        context=dict(sorted(wish.context.items())),
        max_uses=wish.max_uses,
        duration_us=wish.duration_us,
        policy_digest=elevation.digests[wish.key],
        rollover=elevation.rollover_after_grant,
        state=AccessState.PENDING,
        created_us=moment.now_us,
        decide_by_us=moment.now_us + elevation.request_ttl_us,
        deadline_observed_us=moment.observed_us + elevation.request_ttl_us + OBSERVED_STEP_US,
        levels=tuple(
            AccessLevel(level.group, level.gid, level.approvals) for level in elevation.levels
        ),
        boot_deadlines=begin_deadline(moment, facts.host, elevation.request_ttl_us),
    )


def approve(
    request: AccessRequest, moment: Moment, facts: Facts, approver: Caller, comment: str = ""
) -> AccessRequest:
    """Return the request with one more approval; APPROVED if that was the last one missing.

    Raises:
        AccessRefused: This person, or anybody, can't approve it now.
        AccessFactsMissing: The groups of the requester or of an approver are wanted.
        BadRequest: The comment is no text that can be kept.
    """
    _require_allowed(facts, approver, Operation.DECIDE_ACCESS)
    check_text("comment", comment)
    elevation = _require_elevation(facts)
    _require_here(request, facts)
    facts.require_gids(request.requester.uid)
    _look(request, moment, facts)
    if request.state is AccessState.ACTIVE:
        raise refuse("ACCESS_ACTIVE")
    kept = _strike(request, facts)
    after = None if kept is request else kept
    index = kept.current_level
    if index is None:
        raise refuse("ACCESS_NOT_PENDING")
    person = elevation.person_of(approver.uid)
    if person == elevation.person_of(request.requester.uid):
        raise refuse("ACCESS_OWN_REQUEST", after=after)
    counting = [approval for level in kept.levels for approval in level.counting]
    if any(elevation.person_of(approval.person.uid) == person for approval in counting):
        raise refuse("ACCESS_DECIDED_ALREADY", after=after)
    level = kept.levels[index]
    if level.gid not in approver.gids:
        raise refuse("ACCESS_NOT_YOUR_LEVEL", after=after)
    if sum(len(level.approvals) for level in kept.levels) >= MOST_APPROVALS:
        raise refuse("ACCESS_TOO_MANY_APPROVALS", after=after)
    given = Approval(Person.of(approver), moment.now_us, comment)
    approved = _with_level(kept, index, replace(level, approvals=(*level.approvals, given)))
    if approved.current_level is not None:
        return approved
    return replace(
        approved,
        state=AccessState.APPROVED,
        approved_us=moment.now_us,
        activate_by_us=moment.now_us + elevation.request_ttl_us,
        deadline_observed_us=moment.observed_us + elevation.request_ttl_us + OBSERVED_STEP_US,
        boot_deadlines=begin_deadline(moment, facts.host, elevation.request_ttl_us),
    )


def deny(
    request: AccessRequest, moment: Moment, facts: Facts, approver: Caller, reason: str
) -> AccessRequest:
    """Return the request, ended by an approver of any level.

    Raises:
        AccessRefused: This person can't deny it, or nobody can now.
        BadRequest: The reason is missing, or is no text that can be kept.
    """
    _require_allowed(facts, approver, Operation.DECIDE_ACCESS)
    check_text("reason", reason, required=True)
    elevation = _require_elevation(facts)
    _require_here(request, facts)
    _look(request, moment, facts)
    if request.state is AccessState.ACTIVE:
        raise refuse("ACCESS_ACTIVE")
    if elevation.person_of(approver.uid) == elevation.person_of(request.requester.uid):
        raise refuse("ACCESS_OWN_REQUEST")
    return end_for(request, moment, EndReason.DENIED, reason, Person.of(approver))


def cancel(
    request: AccessRequest, moment: Moment, facts: Facts, requester: Caller
) -> AccessRequest:
    """Return the request, ended by whoever made it, before it is a grant.

    One that has ended stays as it is.

    Raises:
        AccessRefused: It is somebody else's, or a grant by now, or ends now for another reason.
    """
    _require_owner(request, facts, requester)
    if not request.lives:
        return request
    _look(request, moment, facts)
    if request.state is AccessState.ACTIVE:
        raise refuse("ACCESS_ACTIVE")
    return end_for(request, moment, EndReason.CANCELLED, "", Person.of(requester))


def activate(
    request: AccessRequest, moment: Moment, facts: Facts, requester: Caller, credential_hash: bytes
) -> AccessRequest:
    """Return the request as a grant, which begins now.

    Args:
        request: An approved one.
        moment: When.
        facts: As they are.
        requester: Whoever made it.
        credential_hash: Of a credential that nobody has had before (credential.py).

    Raises:
        AccessRefused: It is somebody else's, isn't approved (or no longer), or has ended.
        AccessFactsMissing: The groups of the requester or of an approver are wanted.
    """
    _require_allowed(facts, requester, Operation.ACTIVATE_ACCESS)
    _require_owner(request, facts, requester)
    facts.require_gids(request.requester.uid)
    _look(request, moment, facts)
    if request.state is not AccessState.APPROVED:
        raise refuse("ACCESS_NOT_APPROVED")
    kept = _strike(request, facts)
    if kept is not request:
        raise refuse("ACCESS_APPROVALS_LOST", after=kept)
    return replace(
        request,
        state=AccessState.ACTIVE,
        activated_us=moment.now_us,
        expires_us=moment.now_us + request.duration_us,
        deadline_observed_us=moment.observed_us + request.duration_us + OBSERVED_STEP_US,
        boot_deadlines=begin_deadline(moment, facts.host, request.duration_us),
        credential_hash=credential_hash,
    )


def revoke(
    request: AccessRequest, moment: Moment, facts: Facts, revoker: Caller, reason: str = ""
) -> AccessRequest:
    """Return the request or grant, ended by its holder, any approver or any operator.

    One that has ended stays as it is: whoever revokes wants it over, and it is.

    Raises:
        AccessRefused: Whoever asks is none of these, or it ends now for another reason.
        BadRequest: The reason is no text that can be kept.
    """
    _require_allowed(facts, revoker, Operation.REVOKE_ACCESS)
    check_text("reason", reason)
    policy = facts.policy
    if not policy.operators.include(revoker) and not policy.is_approver(revoker):
        _require_owner(request, facts, revoker)
    if not request.lives:
        return request
    _look(request, moment, facts)
    return end_for(request, moment, EndReason.REVOKED, reason, Person.of(revoker))


_TIMED_OUT: Final = {
    AccessState.PENDING: EndReason.NOT_DECIDED,
    AccessState.APPROVED: EndReason.NOT_ACTIVATED,
    AccessState.ACTIVE: EndReason.EXPIRED,
}


def expire(request: AccessRequest, moment: Moment) -> AccessRequest:
    """Return the request as time alone leaves it; the same object where it changes nothing."""
    deadline_us, reason = deadline_of(request), _TIMED_OUT.get(request.state)
    if deadline_us is None or reason is None:
        return request
    if moment.now_us >= deadline_us:
        ended = end_for(request, moment, reason)
        return replace(ended, ended_us=deadline_us)
    if has_passed(request, moment):
        return end_for(request, moment, reason, "by the time since its host was started")
    if moment.observed_us >= request.deadline_observed_us:
        return end_for(request, moment, reason, "by the time that was really observed")
    if request.activated_us is not None and moment.now_us < request.activated_us:
        return end_for(request, moment, reason, "the clock was put back to before it began")
    return request


def review(request: AccessRequest, moment: Moment, facts: Facts) -> AccessRequest:
    """Return the request as time and circumstances leave it; the same object where nothing changes.

    Time; a policy that is not the one it was made under; a requester who has left the requesters'
    groups, has become an operator, or whose account is locked. Whoever's groups are not among the
    facts is not judged, and neither is a request of another host, but for time.
    """
    looked = _outlast(expire(request, moment), moment, facts)
    if not looked.lives or not facts.is_host_of(looked):
        return looked
    policy, elevation, uid = facts.policy, facts.policy.elevation, looked.requester.uid
    if (
        elevation is None
        or looked.key not in policy.keys
        or elevation.digests.get(looked.key) != looked.policy_digest
    ):
        return end_for(looked, moment, EndReason.POLICY_CHANGED)
    if uid in facts.locked_uids:
        return end_for(looked, moment, EndReason.ACCOUNT_LOCKED)
    if uid in facts.gids_of:
        requester = Subject(uid, facts.gids_of[uid])
        if not policy.is_requester(requester):
            return end_for(looked, moment, EndReason.LEFT_GROUP)
        if policy.operators.include(requester):
            return end_for(looked, moment, EndReason.LEFT_GROUP, "the requester is an operator now")
    return looked


def _outlast(request: AccessRequest, moment: Moment, facts: Facts) -> AccessRequest:
    """Return a living request as a restart of its host leaves it."""
    reason = _TIMED_OUT.get(request.state)
    if reason is EndReason.EXPIRED and was_restarted(request, moment, facts.host):
        return end_for(request, moment, reason, "its host was started anew")
    if reason is None or reason is EndReason.EXPIRED or request.host != facts.host:
        return request
    following = add_deadline(request, moment, facts.host)
    return following or end_for(request, moment, reason, "its host was started anew too often")


def end_for(
    request: AccessRequest,
    moment: Moment,
    end_reason: EndReason,
    comment: str = "",
    ended_by: Person | None = None,
) -> AccessRequest:
    """Return a living request, ended; any other as it is.

    CLOSING where something must be rolled over first, otherwise ENDED.
    """
    if not request.lives:
        return request
    return replace(
        request,
        state=AccessState.CLOSING if request.rollover and request.opened else AccessState.ENDED,
        ended_us=moment.now_us,
        end_reason=end_reason,
        ended_by=ended_by,
        end_comment=comment,
    )


def finish_rollover(request: AccessRequest, _moment: Moment) -> AccessRequest:
    """Return a request that is CLOSING as ENDED: what it opened has been rolled over."""
    if request.state is not AccessState.CLOSING:
        return request
    return replace(request, state=AccessState.ENDED)


def _require_allowed(
    facts: Facts, actor: Caller, operation: Operation, key: str | None = None
) -> None:
    """Ask policy once more: it may have changed since the call came in."""
    reason = facts.policy.decide(actor, operation, key)
    if reason is not None:
        raise refuse_as(reason)


def _require_elevation(facts: Facts) -> ElevationPolicy:
    # Policy has allowed what only [elevation] can allow; without it nobody gets here.
    if facts.policy.elevation is None:
        raise refuse_as(Reason.NOT_ALLOWED)
    return facts.policy.elevation


def _require_here(request: AccessRequest, facts: Facts) -> None:
    if not facts.is_host_of(request):
        raise refuse("ACCESS_OF_ANOTHER_HOST")


def _require_owner(request: AccessRequest, facts: Facts, actor: Caller) -> None:
    _require_here(request, facts)
    if request.requester.uid != actor.uid:
        raise refuse("ACCESS_NOT_YOURS")


def _look(request: AccessRequest, moment: Moment, facts: Facts) -> None:
    """Go on only with a request that lives on."""
    if not request.lives:
        raise refuse_ended(request, is_new=False)
    looked = review(request, moment, facts)
    if not looked.lives:
        raise refuse_ended(looked, is_new=True)


def _strike(request: AccessRequest, facts: Facts) -> AccessRequest:
    """Return the request without what has been approved by those who have fallen since.

    They have left the group, or their account is locked: whoever locks an account that has been
    taken over undoes what it has approved.
    """
    kept = request
    for index, level in enumerate(request.levels):
        approvals = tuple(
            approval
            if approval.struck
            else replace(approval, struck=_find_fault(level, approval.person.uid, facts))
            for approval in level.approvals
        )
        if approvals != level.approvals:
            kept = _with_level(kept, index, replace(level, approvals=approvals))
    if kept is request or request.state is not AccessState.APPROVED:
        return kept
    return replace(
        kept,
        state=AccessState.PENDING,
        approved_us=None,
        activate_by_us=None,
        # It has as long to be decided again as it had to be activated.
        decide_by_us=request.activate_by_us or request.decide_by_us,
    )


def _find_fault(level: AccessLevel, uid: int, facts: Facts) -> str:
    if level.gid not in facts.require_gids(uid):
        return f"no longer in {level.group}"
    return "the account is locked" if uid in facts.locked_uids else ""


def _with_level(request: AccessRequest, index: int, level: AccessLevel) -> AccessRequest:
    levels = (*request.levels[:index], level, *request.levels[index + 1 :])
    return replace(request, levels=levels)
