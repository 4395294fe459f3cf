"""keyside.v1.AuditService as messages: requests to commands, results to responses."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Final

from keyside.v1 import audit_pb2 as pb
from keyside_sidecar.access.policy import Operation
from keyside_sidecar.api.rows import Row
from keyside_sidecar.audit.reading import Filters
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.services.audit import GetCheckpoint, SearchRecords

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from keyside_sidecar.services.audit import Checkpoint, RecordPage

_MAX_TEXT: Final = 256

SERVICE: Final = pb.DESCRIPTOR.services_by_name["AuditService"]
ROWS: Final = (
    Row("SearchRecords", Operation.READ_AUDIT),
    Row("GetCheckpoint", Operation.READ_AUDIT),
)


def read_search_records(request: pb.SearchRecordsRequest) -> SearchRecords:
    """Return what is asked for.

    Raises:
        BadRequest: A text is too long, or a time is none.
    """
    for field in ("key", "account", "access_id", "event", "outcome", "record_id", "page_token"):
        if len(getattr(request, field)) > _MAX_TEXT:
            raise BadRequest(field, f"is longer than {_MAX_TEXT} characters")
    filters = Filters(
        key=request.key,
        account=request.account,
        uid=request.uid if request.HasField("uid") else None,
        access=request.access_id,
        event=request.event,
        outcome=request.outcome,
        record_id=request.record_id,
        after=_read_time("after", request.after) if request.HasField("after") else None,
        before=_read_time("before", request.before) if request.HasField("before") else None,
        first_sequence=request.first_sequence,
        last_sequence=request.last_sequence,
    )
    return SearchRecords(filters, request.page_size, request.page_token, request.oldest_first)


def write_search_records(page: RecordPage) -> pb.SearchRecordsResponse:
    """Return the response."""
    return pb.SearchRecordsResponse(
        records=[
            pb.AuditRecord(sequence=record.sequence, json=record.json) for record in page.records
        ],
        next_page_token=page.next_page_token,
    )


def read_get_checkpoint(_request: pb.GetCheckpointRequest) -> GetCheckpoint:
    """Return what is asked for."""
    return GetCheckpoint()


def write_get_checkpoint(checkpoint: Checkpoint) -> pb.GetCheckpointResponse:
    """Return the response."""
    record = checkpoint.record
    return pb.GetCheckpointResponse(sequence=record.sequence, json=record.json)


def _read_time(field: str, stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadRequest(field, "is not a time of the years 1 to 9999") from None
