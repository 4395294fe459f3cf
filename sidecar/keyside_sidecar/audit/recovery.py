"""Taking up a log where the last run has left it, whatever that was in the middle of.

From the last checkpoint on, which is signed and was on the disk before anything else was done, the
chain is followed to its end. What does not fit there is what a crash has left of records that
nobody was told to be written: it is cut off. (Half a line is dropped; anything more is kept in a
file of its own, because it is evidence.) Who changed the log before its last checkpoint is found by
``keyside audit verify``, not here; but our key must belong to the last checkpoint (``signing.py``).

What stands after the last checkpoint fits the chain, and whoever can write to the file can make
that. So it is counted, and it may raise the store's generation but not lower it; and where a run
begins (after the last one's proper end, or in a new log) it may be what the recorder itself writes
before its first checkpoint, and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyside._atomic import write_all
from keyside.audit import (
    MAX_LINE_BYTES,
    START_EVENTS,
    Checkpoint,
    Line,
    parse_line,
    read_checkpoint,
)
from keyside.errors import MalformedRecord
from keyside_sidecar.audit.blocks import RawLine, read_backward, read_forward
from keyside_sidecar.audit.generations import Generation, raise_generation, read_generation
from keyside_sidecar.audit.places import Places, new_file_in
from keyside_sidecar.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

# A record's writer (None: the supervisor, or the recorder itself) and its id.
Identity = tuple[int | None, str]

KEPT_IDS: Final = 20_000
_CHECKPOINT_MARK: Final = b'"event":"checkpoint"'
_MODE: Final = 0o600
_EX_CONFIG: Final = 78


@dataclass(slots=True)
class Tail:
    """Where a log ends.

    Args:
        descriptor: The current file, opened for writing; None where there is none: the last run
            was killed between two files.
        size: How much of the current file is sound.
        first_sequence: Its first record.
        began: Its first record's time.
        sequence: The last record's sequence number.
        head: Its hash.
        checkpoint: The last checkpoint.
        is_closed: Whether the last run ended properly.
        unsealed: How many records stand after the last checkpoint.
        torn_bytes: How much was cut off.
        kept_as: The name of the file that keeps it, or ``""``.
        previous_file: The newest finished file's name, or ``""``.
        generation: The store's id, and how far it had come at least.
        recent_ids: The last records' writers and ids.
    """

    descriptor: int | None
    size: int
    first_sequence: int
    began: str
    sequence: int
    head: bytes
    checkpoint: Checkpoint
    is_closed: bool = False
    unsealed: int = 0
    torn_bytes: int = 0
    kept_as: str = ""
    previous_file: str = ""
    generation: Generation | None = None
    recent_ids: deque[Identity] = field(default_factory=lambda: deque(maxlen=KEPT_IDS))


def recover_log(places: Places) -> Tail:
    """Find the end of a log, and cut off what a crash has left behind it.

    Raises:
        StartupError: There is no log, somebody else can get at it, or it has no checkpoint.
        OSError: It can't be read or written.
    """
    finished = places.list_finished()
    current = _open_log(places.log)
    size = os.fstat(current).st_size if current is not None else 0
    opened = [(places.log, current, size)] if current is not None else []
    descriptors = []
    try:
        for path in reversed(finished):
            found = _find_checkpoint(opened)
            if found is not None:
                break
            descriptor = _open_log(path)
            assert descriptor is not None  # noqa: S101
            descriptors.append(descriptor)
            opened.insert(0, (path, descriptor, os.fstat(descriptor).st_size))
        found = _find_checkpoint(opened)
        tail = _follow(places, opened, *_require(found, places, is_there=bool(opened)))
        tail.previous_file = finished[-1].name if finished else ""
        _gather_ids(tail, opened, finished)
    except BaseException:
        if current is not None:
            os.close(current)
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return tail


def _find_checkpoint(
    opened: list[tuple[Path, int, int]],
) -> tuple[int, RawLine, Checkpoint] | None:
    """Return the last checkpoint: the index of its file, its place, and itself."""
    for index in range(len(opened) - 1, -1, -1):
        _path, descriptor, size = opened[index]
        for line in read_backward(descriptor, size):
            if _CHECKPOINT_MARK not in line.data or not line.ended:
                continue
            try:
                return index, line, read_checkpoint(parse_line(line.data))
            except MalformedRecord:
                continue
    return None


def _require(
    found: tuple[int, RawLine, Checkpoint] | None, places: Places, *, is_there: bool
) -> tuple[int, RawLine, Checkpoint]:
    if found is None:
        raise _no_log(places, is_there=is_there)
    return found


def _follow(
    places: Places,
    opened: list[tuple[Path, int, int]],
    index: int,
    place: RawLine,
    checkpoint: Checkpoint,
) -> Tail:
    """Follow the chain from the last checkpoint to its end."""
    path, current, size = opened[-1]
    is_current = path == places.log
    seal = checkpoint.seal
    sealed = checkpoint.line
    tail = Tail(
        descriptor=current if is_current else None,
        size=0,
        first_sequence=sealed.sequence + 1,
        began="",
        sequence=sealed.sequence,
        head=sealed.hash,
        checkpoint=checkpoint,
        is_closed=seal.kind == "stop" or sealed.sequence == 1,  # new, or properly ended
    )
    if seal.store_id is not None and seal.store_generation is not None:
        tail.generation = (seal.store_id, seal.store_generation)
    for number in range(index, len(opened)):
        _path, descriptor, limit = opened[number]
        start = place.offset + len(place.data) + 1 if number == index else 0
        end = _follow_file(tail, descriptor, start, limit)
        if end < limit and not (number == len(opened) - 1 and is_current):
            raise _damaged(places, opened[number][0], tail.sequence + 1)
        tail.size = end if number == len(opened) - 1 else 0
    if is_current:
        first = next(read_forward(current, 0, tail.size), None)
        line = None if first is None else _parse(first)
        if line is None and tail.size:
            raise _cut_meanwhile()
        if line is not None:
            tail.first_sequence, tail.began = line.sequence, str(line.fields["time"])
        _cut_off(places, tail, current, size)
    return tail


def _follow_file(tail: Tail, descriptor: int, start: int, limit: int) -> int:
    """Follow the chain through one file; return where it ends there."""
    end = start
    sealed = tail.checkpoint
    begins = sealed.seal.kind == "stop" or sealed.line.sequence == 1
    for raw in read_forward(descriptor, start, limit):
        line = _parse(raw)
        if line is None or line.sequence != tail.sequence + 1 or not line.follows(tail.head):
            break
        # (A checkpoint that could be read would be the last one.)
        if line.event == "checkpoint" or (begins and line.event not in START_EVENTS):
            break
        tail.sequence, tail.head = line.sequence, line.hash
        tail.generation = raise_generation(tail.generation, read_generation(line.fields))
        tail.unsealed += 1
        tail.is_closed = False
        end = raw.offset + len(raw.data) + 1
    return end


def _parse(raw: RawLine) -> Line | None:
    try:
        return parse_line(raw.data) if raw.ended else None
    except MalformedRecord:
        return None


def _cut_off(places: Places, tail: Tail, descriptor: int, size: int) -> None:
    """Cut off what does not belong to the chain; keep it, if it is more than half a line."""
    tail.torn_bytes = size - tail.size
    if not tail.torn_bytes:
        return
    tail.is_closed = False
    rest = next(read_forward(descriptor, tail.size, size), None)
    if rest is None:
        raise _cut_meanwhile()
    if rest.ended or tail.torn_bytes > MAX_LINE_BYTES:
        tail.kept_as = _keep_aside(
            descriptor, tail.size, size, places.name_damaged(tail.sequence + 1)
        )
    if os.fstat(descriptor).st_size < tail.size:
        raise _cut_meanwhile()  # it would be made longer, with zeros
    os.ftruncate(descriptor, tail.size)
    os.fsync(descriptor)


def _keep_aside(descriptor: int, start: int, end: int, path: Path) -> str:
    """Copy a part of a file into a new one, whose name is returned.

    Raises:
        OSError: It could not be copied; ESTALE: the file has become shorter meanwhile.
    """
    with new_file_in(path.parent) as file:
        position = start
        while position < end:
            block = os.pread(descriptor, min(1 << 20, end - position), position)
            if not block:
                raise _cut_meanwhile()
            write_all(file.descriptor, block)
            position += len(block)
        name, number = path.name, 1
        while True:
            # What is there already, whatever it is, is neither followed nor overwritten.
            try:
                file.add(path.name)
            except FileExistsError:
                number += 1
                path = path.with_name(f"{name}-{number}")
            else:
                return path.name


def _cut_meanwhile() -> OSError:
    return OSError(errno.ESTALE, "the log's file was truncated")


def _gather_ids(tail: Tail, opened: list[tuple[Path, int, int]], finished: list[Path]) -> None:
    """Take note of the last records, in whatever file: a worker may send them again."""
    found: list[Identity] = []
    for _path, descriptor, _size in reversed(opened):
        _gather_from(descriptor, found)
    known = {path for path, _descriptor, _size in opened}
    for path in reversed([path for path in finished if path not in known]):
        if len(found) >= KEPT_IDS:
            break
        earlier = _open_log(path)
        if earlier is not None:
            try:
                _gather_from(earlier, found)
            finally:
                os.close(earlier)
    tail.recent_ids.extend(reversed(found))


def _gather_from(descriptor: int, found: list[Identity]) -> None:
    for line in read_backward(descriptor, os.fstat(descriptor).st_size):
        if len(found) >= KEPT_IDS:
            break
        identity = _read_identity(line.data)
        if identity is not None:
            found.append(identity)


def _read_identity(data: bytes) -> Identity | None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    worker, identity = fields.get("worker"), fields.get("id")
    if isinstance(identity, str) and (worker is None or isinstance(worker, int)):
        return worker, identity
    return None


def _open_log(path: Path) -> int | None:
    """Open a file of the log, if only our account can write to it; None where there is none."""
    try:
        descriptor = os.open(
            path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        )
    except FileNotFoundError:
        return None
    status = os.fstat(descriptor)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        os.close(descriptor)
        raise StartupError(
            f"{path} is not a regular file that only the sidecar's account can write to",
            remedy=f"chown it to that account, chmod 0600 {path}; find out who could write to it",
            exit_code=_EX_CONFIG,
        )
    return descriptor


def tell_what_to_do_without_log(places: Places) -> str:
    """Return what to do where there is no log, or only a part of one."""
    begin = places.tell_how_to_begin_anew()
    return f"if there was one, find out where it went, and put it back; otherwise {begin}"


def _no_log(places: Places, *, is_there: bool) -> StartupError:
    if is_there:
        return StartupError(
            f"the audit log {places.log} holds no checkpoint: it was changed or cut off",
            remedy=f"find out why (keyside audit verify {places.log.parent}); then "
            f"{places.tell_how_to_begin_anew()}",
            exit_code=_EX_CONFIG,
        )
    return StartupError(
        f"there is no audit log at {places.log}",
        remedy=tell_what_to_do_without_log(places),
        exit_code=_EX_CONFIG,
    )


def _damaged(places: Places, path: Path, sequence: int) -> StartupError:
    return StartupError(
        f"the audit log is damaged in {path}, at record {sequence}",
        remedy=f"find out why (keyside audit verify {places.log.parent}); then "
        f"{places.tell_how_to_begin_anew()}",
        exit_code=_EX_CONFIG,
    )
