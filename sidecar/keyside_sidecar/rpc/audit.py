"""keyside.v1.AuditService: reads this host's audit log, for auditors and for who made a record."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from keyside.v1 import audit_pb2 as pb
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.audit.reading import Filters, find_checkpoint, search_records
from keyside_sidecar.errors import (
    AuditUnavailable,
    BadRequest,
    CheckpointNotFound,
    Refused,
    StoreUnavailable,
)
from keyside_sidecar.keys.threads import StoreThreads

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from google.protobuf.timestamp_pb2 import Timestamp

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.audit.reading import FoundRecord
    from keyside_sidecar.rpc.guard import Call

T = TypeVar("T")

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_READERS: Final = 2
# Of all callers, at work or waiting; each has one.
_MAX_SEARCHES: Final = 16
# A page ends early enough to be answered in time, also after others.
_SEARCH_S: Final = 2.0
_TIMEOUT_S: Final = 30.0
_MAX_TEXT: Final = 256


class AuditServicer:
    """Finds records.

    Args:
        path: The log that is being written.
        policy: For who may read all of it.
    """

    def __init__(self, path: Path, policy: Policy) -> None:
        self._path = path
        self._policy = policy
        self._threads = StoreThreads("keyside-audit-read", _READERS)
        self._busy: set[int] = set()

    async def search_records(
        self, call: Call, request: pb.SearchRecordsRequest
    ) -> pb.SearchRecordsResponse:
        """Find records. Who is no auditor finds their own.

        Raises:
            BadRequest: A field is wrong.
            Refused: TOO_MANY_CALLS: the caller's last search goes on, or many others' wait.
            AuditUnavailable: The log can't be read.
        """
        if request.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {request.page_size}; at most {_MAX_PAGE}")
        filters = _read_filters(request)
        if not self._policy.may_read_all_audit(call.subject):
            own = call.subject.uid
            if filters.uid not in (None, own):
                return pb.SearchRecordsResponse()
            filters = dataclasses.replace(filters, uid=own)
        search = partial(
            search_records,
            self._path,
            filters,
            page_size=request.page_size or _DEFAULT_PAGE,
            page_token=request.page_token,
            oldest_first=request.oldest_first,
            limit_s=_SEARCH_S,
        )
        page = await self._read(call.subject.uid, search)
        return pb.SearchRecordsResponse(
            records=[_make_record(record) for record in page.records],
            next_page_token=page.next_page_token,
        )

    async def get_checkpoint(
        self, call: Call, _request: pb.GetCheckpointRequest
    ) -> pb.GetCheckpointResponse:
        """Return the newest checkpoint.

        Raises:
            Refused: The caller is neither auditor nor operator; or TOO_MANY_CALLS.
            CheckpointNotFound: There is none yet.
            AuditUnavailable: The log can't be read.
        """
        subject = call.subject
        if not (
            self._policy.may_read_all_audit(subject) or self._policy.operators.include(subject)
        ):
            raise Refused(Reason.NOT_ALLOWED)
        found = await self._read(subject.uid, partial(find_checkpoint, self._path))
        if found is None:
            raise CheckpointNotFound
        return pb.GetCheckpointResponse(sequence=found.sequence, json=found.json)

    async def _read(self, uid: int, read: Callable[[], T]) -> T:
        """Read the log's files for a caller, who is served one such call at a time.

        It counts until its thread is done with it, and not only until its caller has gone.
        """
        if uid in self._busy or len(self._busy) >= _MAX_SEARCHES:
            raise Refused(Reason.TOO_MANY_CALLS)
        self._busy.add(uid)
        loop = asyncio.get_running_loop()
        begun = False

        def work() -> T:
            nonlocal begun
            begun = True
            try:
                return read()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(self._busy.discard, uid)

        try:
            return await self._threads.run(work, timeout_s=_TIMEOUT_S)
        except StoreUnavailable as error:
            raise AuditUnavailable from error
        finally:
            if not begun:  # and never will: it was cancelled while it waited
                self._busy.discard(uid)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()


def _read_filters(request: pb.SearchRecordsRequest) -> Filters:
    for field in ("key", "account", "access_id", "event", "outcome", "record_id", "page_token"):
        if len(getattr(request, field)) > _MAX_TEXT:
            raise BadRequest(field, f"is longer than {_MAX_TEXT} characters")
    return Filters(
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


def _read_time(field: str, stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadRequest(field, "is not a time of the years 1 to 9999") from None


def _make_record(record: FoundRecord) -> pb.AuditRecord:
    return pb.AuditRecord(sequence=record.sequence, json=record.json)
