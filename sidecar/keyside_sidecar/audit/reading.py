"""Finding records in the log's files, newest first or oldest first, a page at a time.

The files are not trusted: a line that is no record is counted and passed over. Nothing here proves
that a record is authentic; ``keyside audit verify`` does. Reads files, so it is called in a thread.

A page ends when it is full, or when enough lines were looked at, or when it took long; then it may
be short or empty, and its token says where to go on. What is not searched is not read: newest-first
pages read the files from their ends, in blocks, and where a page begins is found by halving. One
finished file is open at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside.audit import encode_json, parse_line, parse_sequence, read_checkpoint
from keyside.errors import MalformedRecord
from keyside_sidecar.audit.blocks import RawLine, find_line, read_backward, read_forward
from keyside_sidecar.audit.places import Places
from keyside_sidecar.audit.records import format_time
from keyside_sidecar.errors import AuditUnavailable, BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

_MAX_LOOKED_AT: Final = 200_000
_CLOCK_EVERY: Final = 256
_TOKEN: Final = re.compile(r"([no])([1-9][0-9]{0,17})", re.ASCII)
_CHECKPOINT_MARK: Final = b'"event":"checkpoint"'
_TIME_MARK: Final = b'"time":"'
_TIME_LENGTH: Final = 27


@dataclass(frozen=True, slots=True)
class Filters:
    """What a record must meet; what is empty or None is not asked.

    ``event`` is met by an event of that name, and by one that begins with it and a dot. ``after``
    is met by a time that is not before it, ``before`` by one that is.
    """

    key: str = ""
    account: str = ""
    uid: int | None = None
    access: str = ""
    event: str = ""
    outcome: str = ""
    record_id: str = ""
    after: datetime | None = None
    before: datetime | None = None
    first_sequence: int = 0
    last_sequence: int = 0


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """One record: its sequence number, and its line without its end."""

    sequence: int
    json: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the records that were found.

    Args:
        records: In the order asked for.
        next_page_token: Where to go on; ``""`` at the end.
        bad_lines: How many lines were passed over that are no records.
    """

    records: tuple[FoundRecord, ...]
    next_page_token: str
    bad_lines: int


def search_records(
    path: Path,
    filters: Filters,
    *,
    page_size: int,
    page_token: str = "",
    oldest_first: bool = False,
    limit_s: float = 60.0,
) -> Page:
    """Return the next records that meet the filters.

    Args:
        path: The log's current file.
        filters: What they must meet.
        page_size: How many at most.
        page_token: What the page before has given; ``""`` for the first one.
        oldest_first: The order.
        limit_s: After this time the page ends as it is.

    Raises:
        BadRequest: The token is none of ours, or of the other order.
        AuditUnavailable: The files can't be read.
    """
    first, last = _find_limits(filters, page_token, oldest_first=oldest_first)
    sieve = _Sieve(filters)
    records: list[FoundRecord] = []
    looked_at = 0
    ends_s = time.monotonic() + limit_s
    is_over = False
    try:
        with _open_files(path) as files:
            walk = _walk_forward if oldest_first else _walk_backward
            for raw in walk(files, first, last):
                sequence = parse_sequence(raw.data)
                if not raw.ended:
                    continue  # it is being written, or was when its writer was killed
                if sequence is None:
                    sieve.bad_lines += 1
                    continue
                if (sequence > last) if oldest_first else (sequence < first):
                    break
                if not first <= sequence <= last:
                    continue
                if len(records) >= page_size or looked_at >= _MAX_LOOKED_AT or is_over:
                    token = f"{'o' if oldest_first else 'n'}{sequence}"
                    return Page(tuple(records), token, sieve.bad_lines)
                looked_at += 1
                is_over = not looked_at % _CLOCK_EVERY and time.monotonic() > ends_s
                if sieve.passes(raw.data):
                    records.append(FoundRecord(sequence, raw.data.decode("ascii")))
    except OSError as error:
        raise AuditUnavailable from error
    return Page(tuple(records), "", sieve.bad_lines)


def find_checkpoint(path: Path) -> FoundRecord | None:
    """Return the newest checkpoint; None where there is none.

    Raises:
        AuditUnavailable: The files can't be read.
    """
    try:
        with _open_files(path) as files:
            for raw in _walk_backward(files, 0, _NO_LIMIT):
                if _CHECKPOINT_MARK in raw.data and raw.ended:
                    try:
                        line = read_checkpoint(parse_line(raw.data)).line
                    except MalformedRecord:
                        continue
                    return FoundRecord(line.sequence, raw.data.decode("ascii"))
    except OSError as error:
        raise AuditUnavailable from error
    return None


_NO_LIMIT: Final = 1 << 62


def _find_limits(filters: Filters, token: str, *, oldest_first: bool) -> tuple[int, int]:
    first, last = filters.first_sequence, filters.last_sequence or _NO_LIMIT
    if not token:
        return first, last
    match = _TOKEN.fullmatch(token)
    if match is None or (match[1] == "o") is not oldest_first:
        raise BadRequest("page_token", "is not one of a page in this order")
    if oldest_first:
        return max(first, int(match[2])), last
    return first, min(last, int(match[2]))


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """One of the log's files.

    Args:
        path: What it is called.
        first_sequence: Its first record, as its name says.
        descriptor: The current file's, which is open: it may get its final name meanwhile.
    """

    path: Path
    first_sequence: int
    descriptor: int | None = None


@contextlib.contextmanager
def _open_files(path: Path) -> Iterator[list[_File]]:
    """Return the log's files, oldest first; the current one is open meanwhile."""
    places = Places(path)
    # First of all: if it gets its final name now, it is found again by that, and left out.
    current = _open(path)
    try:
        files = [_File(name, places.parse_finished(name)) for name in places.list_finished()]
        if current is not None:
            if files and _is_same(files[-1].path, current):
                files.pop()
            size = os.fstat(current).st_size
            first = next(
                (
                    sequence
                    for raw in read_forward(current, 0, size)
                    if (sequence := parse_sequence(raw.data)) is not None
                ),
                _NO_LIMIT,
            )
            files.append(_File(path, first, current))
        yield files
    finally:
        if current is not None:
            os.close(current)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None


def _is_same(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    return False


@contextlib.contextmanager
def _opened(file: _File) -> Iterator[tuple[int, int]]:
    """Return a file's descriptor and its size; of one that was taken away, that of nothing."""
    if file.descriptor is not None:
        yield file.descriptor, os.fstat(file.descriptor).st_size
        return
    descriptor = _open(file.path)
    if descriptor is None:  # moved to an archive just now
        yield -1, 0
        return
    try:
        yield descriptor, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _walk_backward(files: list[_File], first: int, last: int) -> Iterator[RawLine]:
    for file in reversed(files):
        if file.first_sequence > last:
            continue
        with _opened(file) as (descriptor, size):
            end = find_line(descriptor, size, last + 1) if last < _NO_LIMIT else size
            yield from read_backward(descriptor, end)
        if file.first_sequence <= first:
            return


def _walk_forward(files: list[_File], first: int, last: int) -> Iterator[RawLine]:
    for index, file in enumerate(files):
        if file.first_sequence > last:
            return
        if index + 1 < len(files) and files[index + 1].first_sequence <= first:
            continue
        with _opened(file) as (descriptor, size):
            start = find_line(descriptor, size, first) if first > 1 else 0
            yield from read_forward(descriptor, start, size)


# -- filters ----------------------------------------------------------------------------------


class _Sieve:
    """Judges lines: by their bytes first, which is quick, and then by what they say."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._after = "" if filters.after is None else format_time(filters.after)
        self._before = "" if filters.before is None else format_time(filters.before)
        self.bad_lines = 0
        # Of a line that meets the filter, each of these is a part.
        self._parts = tuple(
            part.encode("ascii")
            for part in (
                f'"key":{encode_json(filters.key)}' if filters.key else "",
                f'"account":{encode_json(filters.account)}' if filters.account else "",
                f'"uid":{filters.uid}' if filters.uid is not None else "",
                f'"access":{encode_json(filters.access)}' if filters.access else "",
                f'"outcome":{encode_json(filters.outcome)}' if filters.outcome else "",
                f'"id":{encode_json(filters.record_id)}' if filters.record_id else "",
            )
            if part
        )
        name = encode_json(filters.event)[:-1].encode("ascii")
        self._events = (b'"event":%b"' % name, b'"event":%b.' % name) if filters.event else ()

    def passes(self, data: bytes) -> bool:
        """Return whether a line is a record that meets the filters."""
        for part in self._parts:
            if part not in data:
                return False
        if self._events and not any(part in data for part in self._events):
            return False
        if (self._after or self._before) and not self._is_in_time(data):
            return False
        try:
            fields = parse_line(data).fields
        except MalformedRecord:
            self.bad_lines += 1
            return False
        return self._meets(fields)

    def _is_in_time(self, data: bytes) -> bool:
        at = data.find(_TIME_MARK) + len(_TIME_MARK)
        time = data[at : at + _TIME_LENGTH].decode("ascii", "replace")
        return self._after <= time and (not self._before or time < self._before)

    def _meets(self, fields: dict[str, Any]) -> bool:
        wanted = self._filters
        caller = fields.get("caller")
        who = caller if isinstance(caller, dict) else {}
        event: str = fields["event"]
        return (
            (not wanted.key or fields.get("key") == wanted.key or _has_item(fields, wanted.key))
            and (not wanted.account or who.get("account") == wanted.account)
            and (wanted.uid is None or who.get("uid") == wanted.uid)
            and (not wanted.access or fields.get("access") == wanted.access)
            and (not wanted.outcome or fields.get("outcome") == wanted.outcome)
            and (not wanted.record_id or fields.get("id") == wanted.record_id)
            and (not wanted.event or event == wanted.event or event.startswith(f"{wanted.event}."))
        )


def _has_item(fields: dict[str, Any], key: str) -> bool:
    """Return whether a record is of a batch that used a key."""
    details = fields.get("details")
    items = details.get("items") if isinstance(details, dict) else None
    return isinstance(items, list) and any(
        isinstance(item, dict) and item.get("key") == key for item in items
    )
