"""Requests for access, and uses of grants, on their way into and out of rows.

What people wrote is kept as JSON of ASCII only, as a backup's lines are. A row is decoded only
after its MAC was checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside.names import KeyName
from keyside_sidecar.access.requests import (
    AccessId,
    AccessLevel,
    AccessOperation,
    AccessRequest,
    AccessState,
    Approval,
    BootDeadline,
    EndReason,
    Person,
    VersionRange,
)
from keyside_sidecar.errors import StoreTampered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyside_sidecar.access.requests import AccessItem

    Row = Mapping[str, Any]

# Columns that hold a field as it is.
_SAME: Final = {
    "max_uses": "max_uses",
    "duration": "duration_us",
    "policy_digest": "policy_digest",
    "created_at": "created_us",
    "decide_by": "decide_by_us",
    "deadline_observed": "deadline_observed_us",
    "approved_at": "approved_us",
    "activate_by": "activate_by_us",
    "activated_at": "activated_us",
    "expires_at": "expires_us",
    "credential_hash": "credential_hash",
    "used": "used",
    "ended_at": "ended_us",
    "ended_number": "ended_number",
}


@dataclass(frozen=True, slots=True)
class AccessUse:
    """One use of a grant.

    Args:
        number: 1, 2, 3 … of this grant.
        used_us: When, by the store's clock, in microseconds since 1970.
        operation: What was done.
        key: The key.
        version: Its version.
        envelope_sha256: Digest of the envelope.
        context: The envelope's context; None where it was not known.
    """

    number: int
    used_us: int
    operation: AccessOperation
    key: KeyName
    version: int
    envelope_sha256: bytes
    context: Mapping[str, str] | None


def name_request(access_id: object) -> str:
    """Return what an error calls a request's row."""
    return f"request for access {access_id!a}"


def encode_request(request: AccessRequest) -> dict[str, Any]:
    """Return the columns of a request, but for uses_digest, generation and MAC."""
    asked = {
        "account": request.requester.account,
        "host": request.host,
        "reason": request.reason,
        "ticket": request.ticket,
        "operations": [str(operation) for operation in request.operations],
        "versions": _encode_ranges(request.versions),
        "context": dict(request.context),
        "rollover": request.rollover,
    }
    ending = {
        "by": None if request.ended_by is None else _encode_person(request.ended_by),
        "comment": request.end_comment,
    }
    return {
        "id": str(request.id),
        "key_name": str(request.key),
        "requester_uid": request.requester.uid,
        "state": str(request.state),
        "asked": _encode(asked),
        "levels": _encode([_encode_level(level) for level in request.levels]),
        "boot_deadlines": _encode(
            [[one.host, one.boot, one.begun_us, one.due_us] for one in request.boot_deadlines]
        )
        if request.boot_deadlines
        else None,
        "opened": _encode(_encode_ranges(request.opened)) if request.opened else None,
        "end_reason": None if request.end_reason is None else str(request.end_reason),
        "ending": None if request.end_reason is None else _encode(ending),
        **{column: getattr(request, field) for column, field in _SAME.items()},
    }


def decode_request(row: Row) -> AccessRequest:
    """Return what a checked row says.

    Raises:
        StoreTampered: It says what no request does.
    """
    try:
        asked, ending = json.loads(row["asked"]), json.loads(row["ending"] or "{}")
        by = ending.get("by")
        return AccessRequest(
            id=AccessId(row["id"]),
            key=KeyName(row["key_name"]),
            requester=Person(row["requester_uid"], asked["account"]),
            host=asked["host"],
            reason=asked["reason"],
            ticket=asked["ticket"],
            operations=tuple(AccessOperation(name) for name in asked["operations"]),
            versions=_decode_ranges(asked["versions"]),
            context=asked["context"],
            rollover=asked["rollover"],
            state=AccessState(row["state"]),
            levels=tuple(_decode_level(level) for level in json.loads(row["levels"])),
            boot_deadlines=tuple(
                BootDeadline(*one) for one in json.loads(row["boot_deadlines"] or "[]")
            ),
            opened=_decode_ranges(json.loads(row["opened"] or "[]")),
            end_reason=None if row["end_reason"] is None else EndReason(row["end_reason"]),
            ended_by=None if by is None else Person(*by),
            end_comment=ending.get("comment", ""),
            **{field: row[column] for column, field in _SAME.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreTampered(name_request(row["id"])) from None


def encode_use(access_id: str, number: int, now_us: int, item: AccessItem) -> dict[str, Any]:
    """Return the columns of one use, but for its MAC."""
    return {
        "request_id": access_id,
        "number": number,
        "used_at": now_us,
        "operation": str(item.operation),
        "version": item.version,
        "envelope_sha256": item.envelope_sha256,
        "context": None if item.context is None else _encode(dict(item.context)),
    }


def decode_use(row: Row, key: KeyName) -> AccessUse:
    """Return what a checked row says of a use of ``key``."""
    try:
        return AccessUse(
            number=row["number"],
            used_us=row["used_at"],
            operation=AccessOperation(row["operation"]),
            key=key,
            version=row["version"],
            envelope_sha256=row["envelope_sha256"],
            context=None if row["context"] is None else json.loads(row["context"]),
        )
    except ValueError:
        raise StoreTampered(f"use {row['number']} of {row['request_id']}") from None


def _encode(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, sort_keys=True)


def _encode_person(person: Person) -> list[int | str]:
    return [person.uid, person.account]


def _encode_ranges(ranges: Iterable[VersionRange]) -> list[list[int]]:
    return [[one.first, one.last] for one in ranges]


def _decode_ranges(ranges: Iterable[Iterable[int]]) -> tuple[VersionRange, ...]:
    return tuple(VersionRange(*one) for one in ranges)


def _encode_level(level: AccessLevel) -> dict[str, Any]:
    return {
        "group": level.group,
        "gid": level.gid,
        "needed": level.approvals_needed,
        "approvals": [
            {
                "by": _encode_person(approval.person),
                "at": approval.decided_us,
                "comment": approval.comment,
                "struck": approval.struck,
            }
            for approval in level.approvals
        ],
    }


def _decode_level(level: Mapping[str, Any]) -> AccessLevel:
    return AccessLevel(
        level["group"],
        level["gid"],
        level["needed"],
        tuple(
            Approval(Person(*one["by"]), one["at"], one["comment"], one["struck"])
            for one in level["approvals"]
        ),
    )
