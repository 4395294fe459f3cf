"""Audit: reads this host's audit log, for auditors and for whoever made a record."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.audit.reading import find_checkpoint, search_records
from keyside_sidecar.errors import (
    AuditUnavailable,
    BadRequest,
    CheckpointNotFound,
    Refused,
    StoreUnavailable,
)
from keyside_sidecar.keys.threads import StoreThreads
from keyside_sidecar.services.shapes import AboutNothing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.audit.reading import Filters, FoundRecord
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.shapes import Facts

T = TypeVar("T")

_DEFAULT_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_READERS: Final = 2
# Of all callers, at work or waiting; each has one.
_MAX_SEARCHES: Final = 16
# A page ends early enough to be answered in time, also after others.
_SEARCH_S: Final = 2.0
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class SearchRecords(AboutNothing):
    """Find records.

    Args:
        filters: A record must fit all of them.
        page_size: How many; 0 for the usual number.
        page_token: Where the page begins.
        oldest_first: In place of the newest.
    """

    filters: Filters
    page_size: int
    page_token: str
    oldest_first: bool


@dataclass(frozen=True, slots=True)
class GetCheckpoint(AboutNothing):
    """Return the newest checkpoint."""


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some of the records that were looked for; the next page's token, or ``""``."""

    records: Sequence[FoundRecord]
    next_page_token: str = ""

    def facts(self) -> Facts:
        """Return nothing: reading the log is not recorded in it."""
        return {}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's record."""

    record: FoundRecord

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


class AuditService:
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

    async def search_records(self, caller: Caller, command: SearchRecords) -> RecordPage:
        """Find records. Who is no auditor finds their own.

        Raises:
            BadRequest: A field is wrong.
            Refused: TOO_MANY_CALLS: the caller's last search goes on, or many others' wait.
            AuditUnavailable: The log can't be read.
        """
        if command.page_size > _MAX_PAGE:
            raise BadRequest("page_size", f"is {command.page_size}; at most {_MAX_PAGE}")
        filters = command.filters
        if not self._policy.may_read_all_audit(caller):
            if filters.uid not in (None, caller.uid):
                return RecordPage(())
            filters = replace(filters, uid=caller.uid)
        search = partial(
            search_records,
            self._path,
            filters,
            page_size=command.page_size or _DEFAULT_PAGE,
            page_token=command.page_token,
            oldest_first=command.oldest_first,
            limit_s=_SEARCH_S,
        )
        page = await self._read(caller.uid, search)
        return RecordPage(page.records, page.next_page_token)

    async def get_checkpoint(self, caller: Caller, _command: GetCheckpoint) -> Checkpoint:
        """Return the newest checkpoint.

        Raises:
            Refused: The caller is neither auditor nor operator; or TOO_MANY_CALLS.
            CheckpointNotFound: There is none yet.
            AuditUnavailable: The log can't be read.
        """
        if not (self._policy.may_read_all_audit(caller) or self._policy.operators.include(caller)):
            raise Refused(Reason.NOT_ALLOWED)
        found = await self._read(caller.uid, partial(find_checkpoint, self._path))
        if found is None:
            raise CheckpointNotFound
        return Checkpoint(found)

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
