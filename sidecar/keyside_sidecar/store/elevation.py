"""People's requests for access in the store: decided, changed and used, each as one transaction.

What may follow is decided by pure code (access/elevation.py, access/grants.py) that is called
within the transaction, on the row as it is there, with the clock that all users of the store share.
Every change moves the store to its next generation by compare-and-swap, so no two processes change
a request from the same state (I9). Where another was faster, it is decided again, on what that has
left.

A refusal may come with a change: what looks at a request ends it, if its time is over. That is
written, and then the refusal goes on to whoever asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyside_sidecar.access.elevation import end_for
from keyside_sidecar.access.grants import fits_credential
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse, refuse_as
from keyside_sidecar.access.requests import Moment
from keyside_sidecar.errors import AccessRefused, StoreContended, StoreTampered
from keyside_sidecar.store import access_reader
from keyside_sidecar.store.access_rows import (
    AccessUse,
    decode_request,
    decode_use,
    encode_request,
    encode_use,
    name_request,
)
from keyside_sidecar.store.observed import read_observed_us
from keyside_sidecar.store.tables import access_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyside_sidecar.access.grants import Usage
    from keyside_sidecar.access.requests import (
        AccessId,
        AccessItem,
        AccessRequest,
        EndReason,
    )
    from keyside_sidecar.store.access_reader import AccessPlace
    from keyside_sidecar.store.change import Draft
    from keyside_sidecar.store.reader import Reader
    from keyside_sidecar.store.session import Session
    from keyside_sidecar.store.snapshot import Snapshot

    Row = Mapping[str, Any]
    Decide = Callable[[AccessRequest, Moment], AccessRequest]

T = TypeVar("T")
# How often something is decided again because another process changed the store meanwhile.
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class ChangedAccess:
    """A request before and after a change.

    Args:
        before: As it was; None for a new one.
        after: As it is now; equal where nothing had to be changed.
        generation: The store's, which holds that.
    """

    before: AccessRequest | None
    after: AccessRequest
    generation: int


@dataclass(frozen=True, slots=True)
class CountedUse:
    """A grant before and after a use.

    Args:
        before: As it was.
        after: As it is now.
        verdicts: Of each item: None where it is allowed, and was counted.
        generation: The store's, which holds that.
    """

    before: AccessRequest
    after: AccessRequest
    verdicts: Sequence[AccessRefused | None]
    generation: int


class AccessBook:
    """The requests for access in one store, open and ended.

    Every method raises what the store's others do (store.py). What is given as ``decide`` or
    ``make`` must be a function of its arguments: it may be called more than once.

    Args:
        session: The store's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def read_moment(self) -> Moment:
        """Return when it is now, by the clock that all users of the store share."""
        with self._session.reading() as (reader, snapshot):
            return self._read_moment(reader, snapshot)

    def list_open(self) -> list[AccessRequest]:
        """Return every request that has not ended, oldest first."""
        with self._session.reading() as (reader, snapshot):
            rows = access_reader.read_open(reader, snapshot.meta)
        return [decode_request(row) for row in rows.values()]

    def find(self, access_id: AccessId) -> AccessRequest | None:
        """Return a request, open or ended; None where there is none of that id."""
        with self._session.reading() as (reader, snapshot):
            row = _find(reader, snapshot.meta, access_id)
        return None if row is None else decode_request(row)

    def find_by_credential(self, credential_hash: bytes) -> tuple[AccessRequest, Moment] | None:
        """Return the grant, active or over, whose credential has that hash, and when that was so.

        None where no grant has it. The moment is the store's: a host's own clock may be elsewhere.
        """
        with self._session.reading() as (reader, snapshot):
            row = _find_by_credential(reader, snapshot.meta, credential_hash)
            moment = self._read_moment(reader, snapshot)
        return None if row is None else (decode_request(row), moment)

    def list_ended(self, *, before: int | None, limit: int) -> list[AccessRequest]:
        """Return a page of the requests that have ended, newest first.

        Args:
            before: Only those with smaller ``ended_number``; None begins with the newest.
            limit: At most so many.
        """
        with self._session.reading() as (reader, snapshot):
            rows = access_reader.read_ended_page(reader, snapshot.meta, before=before, limit=limit)
        return [decode_request(row) for row in rows]

    def read_uses(self, access_id: AccessId, *, after: int = 0, limit: int) -> list[AccessUse]:
        """Return at most ``limit`` uses of a grant, from number ``after`` + 1 on.

        Raises:
            AccessRefused: There is no such request.
        """
        with self._session.reading() as (reader, snapshot):
            request = _find(reader, snapshot.meta, access_id)
            if request is None:
                raise refuse("ACCESS_NOT_FOUND")
            if after == 0:
                access_reader.check_use_set(reader, request)
            rows = access_reader.read_uses(reader, request, after=after, limit=limit)
        return [decode_use(row, request["key_name"]) for row in rows]

    def insert(
        self, make: Callable[[Sequence[AccessRequest], Moment], AccessRequest]
    ) -> ChangedAccess:
        """Write a new request.

        Args:
            make: Is given all that have not ended and the moment, and returns the new one.

        Raises:
            AccessRefused: As ``make`` does; nothing was written.
        """

        def write() -> ChangedAccess:
            with self._session.changing() as draft:
                rows = access_reader.read_open(draft.reader, draft.snapshot.meta)
                made = make([decode_request(row) for row in rows.values()], self._moment(draft))
                row = draft.change.add_access(encode_request(made))
                self._finish(draft, [row])
                return ChangedAccess(None, decode_request(row), draft.change.generation)

        return _repeat(write)

    def change(self, access_id: AccessId, decide: Decide) -> ChangedAccess:
        """Change a request.

        Args:
            access_id: Which.
            decide: Is given the request and the moment, and returns it as it shall be.

        Raises:
            AccessRefused: There is none, or as ``decide`` does; then what its ``after`` says was
                written, and nothing else.
        """

        def write() -> ChangedAccess:
            refusal: AccessRefused | None = None
            with self._session.changing() as draft:
                row = _find(draft.reader, draft.snapshot.meta, access_id)
                if row is None:
                    raise refuse("ACCESS_NOT_FOUND")
                before = decode_request(row)
                try:
                    after = decide(before, self._moment(draft))
                except AccessRefused as error:
                    if error.after is None:
                        raise
                    refusal, after = error, error.after
                done = self._write(draft, row, before, after)
            if refusal is not None:
                raise refusal
            return done

        return _repeat(write)

    def use(
        self,
        credential_hash: bytes,
        decide: Callable[[AccessRequest, Moment], Usage],
        items: Sequence[AccessItem],
    ) -> CountedUse:
        """Use the grant whose credential has that hash; what is allowed was counted, durably.

        Args:
            credential_hash: Of the credential that was presented.
            decide: Is given the grant and the moment, and returns what came of the use.
            items: What it is used for, as many as there are verdicts.

        Raises:
            AccessRefused: No grant has that credential, or as ``decide`` does; then what its
                ``after`` says was written, and nothing else.
        """

        def write() -> CountedUse:
            refusal: AccessRefused | None = None
            verdicts: Sequence[AccessRefused | None] = ()
            with self._session.changing() as draft:
                row = _find_by_credential(draft.reader, draft.snapshot.meta, credential_hash)
                if row is None:
                    raise refuse_as(Reason.CREDENTIAL_REFUSED)
                before, moment = decode_request(row), self._moment(draft)
                try:
                    usage = decide(before, moment)
                    after, verdicts = usage.request, usage.verdicts
                except AccessRefused as error:
                    if error.after is None:
                        raise
                    refusal, after = error, error.after
                allowed = (
                    [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
                    if refusal is None
                    else []
                )
                uses = [
                    encode_use(before.id, number, moment.now_us, item)
                    for number, item in enumerate(allowed, before.used + 1)
                ]
                done = self._write(draft, row, before, after, uses)
            if refusal is not None:
                raise refusal
            return CountedUse(before, done.after, tuple(verdicts), done.generation)

        return _repeat(write)

    def review(self, decide: Decide) -> list[ChangedAccess]:
        """Change what has to be changed of all requests that have not ended; often nothing.

        Args:
            decide: Is given each request and the moment, and returns it as it shall be.
        """
        with self._session.reading() as (reader, snapshot):
            moment = self._read_moment(reader, snapshot)
            rows = access_reader.read_open(reader, snapshot.meta)
        found = [decode_request(row) for row in rows.values()]
        if all(decide(request, moment) == request for request in found):
            return []
        return self._change_all(decide)

    def end_all(self, end_reason: EndReason, comment: str = "") -> list[ChangedAccess]:
        """End every request and grant, and return those that lived."""
        return self._change_all(
            lambda request, moment: end_for(request, moment, end_reason, comment)
        )

    def verify_page(self, place: AccessPlace | None, limit: int) -> AccessPlace | None:
        """Check some of all rows, as access_reader.py's function of that name does."""
        with self._session.reading() as (reader, snapshot):
            return access_reader.verify_page(reader, snapshot.meta, place, limit)

    def _change_all(self, decide: Decide) -> list[ChangedAccess]:
        def write() -> list[ChangedAccess]:
            with self._session.changing() as draft:
                rows = access_reader.read_open(draft.reader, draft.snapshot.meta)
                moment, written, changes = self._moment(draft), [], []
                for row in rows.values():
                    before = decode_request(row)
                    after = decide(before, moment)
                    if after != before:
                        new = draft.change.change_access(row, encode_request(after))
                        written.append(new)
                        changes.append((before, decode_request(new)))
                if not written:
                    return []
                self._finish(draft, written)
                generation = draft.change.generation
                return [ChangedAccess(before, after, generation) for before, after in changes]

        return _repeat(write)

    def _read_moment(self, reader: Reader, snapshot: Snapshot) -> Moment:
        return Moment(
            self._session.database.read_time_us(reader.connection),
            read_observed_us(reader, snapshot.meta, self._session.witness),
            self._session.boot_clock.read(),
        )

    def _moment(self, draft: Draft) -> Moment:
        now_us = self._session.database.read_time_us(draft.reader.connection)
        return Moment(now_us, draft.observed_us, self._session.boot_clock.read())

    def _write(
        self,
        draft: Draft,
        row: Row,
        before: AccessRequest,
        after: AccessRequest,
        uses: Sequence[Row] = (),
    ) -> ChangedAccess:
        if after == before:
            return ChangedAccess(before, before, row["generation"])
        if not before.is_open or after.id != before.id or len(uses) != after.used - before.used:
            raise RuntimeError("no decision leads from that request to this one")
        new = draft.change.change_access(row, encode_request(after), uses)
        self._finish(draft, [new])
        if uses:
            access_reader.read_uses(draft.reader, new, after=before.used, limit=len(uses))
        return ChangedAccess(before, decode_request(new), draft.change.generation)

    def _finish(self, draft: Draft, written: Sequence[Row]) -> None:
        """Close the change, and check that what was written is there, and fits.

        Raises:
            StoreTampered: It isn't.
        """
        meta = draft.finish_access()
        rows = access_reader.read_open(draft.reader, meta)
        for row in written:
            access_id = row["id"]
            found = rows.get(access_id)
            if row["ended_number"] is not None:
                found = access_reader.read_ended(
                    draft.reader, meta, access_requests.c.id == access_id
                )
            if found != row:
                raise StoreTampered(name_request(access_id))


def _find(reader: Reader, meta: Row, access_id: str) -> Row | None:
    found = access_reader.read_open(reader, meta).get(access_id)
    if found is not None:
        return found
    return access_reader.read_ended(reader, meta, access_requests.c.id == access_id)


def _find_by_credential(reader: Reader, meta: Row, credential_hash: bytes) -> Row | None:
    for row in access_reader.read_open(reader, meta).values():
        if fits_credential(row["credential_hash"], credential_hash):
            return row
    which = access_requests.c.credential_hash == credential_hash
    return access_reader.read_ended(reader, meta, which)


def _repeat(write: Callable[[], T]) -> T:
    for _ in range(_TRIES - 1):
        try:
            return write()
        except StoreContended:
            continue
    return write()
