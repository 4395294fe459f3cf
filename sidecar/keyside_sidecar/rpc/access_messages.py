"""Requests for access as keyside.v1's messages, and back."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from keyside.v1 import access_pb2 as pb
from keyside_sidecar.access.requests import (
    AccessOperation,
    AccessWish,
    VersionRange,
)
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.rpc.status import describe_failure
from keyside_sidecar.store.records import from_microseconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside.names import KeyName
    from keyside_sidecar.access.prospects import Prospect
    from keyside_sidecar.access.requests import AccessLevel, AccessRequest, Approval, Person
    from keyside_sidecar.store.access_rows import AccessUse

_PREFIX: Final = "ACCESS_OPERATION_"
_MICROSECONDS: Final = 1_000_000


def read_wish(
    request: pb.RequestAccessRequest | pb.CheckAccessRequestRequest, key: KeyName
) -> AccessWish:
    """Return what is asked for; its bounds are the domain's to check.

    Raises:
        BadRequest: An operation is unknown, or the duration is none.
    """
    duration = request.duration
    if duration.nanos or duration.seconds < 0:
        raise BadRequest("duration", "is a number of whole seconds, above 0")
    return AccessWish(
        key=key,
        reason=request.reason,
        ticket=request.ticket,
        duration_us=duration.seconds * _MICROSECONDS,
        operations=tuple(_read_operation(number) for number in request.operations)
        or (AccessOperation.DECRYPT,),
        versions=tuple(VersionRange(one.first, one.last) for one in request.versions),
        context=dict(request.context),
        max_uses=request.max_uses,
    )


def make_request(request: AccessRequest, prospects: Iterable[Prospect] = ()) -> pb.AccessRequest:
    """Return a request's message; it holds nothing of the credential.

    Args:
        request: The request.
        prospects: What whoever is answered may do about it.
    """
    return pb.AccessRequest(
        id=request.id,
        key=request.key,
        requester=_make_person(request.requester),
        host=request.host,
        reason=request.reason,
        ticket=request.ticket,
        operations=[_make_operation(one) for one in request.operations],
        versions=[pb.VersionRange(first=one.first, last=one.last) for one in request.versions],
        context=dict(request.context),
        max_uses=request.max_uses,
        duration=_make_duration(request.duration_us),
        state=pb.AccessState.Value(f"ACCESS_STATE_{request.state}"),
        created_at=_make_timestamp(request.created_us),
        decide_by=_make_timestamp(request.decide_by_us),
        approved_at=_make_timestamp(request.approved_us),
        activate_by=_make_timestamp(request.activate_by_us),
        activated_at=_make_timestamp(request.activated_us),
        expires_at=_make_timestamp(request.expires_us),
        ended_at=_make_timestamp(request.ended_us),
        end_reason="" if request.end_reason is None else str(request.end_reason),
        ended_by=None if request.ended_by is None else _make_person(request.ended_by),
        end_comment=request.end_comment,
        levels=[_make_level(level) for level in request.levels],
        used=request.used,
        prospects=[_make_prospect(one) for one in prospects],
    )


def make_use(use: AccessUse) -> pb.AccessUse:
    """Return the message of one use of a grant."""
    return pb.AccessUse(
        used_at=_make_timestamp(use.used_us),
        operation=_make_operation(use.operation),
        key=use.key,
        version=use.version,
        envelope_sha256=use.envelope_sha256,
        context=dict(use.context or {}),
    )


def _read_operation(number: int) -> AccessOperation:
    try:
        name = pb.AccessOperation.Name(number).removeprefix(_PREFIX)  # type: ignore[arg-type]
        return AccessOperation[name]
    except (ValueError, KeyError):
        raise BadRequest("operations", "holds one that can't be granted") from None


def _make_operation(operation: AccessOperation) -> pb.AccessOperation.ValueType:
    return pb.AccessOperation.Value(f"{_PREFIX}{operation.name}")


def _make_person(person: Person) -> pb.Person:
    return pb.Person(uid=person.uid, account=person.account)


def _make_level(level: AccessLevel) -> pb.AccessLevel:
    return pb.AccessLevel(
        group=level.group,
        approvals_needed=level.approvals_needed,
        approvals=[_make_approval(one) for one in level.approvals],
    )


def _make_approval(approval: Approval) -> pb.AccessApproval:
    return pb.AccessApproval(
        person=_make_person(approval.person),
        decided_at=_make_timestamp(approval.decided_us),
        comment=approval.comment,
        struck=approval.struck,
    )


def _make_prospect(prospect: Prospect) -> pb.AccessProspect:
    refusal = prospect.refusal
    return pb.AccessProspect(
        action=pb.AccessAction.Value(f"ACCESS_ACTION_{prospect.action}"),
        refused=refusal and describe_failure(refusal, "").status(),
    )


def _make_timestamp(moment_us: int | None) -> Timestamp | None:
    if moment_us is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(from_microseconds(moment_us))
    return stamp


def _make_duration(duration_us: int) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(microseconds=duration_us))
    return duration
