"""keyside.v1.AccessService as messages: requests to commands, results to responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyside.v1 import access_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.access.requests import AccessOperation, AccessWish, VersionRange
from keyside_sidecar.api.rows import Row
from keyside_sidecar.api.v1.status import make_status
from keyside_sidecar.api.v1.times import make_duration, make_timestamp
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.server.call import Keeps
from keyside_sidecar.services.access import (
    AboutRequest,
    AccessView,
    CheckAccessRequest,
    Decide,
    ListAccess,
    RequestAccess,
)
from keyside_sidecar.services.batches import read_key
from keyside_sidecar.services.failures import describe_failure
from keyside_sidecar.store.records import from_microseconds

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from keyside.names import KeyName
    from keyside_sidecar.access.prospects import Prospect
    from keyside_sidecar.access.requests import AccessLevel, Approval, Person
    from keyside_sidecar.services.access import AccessPage, AccessStory, ChangedAccess, Checked
    from keyside_sidecar.store.access_rows import AccessUse

_PREFIX: Final = "ACCESS_OPERATION_"
_MICROSECONDS: Final = 1_000_000


def _action(name: str, operation: Operation, event: str) -> Row:
    return Row(name, operation, f"access.{event}", Keeps.ACTION)


SERVICE: Final = pb.DESCRIPTOR.services_by_name["AccessService"]
ROWS: Final = (
    _action("RequestAccess", Operation.REQUEST_ACCESS, "request"),
    Row("CheckAccessRequest", Operation.REQUEST_ACCESS),
    Row("ListAccess", Operation.LIST_ACCESS),
    Row("GetAccess", Operation.LIST_ACCESS),
    _action("ApproveAccess", Operation.DECIDE_ACCESS, "approve"),
    _action("DenyAccess", Operation.DECIDE_ACCESS, "deny"),
    _action("CancelAccess", Operation.CANCEL_ACCESS, "cancel"),
    _action("ActivateAccess", Operation.ACTIVATE_ACCESS, "activate"),
    _action("RevokeAccess", Operation.REVOKE_ACCESS, "revoke"),
)


def read_request_access(request: pb.RequestAccessRequest) -> RequestAccess:
    """Return what is asked for.

    Raises:
        BadRequest: The key is none, an operation is unknown, or the duration is none.
    """
    key = read_key(request.key)
    return RequestAccess(key, _read_wish(request, key), request.password)


def write_request_access(changed: ChangedAccess) -> pb.RequestAccessResponse:
    """Return the response."""
    return pb.RequestAccessResponse(request=make_request(AccessView(changed.request)))


def read_check_access_request(request: pb.CheckAccessRequestRequest) -> CheckAccessRequest:
    """Return what is asked for.

    Raises:
        BadRequest: As for RequestAccess.
    """
    key = read_key(request.key)
    return CheckAccessRequest(key, _read_wish(request, key))


def write_check_access_request(_checked: Checked) -> pb.CheckAccessRequestResponse:
    """Return the response."""
    return pb.CheckAccessRequestResponse()


def read_list_access(request: pb.ListAccessRequest) -> ListAccess:
    """Return what is asked for."""
    return ListAccess(request.include_ended, request.page_size, request.page_token)


def write_list_access(page: AccessPage) -> pb.ListAccessResponse:
    """Return the response."""
    return pb.ListAccessResponse(
        requests=[make_request(view) for view in page.requests],
        next_page_token=page.next_page_token,
    )


def read_get_access(request: pb.GetAccessRequest) -> AboutRequest:
    """Return what is asked for."""
    return AboutRequest(request.id)


def write_get_access(story: AccessStory) -> pb.GetAccessResponse:
    """Return the response."""
    return pb.GetAccessResponse(
        request=make_request(story.request), uses=[_make_use(use) for use in story.uses]
    )


def read_approve_access(request: pb.ApproveAccessRequest) -> Decide:
    """Return what is asked for."""
    return Decide(request.id, request.comment, request.password)


def write_approve_access(changed: ChangedAccess) -> pb.ApproveAccessResponse:
    """Return the response."""
    return pb.ApproveAccessResponse(request=make_request(AccessView(changed.request)))


def read_deny_access(request: pb.DenyAccessRequest) -> Decide:
    """Return what is asked for."""
    return Decide(request.id, request.reason, request.password)


def write_deny_access(changed: ChangedAccess) -> pb.DenyAccessResponse:
    """Return the response."""
    return pb.DenyAccessResponse(request=make_request(AccessView(changed.request)))


def read_cancel_access(request: pb.CancelAccessRequest) -> Decide:
    """Return what is asked for."""
    return Decide(request.id)


def write_cancel_access(changed: ChangedAccess) -> pb.CancelAccessResponse:
    """Return the response."""
    return pb.CancelAccessResponse(request=make_request(AccessView(changed.request)))


def read_activate_access(request: pb.ActivateAccessRequest) -> Decide:
    """Return what is asked for."""
    return Decide(request.id, password=request.password)


def write_activate_access(changed: ChangedAccess) -> pb.ActivateAccessResponse:
    """Return the response."""
    return pb.ActivateAccessResponse(
        request=make_request(AccessView(changed.request)), credential=changed.credential
    )


def read_revoke_access(request: pb.RevokeAccessRequest) -> Decide:
    """Return what is asked for."""
    return Decide(request.id, request.reason)


def write_revoke_access(changed: ChangedAccess) -> pb.RevokeAccessResponse:
    """Return the response."""
    return pb.RevokeAccessResponse(request=make_request(AccessView(changed.request)))


def _read_wish(
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


def make_request(view: AccessView) -> pb.AccessRequest:
    """Return a request's message; it holds nothing of the credential."""
    request = view.request
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
        duration=make_duration(request.duration_us / _MICROSECONDS),
        state=pb.AccessState.Value(f"ACCESS_STATE_{request.state}"),
        created_at=_make_time(request.created_us),
        decide_by=_make_time(request.decide_by_us),
        approved_at=_make_time(request.approved_us),
        activate_by=_make_time(request.activate_by_us),
        activated_at=_make_time(request.activated_us),
        expires_at=_make_time(request.expires_us),
        ended_at=_make_time(request.ended_us),
        end_reason="" if request.end_reason is None else str(request.end_reason),
        ended_by=None if request.ended_by is None else _make_person(request.ended_by),
        end_comment=request.end_comment,
        levels=[_make_level(level) for level in request.levels],
        used=request.used,
        prospects=[_make_prospect(one) for one in view.prospects],
    )


def _make_use(use: AccessUse) -> pb.AccessUse:
    """Return the message of one use of a grant."""
    return pb.AccessUse(
        used_at=_make_time(use.used_us),
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


def _make_operation(operation: AccessOperation) -> Any:
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
        decided_at=_make_time(approval.decided_us),
        comment=approval.comment,
        struck=approval.struck,
    )


def _make_prospect(prospect: Prospect) -> pb.AccessProspect:
    refusal = prospect.refusal
    return pb.AccessProspect(
        action=pb.AccessAction.Value(f"ACCESS_ACTION_{prospect.action}"),
        refused=None if refusal is None else make_status(describe_failure(refusal, "")),
    )


def _make_time(moment_us: int | None) -> Timestamp | None:
    return None if moment_us is None else make_timestamp(from_microseconds(moment_us))
