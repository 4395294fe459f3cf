# ruff: noqa: N802  (gRPC names the methods)
"""The double's AccessService and AuditService: requests and records to order, kept in memory.

It authenticates nobody: what it is for is the shapes of answers, and what the client sends.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from keyside.v1 import access_pb2, access_pb2_grpc, audit_pb2, audit_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED_S = 1_700_000_000
NOW_S = 4_000_000_000
ID = "ar-abcdefghij23"
OTHER_ID = "ar-zzzzzzzzzzzz"
CREDENTIAL = "ksc-" + "a2" * 26


def make_request(access_id: str = ID, **fields: Any) -> access_pb2.AccessRequest:
    """Return a pending request with two levels."""
    request = access_pb2.AccessRequest(
        id=access_id,
        key="mail",
        requester=access_pb2.Person(uid=1001, account="anna"),
        host="host-1",
        reason="mails of user 42 do not arrive",
        ticket="INC-42",
        operations=[access_pb2.ACCESS_OPERATION_DECRYPT],
        versions=[
            access_pb2.VersionRange(first=3, last=5),
            access_pb2.VersionRange(first=7, last=7),
        ],
        context={"account": "42"},
        max_uses=10,
        state=access_pb2.ACCESS_STATE_PENDING,
        levels=[
            access_pb2.AccessLevel(group="managers", approvals_needed=1),
            access_pb2.AccessLevel(group="legal", approvals_needed=2),
        ],
    )
    request.duration.seconds = 1800
    request.created_at.seconds = ASKED_S
    request.decide_by.seconds = NOW_S
    request.MergeFrom(access_pb2.AccessRequest(**fields))
    return request


def approve(request: access_pb2.AccessRequest, level: int, account: str, **fields: Any) -> None:
    """Add an approval."""
    approval = request.levels[level].approvals.add(
        person=access_pb2.Person(uid=1100 + len(account), account=account), **fields
    )
    approval.decided_at.seconds = ASKED_S + 60


def make_record(sequence: int, event: str, **fields: Any) -> audit_pb2.AuditRecord:
    """Return an audit record as the log's line would be, its hash aside."""
    body: dict[str, Any] = {
        "v": 1,
        "seq": sequence,
        "id": f"r{sequence}",
        "time": f"2026-11-25T22:45:{sequence % 60:02}.123456Z",
        "event": event,
        **fields,
        "hash": "00" * 32,
    }
    return audit_pb2.AuditRecord(
        sequence=sequence, json=json.dumps(body, separators=(",", ":"), ensure_ascii=True)
    )


class AccessDouble(access_pb2_grpc.AccessServiceServicer, audit_pb2_grpc.AuditServiceServicer):
    """Answers from ``access`` (by id), ``uses`` and ``records``; ``page`` bounds its pages."""

    def __init__(self) -> None:
        self.access: dict[str, access_pb2.AccessRequest] = {}
        self.uses: list[access_pb2.AccessUse] = []
        self.records: list[audit_pb2.AuditRecord] = []
        self.page = 100
        self.asked: list[Any] = []
        self.checked: list[Any] = []
        self.refuses_wish: Any = None
        self.before_answer: Callable[[str], None] = lambda _: None

    def _begin(self, name: str, context: Any) -> None:
        raise NotImplementedError

    def _take(self, name: str, request: Any, context: Any) -> None:
        self.asked.append(request)
        self._begin(name, context)
        self.before_answer(name)

    def RequestAccess(
        self, request: access_pb2.RequestAccessRequest, context: Any
    ) -> access_pb2.RequestAccessResponse:
        """Write it down."""
        self._take("RequestAccess", request, context)
        made = make_request()
        made.key = request.key
        self.access[made.id] = made
        return access_pb2.RequestAccessResponse(request=made)

    def CheckAccessRequest(
        self, request: access_pb2.CheckAccessRequestRequest, context: Any
    ) -> access_pb2.CheckAccessRequestResponse:
        """Find nothing wrong with it, unless told to."""
        self.checked.append(request)
        if self.refuses_wish:
            context.set_trailing_metadata((("grpc-status-details-bin", self.refuses_wish.packed),))
            context.abort(self.refuses_wish.code, self.refuses_wish.text)
        return access_pb2.CheckAccessRequestResponse()

    def ListAccess(
        self, request: access_pb2.ListAccessRequest, context: Any
    ) -> access_pb2.ListAccessResponse:
        """Return a page of them."""
        self._take("ListAccess", request, context)
        over = {access_pb2.ACCESS_STATE_ENDED}
        found = [
            one for one in self.access.values() if request.include_ended or one.state not in over
        ]
        begin = int(request.page_token or 0)
        end = begin + min(self.page, request.page_size)
        return access_pb2.ListAccessResponse(
            requests=found[begin:end], next_page_token=str(end) if end < len(found) else ""
        )

    def GetAccess(
        self, request: access_pb2.GetAccessRequest, context: Any
    ) -> access_pb2.GetAccessResponse:
        """Return it and the uses."""
        self._take("GetAccess", request, context)
        return access_pb2.GetAccessResponse(request=self.access[request.id], uses=self.uses)

    def ApproveAccess(
        self, request: access_pb2.ApproveAccessRequest, context: Any
    ) -> access_pb2.ApproveAccessResponse:
        """Add bob's approval."""
        self._take("ApproveAccess", request, context)
        approve(self.access[request.id], 0, "bob", comment=request.comment)
        return access_pb2.ApproveAccessResponse(request=self.access[request.id])

    def DenyAccess(
        self, request: access_pb2.DenyAccessRequest, context: Any
    ) -> access_pb2.DenyAccessResponse:
        """End it."""
        self._take("DenyAccess", request, context)
        self._end(request.id, "DENIED", request.reason)
        return access_pb2.DenyAccessResponse(request=self.access[request.id])

    def CancelAccess(
        self, request: access_pb2.CancelAccessRequest, context: Any
    ) -> access_pb2.CancelAccessResponse:
        """End it."""
        self._take("CancelAccess", request, context)
        self._end(request.id, "CANCELLED", "")
        return access_pb2.CancelAccessResponse(request=self.access[request.id])

    def ActivateAccess(
        self, request: access_pb2.ActivateAccessRequest, context: Any
    ) -> access_pb2.ActivateAccessResponse:
        """Make it a grant."""
        self._take("ActivateAccess", request, context)
        granted = self.access[request.id]
        granted.state = access_pb2.ACCESS_STATE_ACTIVE
        granted.activated_at.seconds = ASKED_S + 120
        granted.expires_at.seconds = NOW_S
        return access_pb2.ActivateAccessResponse(request=granted, credential=CREDENTIAL)

    def RevokeAccess(
        self, request: access_pb2.RevokeAccessRequest, context: Any
    ) -> access_pb2.RevokeAccessResponse:
        """End it."""
        self._take("RevokeAccess", request, context)
        self._end(request.id, "REVOKED", request.reason)
        return access_pb2.RevokeAccessResponse(request=self.access[request.id])

    def SearchRecords(
        self, request: audit_pb2.SearchRecordsRequest, context: Any
    ) -> audit_pb2.SearchRecordsResponse:
        """Return a page of the records that have that access id, event and place."""
        self._take("SearchRecords", request, context)
        found = [record for record in self.records if _fits(request, record)]
        if not request.oldest_first:
            found.reverse()
        begin = int(request.page_token or 0)
        end = begin + min(self.page, request.page_size)
        return audit_pb2.SearchRecordsResponse(
            records=found[begin:end], next_page_token=str(end) if end < len(found) else ""
        )

    def GetCheckpoint(
        self, request: audit_pb2.GetCheckpointRequest, context: Any
    ) -> audit_pb2.GetCheckpointResponse:
        """Return the newest record, whatever it is."""
        self._take("GetCheckpoint", request, context)
        newest = self.records[-1]
        return audit_pb2.GetCheckpointResponse(sequence=newest.sequence, json=newest.json)

    def _end(self, access_id: str, reason: str, comment: str) -> None:
        ended = self.access[access_id]
        ended.state = access_pb2.ACCESS_STATE_ENDED
        ended.end_reason = reason
        ended.end_comment = comment
        ended.ended_by.CopyFrom(access_pb2.Person(uid=1103, account="bob"))
        ended.ended_at.seconds = ASKED_S + 180


def _fits(request: audit_pb2.SearchRecordsRequest, record: audit_pb2.AuditRecord) -> bool:
    fields = json.loads(record.json)
    return (
        request.access_id in {"", fields.get("access")}
        and request.record_id in {"", fields.get("id")}
        and request.event in {"", fields.get("event")}
        and record.sequence >= request.first_sequence
        and (not request.last_sequence or record.sequence <= request.last_sequence)
    )
