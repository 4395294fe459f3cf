"""Between this package's values and the messages of access.proto and audit.proto."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from keyside._messages import MAX_PAGE_SIZE, MAX_VERSION, as_context, read_duration, read_time
from keyside._translate import translate_item
from keyside.access_facts import (
    AccessAction,
    AccessApproval,
    AccessLevel,
    AccessOperation,
    AccessProspect,
    AccessRequest,
    AccessState,
    AccessStory,
    AccessUse,
    ActivatedAccess,
    AuditRecord,
    Person,
    VersionRange,
)
from keyside.credential import Credential
from keyside.errors import InvalidArgument, UnexpectedAnswer
from keyside.names import parse_access_id, parse_key_name
from keyside.v1 import access_pb2, audit_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.timestamp_pb2 import Timestamp

MAX_PASSWORD_BYTES: Final = 1024
_MAX_COUNT: Final = 2**63 - 1
_NO_PASSWORD: Final = b"-"  # not sent
_MAX_UID: Final = 2**32 - 2


def request_message(
    key: str,
    *,
    reason: str,
    duration: timedelta,
    password: str | bytes,
    ticket: str,
    operations: Iterable[AccessOperation],
    versions: Iterable[VersionRange | int],
    context: Mapping[str, str] | None,
    max_uses: int | None,
) -> access_pb2.RequestAccessRequest:
    """Build a RequestAccessRequest.

    Raises:
        InvalidArgument: A value is of another type, or can't be what it is meant to be.
    """
    if not isinstance(duration, timedelta) or duration < timedelta(seconds=1):
        raise InvalidArgument("duration is a timedelta of 1 second or more")
    if duration.microseconds:
        raise InvalidArgument("duration is in whole seconds")
    message = access_pb2.RequestAccessRequest(
        key=parse_key_name(key),
        reason=_text("reason", reason),
        ticket=_text("ticket", ticket),
        operations=[_operation_number(operation) for operation in operations],
        versions=[_range_message(given) for given in versions],
        context=as_context(context),
        max_uses=0 if max_uses is None else _count("max_uses", max_uses, least=1),
        password=as_password(password),
    )
    message.duration.seconds = duration.days * 86_400 + duration.seconds
    return message


def check_message(key: str, **wish: Any) -> access_pb2.CheckAccessRequestRequest:
    """Build a CheckAccessRequestRequest; takes and raises what ``request_message`` does."""
    whole = request_message(key, password=_NO_PASSWORD, **wish)
    return access_pb2.CheckAccessRequestRequest(
        key=whole.key,
        reason=whole.reason,
        ticket=whole.ticket,
        duration=whole.duration,
        operations=whole.operations,
        versions=whole.versions,
        context=whole.context,
        max_uses=whole.max_uses,
    )


def list_message(*, include_ended: bool, page_size: int) -> access_pb2.ListAccessRequest:
    """Build a ListAccessRequest.

    Raises:
        InvalidArgument: The page's size is not 1 to 1,000.
    """
    return access_pb2.ListAccessRequest(
        include_ended=bool(include_ended), page_size=_page_size(page_size)
    )


def get_message(access_id: str) -> access_pb2.GetAccessRequest:
    """Build a GetAccessRequest; raises ``InvalidArgument`` where the id is none."""
    return access_pb2.GetAccessRequest(id=parse_access_id(access_id))


def approve_message(
    access_id: str, *, password: str | bytes, comment: str
) -> access_pb2.ApproveAccessRequest:
    """Build an ApproveAccessRequest; raises ``InvalidArgument`` as ``request_message`` does."""
    return access_pb2.ApproveAccessRequest(
        id=parse_access_id(access_id),
        comment=_text("comment", comment),
        password=as_password(password),
    )


def deny_message(
    access_id: str, *, password: str | bytes, reason: str
) -> access_pb2.DenyAccessRequest:
    """Build a DenyAccessRequest; raises ``InvalidArgument`` as ``request_message`` does."""
    return access_pb2.DenyAccessRequest(
        id=parse_access_id(access_id),
        reason=_text("reason", reason),
        password=as_password(password),
    )


def cancel_message(access_id: str) -> access_pb2.CancelAccessRequest:
    """Build a CancelAccessRequest; raises ``InvalidArgument`` where the id is none."""
    return access_pb2.CancelAccessRequest(id=parse_access_id(access_id))


def activate_message(access_id: str, *, password: str | bytes) -> access_pb2.ActivateAccessRequest:
    """Build an ActivateAccessRequest; raises ``InvalidArgument`` as ``request_message`` does."""
    return access_pb2.ActivateAccessRequest(
        id=parse_access_id(access_id), password=as_password(password)
    )


def revoke_message(access_id: str, *, reason: str) -> access_pb2.RevokeAccessRequest:
    """Build a RevokeAccessRequest; raises ``InvalidArgument`` as ``request_message`` does."""
    return access_pb2.RevokeAccessRequest(
        id=parse_access_id(access_id), reason=_text("reason", reason)
    )


def search_message(
    *,
    key: str | None,
    account: str | None,
    uid: int | None,
    access_id: str | None,
    event: str | None,
    outcome: str | None,
    after: datetime | None,
    before: datetime | None,
    record_id: str | None,
    first_sequence: int | None,
    last_sequence: int | None,
    oldest_first: bool,
    page_size: int,
) -> audit_pb2.SearchRecordsRequest:
    """Build a SearchRecordsRequest.

    Raises:
        InvalidArgument: A value is of another type or out of its bounds.
    """
    message = audit_pb2.SearchRecordsRequest(
        key="" if key is None else parse_key_name(key),
        account=_text("account", account or ""),
        access_id="" if access_id is None else parse_access_id(access_id),
        event=_text("event", event or ""),
        outcome=_text("outcome", outcome or ""),
        record_id=_text("record_id", record_id or ""),
        first_sequence=_count("first_sequence", first_sequence or 0),
        last_sequence=_count("last_sequence", last_sequence or 0),
        oldest_first=bool(oldest_first),
        page_size=_page_size(page_size),
    )
    if uid is not None:
        if not isinstance(uid, int) or not 0 <= uid <= _MAX_UID:
            raise InvalidArgument(f"uid is a number from 0 to {_MAX_UID}")
        message.uid = uid
    if after is not None:
        _set_time("after", message.after, after)
    if before is not None:
        _set_time("before", message.before, before)
    return message


def as_password(password: str | bytes) -> bytes:
    """Return a password's bytes.

    Raises:
        InvalidArgument: It is no text or bytes, empty, too long, or holds a zero byte.
    """
    try:
        given = password.encode() if isinstance(password, str) else password
    except UnicodeEncodeError:
        given = b""
    if (
        not isinstance(given, (bytes, bytearray))
        or not 1 <= len(given) <= MAX_PASSWORD_BYTES
        or 0 in given
    ):
        raise InvalidArgument(
            f"password is 1 to {MAX_PASSWORD_BYTES} bytes, none of them zero",
            reason="INVALID_PASSWORD",
        )
    return bytes(given)


def read_request(message: access_pb2.AccessRequest) -> AccessRequest:
    """Return the proto's access request as a value."""
    has = message.HasField
    return AccessRequest(
        id=message.id,
        key=message.key,
        requester=_read_person(message.requester),
        host=message.host,
        reason=message.reason,
        ticket=message.ticket,
        operations=tuple(_read_operation(number) for number in message.operations),
        versions=tuple(VersionRange(one.first, one.last) for one in message.versions),
        context=dict(message.context),
        max_uses=message.max_uses or None,
        duration=read_duration(message.duration),
        state=_read_state(message.state),
        created_at=read_time(message.created_at, given=has("created_at")),
        decide_by=read_time(message.decide_by, given=has("decide_by")),
        approved_at=read_time(message.approved_at, given=has("approved_at")),
        activate_by=read_time(message.activate_by, given=has("activate_by")),
        activated_at=read_time(message.activated_at, given=has("activated_at")),
        expires_at=read_time(message.expires_at, given=has("expires_at")),
        ended_at=read_time(message.ended_at, given=has("ended_at")),
        end_reason=message.end_reason,
        ended_by=_read_person(message.ended_by) if has("ended_by") else None,
        end_comment=message.end_comment,
        levels=tuple(_read_level(level) for level in message.levels),
        used=message.used,
        prospects=tuple(
            AccessProspect(
                _read_action(one.action),
                translate_item(one.refused) if one.HasField("refused") else None,
            )
            for one in message.prospects
        ),
    )


def read_story(message: access_pb2.GetAccessResponse) -> AccessStory:
    """Return a request and its uses."""
    return AccessStory(
        read_request(message.request),
        tuple(
            AccessUse(
                used_at=read_time(use.used_at, given=use.HasField("used_at")),
                operation=_read_operation(use.operation),
                key=use.key,
                version=use.version,
                envelope_sha256=use.envelope_sha256.hex(),
                context=dict(use.context),
            )
            for use in message.uses
        ),
    )


def read_activated(message: access_pb2.ActivateAccessResponse) -> ActivatedAccess:
    """Return a grant and its credential.

    Raises:
        UnexpectedAnswer: What came is no credential.
    """
    try:
        credential = Credential(message.credential)
    except InvalidArgument:
        raise UnexpectedAnswer(
            "the sidecar answered with something that is no credential",
            remedy="compare the client's and the sidecar's versions; then revoke the grant",
        ) from None
    return ActivatedAccess(read_request(message.request), credential)


def read_record(message: audit_pb2.AuditRecord | audit_pb2.GetCheckpointResponse) -> AuditRecord:
    """Return the proto's audit record as a value; raises ``UnexpectedAnswer`` as that does."""
    return AuditRecord(message.sequence, message.json)


def _read_person(message: access_pb2.Person) -> Person:
    return Person(message.uid, message.account)


def _read_level(message: access_pb2.AccessLevel) -> AccessLevel:
    return AccessLevel(
        message.group,
        message.approvals_needed,
        tuple(
            AccessApproval(
                _read_person(approval.person),
                read_time(approval.decided_at, given=approval.HasField("decided_at")),
                approval.comment,
                approval.struck,
            )
            for approval in message.approvals
        ),
    )


def _read_operation(number: access_pb2.AccessOperation.ValueType) -> AccessOperation:
    try:
        name = access_pb2.AccessOperation.Name(number)
        return AccessOperation[name.removeprefix("ACCESS_OPERATION_")]
    except (KeyError, ValueError):
        return AccessOperation.UNKNOWN


def _read_state(number: access_pb2.AccessState.ValueType) -> AccessState:
    try:
        return AccessState[access_pb2.AccessState.Name(number).removeprefix("ACCESS_STATE_")]
    except (KeyError, ValueError):
        return AccessState.UNKNOWN


def _read_action(number: access_pb2.AccessAction.ValueType) -> AccessAction:
    try:
        return AccessAction[access_pb2.AccessAction.Name(number).removeprefix("ACCESS_ACTION_")]
    except (KeyError, ValueError):
        return AccessAction.UNKNOWN


def _operation_number(operation: AccessOperation) -> access_pb2.AccessOperation.ValueType:
    if not isinstance(operation, AccessOperation) or operation is AccessOperation.UNKNOWN:
        raise InvalidArgument("operations are AccessOperation.DECRYPT, REWRAP or ENCRYPT")
    return access_pb2.AccessOperation.Value(f"ACCESS_OPERATION_{operation.name}")


def _range_message(given: VersionRange | int) -> access_pb2.VersionRange:
    first, last = (given.first, given.last) if isinstance(given, VersionRange) else (given, given)
    if (
        not isinstance(first, int)
        or not isinstance(last, int)
        or not 1 <= first <= last <= MAX_VERSION
    ):
        raise InvalidArgument("versions are numbers of 1 or more, and ranges from low to high")
    return access_pb2.VersionRange(first=first, last=last)


def _text(field: str, value: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{field} is text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} holds text that is not valid Unicode") from None
    return value


def _count(field: str, value: int, *, least: int = 0) -> int:
    if not isinstance(value, int) or not least <= value <= _MAX_COUNT:
        raise InvalidArgument(f"{field} is a number of {least} or more")
    return value


def _page_size(page_size: int) -> int:
    if not isinstance(page_size, int) or not 1 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument(f"page_size is a number from 1 to {MAX_PAGE_SIZE}")
    return page_size


def _set_time(field: str, message: Timestamp, when: datetime) -> None:
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidArgument(f"{field} is a datetime with a time zone")
    try:
        message.FromDatetime(when)
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{field} is beyond all dates") from None
