"""What the sidecar tells about requests and grants, as JSON (docs/cli.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.access_facts import AccessState
from keyside.cli.tables import format_time

if TYPE_CHECKING:
    from keyside.access_facts import AccessLevel, AccessRequest, AccessUse, Person


def request_facts(request: AccessRequest) -> dict[str, object]:
    """Return a request's facts."""
    return {
        "id": request.id,
        "state": request.state.value,
        "key": request.key,
        "requester": person_facts(request.requester),
        "host": request.host,
        "reason": request.reason,
        "ticket": request.ticket or None,
        "operations": [operation.value.lower() for operation in request.operations],
        "versions": [{"first": one.first, "last": one.last} for one in request.versions],
        "context": dict(sorted(request.context.items())),
        "max_uses": request.max_uses,
        "used": request.used,
        "duration_s": int(request.duration.total_seconds()),
        "created_at": format_time(request.created_at) or None,
        "decide_by": format_time(request.decide_by) or None,
        "approved_at": format_time(request.approved_at) or None,
        "activate_by": format_time(request.activate_by) or None,
        "activated_at": format_time(request.activated_at) or None,
        "expires_at": format_time(request.expires_at) or None,
        "ended_at": format_time(request.ended_at) or None,
        "end_reason": request.end_reason or None,
        "ended_by": person_facts(request.ended_by) if request.ended_by else None,
        "end_comment": request.end_comment or None,
        "waits_for": _waits_for(request),
        "your_turn": request.is_your_turn,
        "levels": [_level_facts(level) for level in request.levels],
    }


def _waits_for(request: AccessRequest) -> dict[str, object] | None:
    level = request.waiting_level
    if level is not None:
        missing = level.approvals_needed - level.approvals_given
        return {"group": level.group, "approvals_missing": missing, "person": None}
    if request.state is AccessState.APPROVED:
        person = person_facts(request.requester)
        return {"group": None, "approvals_missing": 0, "person": person}
    return None


def use_facts(use: AccessUse) -> dict[str, object]:
    """Return a use's facts."""
    return {
        "used_at": format_time(use.used_at) or None,
        "operation": use.operation.value.lower(),
        "key": use.key,
        "version": use.version,
        "envelope_sha256": use.envelope_sha256 or None,
        "context": dict(sorted(use.context.items())),
    }


def person_facts(person: Person) -> dict[str, object]:
    """Return a person's facts."""
    return {"uid": person.uid, "account": person.account or None}


def _level_facts(level: AccessLevel) -> dict[str, object]:
    return {
        "group": level.group,
        "approvals_needed": level.approvals_needed,
        "approvals_given": level.approvals_given,
        "approvals": [
            {
                "person": person_facts(approval.person),
                "decided_at": format_time(approval.decided_at) or None,
                "comment": approval.comment or None,
                "struck": approval.struck or None,
            }
            for approval in level.approvals
        ],
    }
