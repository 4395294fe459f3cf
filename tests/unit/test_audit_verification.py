"""Whatever is done to an audit log is found, at its place; an untouched log is never accused."""

from __future__ import annotations

import io
import random
import re
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.audit_chain import Chain, make_chain, rehash, verify_lines

from keyside.audit import (
    Anchor,
    Change,
    Completeness,
    LogFile,
    Verification,
    parse_checkpoint,
    parse_line,
    parse_sequence,
    verify_log,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyside.audit import Checkpoint

RECORDS = 10_000
Files = list[list[bytes]]


@pytest.fixture(scope="module")
def chain() -> Chain:
    """A closed log of more than 10,000 records in four files; not to be changed."""
    return make_chain(RECORDS)


@pytest.fixture(scope="module")
def small() -> Chain:
    """A closed log of some 1,500 records in four files; not to be changed."""
    return make_chain(1500)


def copy(chain: Chain) -> Files:
    return [list(lines) for lines in chain.files]


def pick(files: Files, choices: random.Random, *, margin: int = 3) -> tuple[int, int]:
    """Return a random line: not among the first and last few of its file."""
    index = choices.randrange(len(files))
    return index, choices.randrange(margin, len(files[index]) - margin)


def hash_before(files: Files, index: int, at: int) -> bytes:
    former = files[index][at - 1] if at else files[index - 1][-1]
    return parse_line(former.strip()).hash


def is_checkpoint(line: bytes) -> bool:
    return b'"event":"checkpoint"' in line


# --- untouched logs


def test_untouched_log_is_authentic_and_closed(chain: Chain) -> None:
    found = verify_lines(chain.files, chain.public_key)
    assert found.fault is None
    assert found.authenticated
    assert found.completeness is Completeness.CLOSED
    assert (found.first_sequence, found.last_sequence) == (1, chain.sequence)
    assert (found.records, found.unsealed) == (chain.sequence, 0)
    assert found.warnings == ()


def test_without_an_anchor_it_is_unauthenticated(chain: Chain) -> None:
    found = verify_lines(chain.files)
    assert found.fault is None
    assert not found.authenticated
    assert found.completeness is Completeness.CLOSED


def test_files_may_come_in_any_order(chain: Chain) -> None:
    assert verify_lines(chain.files[::-1], chain.public_key).fault is None


@pytest.mark.parametrize("place", ["first", "inside", "last"])
def test_any_checkpoint_of_the_log_authenticates_it(chain: Chain, place: str) -> None:
    kept = {"first": 0, "inside": len(chain.checkpoints) // 2, "last": -1}[place]
    found = verify_lines(chain.files, checkpoint=chain.checkpoints[kept])
    assert found.fault is None
    assert found.authenticated
    assert found.completeness is Completeness.CLOSED


def test_checkpoint_stands_in_for_files_that_are_gone(chain: Chain) -> None:
    """The last checkpoint of a finished file is the start of the next; so is any later one."""
    last = chain.files[1][-2] if not is_checkpoint(chain.files[1][-1]) else chain.files[1][-1]
    found = verify_lines(chain.files[2:], checkpoint=last)
    assert found.fault is None
    assert found.authenticated
    assert found.first_sequence == parse_line(chain.files[2][0].strip()).sequence
    inside = next(line for line in chain.files[3] if is_checkpoint(line))
    assert verify_lines(chain.files[2:], checkpoint=inside).authenticated


def test_newer_files_alone_fit_together_and_it_is_said_what_is_missing(chain: Chain) -> None:
    found = verify_lines(chain.files[2:])
    assert found.fault is None
    assert not found.authenticated
    assert "nothing is said about earlier ones" in found.warnings[0]


def test_cut_anywhere_it_is_open_ended_and_a_kept_checkpoint_shows_it(small: Chain) -> None:
    """A kill and a cut look alike; the checkpoint from elsewhere tells them apart."""
    choices = random.Random(1)
    whole = b"".join(small.files[3])
    for _ in range(30):
        length = choices.randrange(len(whole))
        files = [*small.files[:3], [whole[:length]]]
        found = verify_lines(files, small.public_key)
        assert found.fault is None, length
        assert found.completeness is Completeness.OPEN_ENDED
        assert (found.torn_bytes > 0) == (length > 0 and whole[length - 1 : length] != b"\n")
        known = verify_lines(files, small.public_key, small.checkpoints[-1])
        assert known.fault is None
        assert known.completeness is Completeness.CUT


def test_cut_right_after_each_kind_of_checkpoint(small: Chain) -> None:
    last = len(small.files[3])
    for at in [index for index, line in enumerate(small.files[3]) if is_checkpoint(line)]:
        files = [*small.files[:3], small.files[3][: at + 1]]
        found = verify_lines(files, small.public_key)
        assert found.fault is None
        closed = at + 1 == last
        assert (found.completeness is Completeness.CLOSED) is closed
        assert found.unsealed == 0
        known = verify_lines(files, small.public_key, small.checkpoints[-1])
        assert (known.completeness is Completeness.CUT) is not closed


def test_cut_at_the_end_of_a_former_run_looks_closed_without_a_kept_checkpoint() -> None:
    """What the log alone can't show, and docs/audit.md says so."""
    chain = make_chain(300, files=1)
    end = len(chain.files[0])
    chain.append("run.start")
    chain.seal("start")
    cut = [chain.files[0][:end]]
    assert verify_lines(cut, chain.public_key).completeness is Completeness.CLOSED
    known = verify_lines(cut, chain.public_key, chain.checkpoints[-1])
    assert known.completeness is Completeness.CUT


def test_forged_end_of_a_run_does_not_close_it() -> None:
    """Anybody can append run.end; only a signed stop checkpoint counts."""
    chain = make_chain(300, files=1, closed=False)
    chain.append("run.end", outcome="ok")
    found = verify_lines(chain.files, chain.public_key)
    assert found.completeness is Completeness.OPEN_ENDED
    assert found.unsealed > 0
    chain.seal("interval")
    assert verify_lines(chain.files, chain.public_key).completeness is Completeness.OPEN_ENDED


def test_checkpoints_taken_off_the_end_are_warned_of() -> None:
    """The records after the last one can be made anew; that they were never sealed is told."""
    chain = make_chain(300, files=1)
    last = max(at for at, line in enumerate(chain.files[0]) if is_checkpoint(line))
    for minute in range(20):
        chain.append(time=f"2026-11-25T09:{minute:02d}:00.000000Z")
    kept = chain.files[0][:last]
    forged = rehash(
        [
            re.sub(rb'"seq":\d+', b'"seq":%d' % (last + 1 + index), line, count=1)
            for index, line in enumerate(chain.files[0][-20:])
        ],
        parse_line(kept[-1].strip()).hash,
    )
    found = verify_lines([[*kept, *forged]], chain.public_key)
    assert found.fault is None
    assert found.unsealed > 20
    assert "later ones may have been removed" in found.warnings[-1]


# --- changes: each returns where it should be found, at the earliest and at the latest


def edit_field(
    files: Files, choices: random.Random, *, pattern: bytes, new: bytes
) -> tuple[int, int]:
    index, at = pick(files, choices)
    while is_checkpoint(files[index][at]) or not re.search(pattern, files[index][at]):
        at = (at + 1) % len(files[index])
    sequence = parse_line(files[index][at].strip()).sequence
    files[index][at] = re.sub(pattern, new, files[index][at], count=1)
    return sequence, sequence


def edit_byte(files: Files, choices: random.Random) -> tuple[int, int]:
    """One bit of any byte of any line, its end included."""
    index, at = pick(files, choices)
    line = bytearray(files[index][at])
    sequence = parse_line(files[index][at].strip()).sequence
    place = choices.randrange(len(line))
    line[place] ^= 1 << choices.randrange(8)
    files[index][at] = bytes(line)
    return sequence, sequence


def edit_and_rehash(files: Files, choices: random.Random) -> tuple[int, int]:
    """The hash made anew as well: the next line does not follow any more."""
    index, at = pick(files, choices)
    while is_checkpoint(files[index][at]):
        at += 1
    sequence = parse_line(files[index][at].strip()).sequence
    changed = files[index][at].replace(b'"version":3', b'"version":4')
    if changed == files[index][at]:
        changed = changed.replace(b'"id":"x-', b'"id":"y-')
    files[index][at] = rehash([changed], hash_before(files, index, at))[0]
    return sequence, sequence + 1


def edit_and_rehash_all(files: Files, choices: random.Random) -> tuple[int, int]:
    """All later hashes made anew: the next signature does not fit."""
    index, at = pick(files, choices, margin=300)
    while is_checkpoint(files[index][at]):
        at += 1
    sequence = parse_line(files[index][at].strip()).sequence
    previous = hash_before(files, index, at)
    changed = files[index][at].replace(b'"id":"x-', b'"id":"y-')
    files[index][at:] = rehash([changed, *files[index][at + 1 :]], previous)
    for later in range(index + 1, len(files)):
        previous = parse_line(files[later - 1][-1].strip()).hash
        files[later] = rehash(files[later], previous)
    return sequence, next(
        parse_line(line.strip()).sequence for line in files[index][at:] if is_checkpoint(line)
    )


def remove_line(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices)
    sequence = parse_line(files[index].pop(at).strip()).sequence
    return sequence, sequence


def remove_many(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices, margin=300)
    sequence = parse_line(files[index][at].strip()).sequence
    del files[index][at : at + choices.randrange(2, 280)]
    return sequence, sequence


def remove_first(files: Files, choices: random.Random) -> tuple[int, int]:
    del files[0][: choices.randrange(1, 500)]
    return 1, 1


def remove_checkpoint(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices, margin=300)
    while not is_checkpoint(files[index][at]):
        at += 1
    sequence = parse_line(files[index].pop(at).strip()).sequence
    return sequence, sequence


def remove_and_renumber(files: Files, choices: random.Random) -> tuple[int, int]:
    """A record taken out, and all later ones of the file numbered and hashed anew."""
    index, at = pick(files, choices, margin=300)
    while is_checkpoint(files[index][at]):
        at += 1
    sequence = parse_line(files[index][at].strip()).sequence
    previous = hash_before(files, index, at)
    moved = [
        re.sub(rb'"seq":\d+', b'"seq":%d' % (sequence + offset), line, count=1)
        for offset, line in enumerate(files[index][at + 1 :])
    ]
    files[index][at:] = rehash(moved, previous)
    return sequence, next(
        parse_line(line.strip()).sequence for line in files[index][at:] if is_checkpoint(line)
    )


def insert_copy(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices)
    files[index].insert(at + 1, files[index][at])
    sequence = parse_line(files[index][at].strip()).sequence
    return sequence + 1, sequence + 1


def insert_later_one(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices, margin=300)
    files[index].insert(at, files[index][at + 250])
    sequence = parse_line(files[index][at + 1].strip()).sequence
    return sequence, sequence


def insert_forged(files: Files, choices: random.Random) -> tuple[int, int]:
    """A record with a fitting number and hash, before the true one of that number."""
    index, at = pick(files, choices)
    while is_checkpoint(files[index][at]):
        at += 1
    sequence = parse_line(files[index][at].strip()).sequence
    forged = files[index][at].replace(b'"id":"x-', b'"id":"z-')
    files[index].insert(at, rehash([forged], hash_before(files, index, at))[0])
    return sequence, sequence


def insert_checkpoint(files: Files, choices: random.Random) -> tuple[int, int]:
    """A checkpoint that is signed with a key of the attacker's own, and fits the chain."""
    index, at = pick(files, choices, margin=300)
    line = parse_line(files[index][at].strip())
    forger = Chain(key=Ed25519PrivateKey.generate(), sequence=line.sequence - 1)
    forger.head = hash_before(files, index, at)
    files[index].insert(at, forger.seal())
    return line.sequence, line.sequence


def replay_checkpoint(files: Files, choices: random.Random) -> tuple[int, int]:
    """An earlier checkpoint of the log itself, numbered and hashed to fit."""
    index, at = pick(files, choices, margin=300)
    old = next(line for line in files[0] if is_checkpoint(line))
    sequence = parse_line(files[index][at].strip()).sequence
    moved = re.sub(rb'"seq":\d+', b'"seq":%d' % sequence, old, count=1)
    files[index][at] = rehash([moved], hash_before(files, index, at))[0]
    return sequence, sequence


def swap_neighbours(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices)
    lines = files[index]
    sequence = parse_line(lines[at].strip()).sequence
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    return sequence, sequence


def move_far(files: Files, choices: random.Random) -> tuple[int, int]:
    index, at = pick(files, choices, margin=300)
    sequence = parse_line(files[index][at].strip()).sequence
    files[index].insert(at + 250, files[index].pop(at))
    return sequence, sequence


def drop_file(files: Files, choices: random.Random) -> tuple[int, int]:
    index = choices.randrange(len(files) - 1)
    sequence = parse_line(files.pop(index)[0].strip()).sequence
    return sequence, sequence


def double_file(files: Files, choices: random.Random) -> tuple[int, int]:
    index = choices.randrange(len(files) - 1)
    files.insert(index, files[index])
    sequence = parse_line(files[index + 2][0].strip()).sequence
    return sequence, sequence


def swap_contents(files: Files, choices: random.Random) -> tuple[int, int]:
    """The later halves of two files, exchanged."""
    first, second = sorted(choices.sample(range(len(files)), 2))
    at = choices.randrange(300, min(len(files[first]), len(files[second])) - 300)
    sequence = parse_line(files[first][at].strip()).sequence
    files[first][at:], files[second][at:] = files[second][at:], files[first][at:]
    return sequence, sequence


def cut_finished_file(files: Files, choices: random.Random) -> tuple[int, int]:
    index = choices.randrange(len(files) - 1)
    at = choices.randrange(300, len(files[index]) - 2)
    sequence = parse_line(files[index][at].strip()).sequence
    half = files[index][at][: choices.randrange(1, len(files[index][at]) - 1)]
    files[index][at:] = [half]
    return sequence, sequence


def splice_other_log(files: Files, choices: random.Random) -> tuple[int, int]:
    """Lines of another installation's log, with the same numbers."""
    other = make_chain(3000, files=1)
    at = choices.randrange(500, 2000)
    length = choices.randrange(1, 500)
    sequence = parse_line(files[0][at].strip()).sequence
    files[0][at : at + length] = other.files[0][at : at + length]
    return sequence, sequence


CHANGES: dict[str, tuple[Callable[[Files, random.Random], tuple[int, int]], set[Change]]] = {
    "a bit of any byte": (edit_byte, {Change.EDITED, Change.REMOVED}),
    **{
        f"the field {name}": (
            partial(edit_field, pattern=old, new=new),
            {Change.EDITED},
        )
        for name, old, new in [
            ("v", rb'"v":1', b'"v":2'),
            ("id", rb'"id":"x-', b'"id":"y-'),
            ("time", rb"T(\d\d):", b"T23:"),
            ("event", rb"encryption.decrypt", b"encryption.encrypt"),
            ("outcome", rb'"ok"', b'"refused"'),
            ("uid", rb'"uid":1001', b'"uid":1002'),
            ("account", rb'"mail"', b'"bank"'),
            ("version", rb'"version":3', b'"version":33'),
            ("digest", rb'"digest":"0', b'"digest":"1'),
            ("hash", rb'"hash":".', b'"hash":"!'),
            ("seq, made larger", rb'"seq":(\d)', rb'"seq":9\1'),
            ("an added field", rb',"hash"', b',"count":2,"hash"'),
            ("a space", rb'"v":1', b'"v": 1'),
        ]
    },
    "edited, its hash made anew": (edit_and_rehash, {Change.EDITED}),
    "edited, all hashes made anew": (edit_and_rehash_all, {Change.EDITED}),
    "one record removed": (remove_line, {Change.REMOVED}),
    "many records removed": (remove_many, {Change.REMOVED}),
    "the first records removed": (remove_first, {Change.REMOVED}),
    "a checkpoint removed": (remove_checkpoint, {Change.REMOVED}),
    "removed, all numbered anew": (remove_and_renumber, {Change.EDITED}),
    "a copy inserted": (insert_copy, {Change.INSERTED}),
    "a later record inserted": (insert_later_one, {Change.INSERTED}),
    "a forged record inserted": (insert_forged, {Change.INSERTED}),
    "a forged checkpoint inserted": (insert_checkpoint, {Change.INSERTED, Change.EDITED}),
    "a former checkpoint replayed": (replay_checkpoint, {Change.EDITED}),
    "two neighbours swapped": (swap_neighbours, {Change.REORDERED}),
    "a record moved far": (move_far, {Change.REORDERED}),
    "a file dropped": (drop_file, {Change.REMOVED}),
    "a file given twice": (double_file, {Change.INSERTED}),
    "two files' halves exchanged": (swap_contents, {Change.REORDERED, Change.REMOVED}),
    "a finished file cut": (cut_finished_file, {Change.REMOVED}),
    "another log spliced in": (splice_other_log, {Change.EDITED}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_found_at_its_place(chain: Chain, name: str) -> None:
    change, kinds = CHANGES[name]
    for seed in range(3):
        files = copy(chain)
        earliest, latest = change(files, random.Random(seed))
        found = verify_lines(files, chain.public_key)
        assert_found(found, earliest, latest, kinds)


def assert_found(found: Verification, earliest: int, latest: int, kinds: set[Change]) -> None:
    assert found.fault is not None
    assert earliest <= found.fault.sequence <= latest
    assert found.fault.since <= earliest
    assert found.fault.change in kinds
    assert found.completeness is Completeness.UNKNOWN
    assert not found.authenticated


def test_place_is_the_file_and_the_line(chain: Chain) -> None:
    files = copy(chain)
    files[2][41] = files[2][41].replace(b'"id":"x-', b'"id":"y-')
    found = verify_lines(files, chain.public_key)
    assert found.fault is not None
    assert (found.fault.place.file, found.fault.place.line) == ("audit-2.jsonl", 42)
    assert found.fault.sequence == parse_sequence(files[2][41])


def test_change_is_found_without_an_anchor_as_far_as_the_chain_goes(chain: Chain) -> None:
    """Whoever can write to the file can make all of it anew; that is what anchors are for."""
    files = copy(chain)
    earliest, latest = edit_and_rehash_all(files, random.Random(7))
    found = verify_lines(files)
    assert found.fault is not None
    assert earliest <= found.fault.sequence <= latest


# --- other logs


def test_log_made_anew_is_another_one(chain: Chain) -> None:
    """A whole log of the attacker's own: found with the public key, and with any checkpoint."""
    forged = make_chain(600, files=1)
    assert verify_lines(forged.files).fault is None
    with_key = verify_lines(forged.files, chain.public_key)
    assert with_key.fault is not None
    assert with_key.fault.sequence == 1
    for kept in (chain.checkpoints[0], chain.checkpoints[-1]):
        found = verify_lines(forged.files, checkpoint=kept)
        assert found.fault is not None
        assert not found.authenticated


def test_older_files_missing_with_the_first_key_are_removed(chain: Chain) -> None:
    found = verify_lines(chain.files[1:], chain.public_key)
    assert found.fault is not None
    assert (found.fault.change, found.fault.sequence) == (Change.REMOVED, 1)


def test_gap_after_a_kept_checkpoint_is_removed(chain: Chain) -> None:
    found = verify_lines(chain.files[2:], checkpoint=chain.checkpoints[3])
    assert found.fault is not None
    assert found.fault.change is Change.REMOVED
    assert found.fault.sequence == parse_line(chain.checkpoints[3].strip()).sequence + 1


@pytest.mark.parametrize("left", [[], [[]], [[b'{"v":1,"seq":1,']], [[b"x" * 100]]])
def test_log_without_a_record_is_changed_or_cut(chain: Chain, left: Files) -> None:
    """Its first checkpoint is made with it, so nothing at all is never what was written."""
    found = verify_lines(left, chain.public_key)
    assert found.fault is not None
    assert (found.fault.change, found.fault.sequence) == (Change.REMOVED, 1)
    assert not found.authenticated
    known = verify_lines(left, checkpoint=chain.checkpoints[0])
    assert known.completeness is Completeness.CUT
    assert verify_lines(left).completeness is Completeness.OPEN_ENDED


def test_invented_records_are_not_authentic_for_the_public_keys_sake(small: Chain) -> None:
    """Only a signature that the key leads to makes a log authentic, and only up to there."""
    forged = Chain()
    for _ in range(50):
        forged.append(outcome="ok", key="mail")
    found = verify_lines(forged.files, small.public_key)
    assert found.fault is not None
    assert (found.fault.sequence, found.authenticated) == (1, False)
    # After the genuine first record, it is said where what is proven ends.
    first = parse_line(small.files[0][0].strip())
    longer = Chain(sequence=1, head=first.hash, files=[[small.files[0][0]]])
    for _ in range(50):
        longer.append(outcome="ok", key="mail")
    found = verify_lines(longer.files, small.public_key)
    assert found.fault is None
    assert found.last_checkpoint is not None
    assert (found.last_checkpoint.line.sequence, found.unsealed) == (1, 50)


def test_invented_records_after_a_kept_checkpoint_are_not_authentic(small: Chain) -> None:
    last = parse_line(small.checkpoints[0].strip())
    forged = Chain(sequence=last.sequence, head=last.hash)
    for _ in range(50):
        forged.append(outcome="ok", key="mail")
    found = verify_lines(forged.files, checkpoint=small.checkpoints[0])
    assert found.fault is None
    assert not found.authenticated
    assert found.unsealed == 50


@pytest.mark.parametrize("event", ["access.approve", "store.rollback_accepted", "run.end"])
def test_record_between_two_runs_was_inserted_whoever_sealed_it(event: str) -> None:
    """What was appended to a closed log is found, also if the recorder had gone on from it."""
    chain = make_chain(300, files=1)
    place = len(chain.files[0])
    chain.append("run.start")
    chain.append(event, phase="outcome", outcome="ok")
    chain.seal("start")
    chain.close()
    found = verify_lines(chain.files, chain.public_key)
    assert found.fault is not None
    assert (found.fault.change, found.fault.place.line) == (Change.INSERTED, place + 2)


def test_checkpoint_of_another_kind_does_not_begin_a_run() -> None:
    chain = make_chain(300, files=1)
    chain.append("run.start")
    chain.seal("interval")
    assert verify_lines(chain.files, chain.public_key).fault is not None


def test_what_a_run_begins_with_is_no_change() -> None:
    chain = make_chain(300, files=1)
    for event in ("log.continued", "run.start", "run.recovered", "audit.failed"):
        chain.append(event)
    chain.seal("start")
    chain.close()
    found = verify_lines(chain.files, chain.public_key)
    assert found.fault is None
    assert found.completeness is Completeness.CLOSED


def test_file_that_grows_while_it_is_read_is_no_change(tmp_path: Path) -> None:
    """A running log's last line may be written in two halves, and read between them."""
    chain = make_chain(60, files=1)
    data = b"".join(chain.files[0])
    cut = data.rindex(b'"hash"', 0, -100)
    path = tmp_path / "audit.jsonl"

    class Growing(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            size = super().readinto(buffer)
            path.write_bytes(data)  # the other half has come meanwhile
            return size or 0

    def open_growing() -> BinaryIO:
        path.write_bytes(data[:cut])
        return io.BufferedReader(Growing(path))

    log = LogFile("audit.jsonl", open_growing)
    found = verify_log([log], Anchor(chain.public_key))
    assert found.fault is None
    assert found.torn_bytes > 0


def test_several_kept_checkpoints_are_all_checked(small: Chain) -> None:
    kept = [parse_checkpoint(line) for line in small.checkpoints]
    cut = [*small.files[:3], small.files[3][:5]]
    assert verify_with(small.files, *kept).completeness is Completeness.CLOSED
    assert verify_with(cut, *reversed(kept)).completeness is Completeness.CUT
    assert verify_with(cut, *kept[:-3]).fault is None
    other = make_chain(1500)
    wrong = parse_checkpoint(other.checkpoints[2])
    assert verify_with(small.files, *kept, wrong).fault is not None
    # Of the earlier ones, the newest is where the files go on from.
    assert verify_with(small.files[2:], *kept).authenticated


def verify_with(files: Files, *kept: Checkpoint) -> Verification:
    opened = [
        LogFile(f"audit-{index}.jsonl", partial(io.BytesIO, b"".join(lines)))
        for index, lines in enumerate(files)
    ]
    return verify_log(opened, Anchor(checkpoints=kept))


def test_end_that_lost_records_is_warned_of() -> None:
    chain = make_chain(300, files=1, closed=False)
    chain.append("run.end", outcome="failed", details={"lost": 12})
    chain.seal("stop")
    found = verify_lines(chain.files, chain.public_key)
    assert found.completeness is Completeness.CLOSED
    assert "12 records that it could not write" in found.warnings[0]


def test_very_long_line_takes_no_memory_and_is_a_change(chain: Chain) -> None:
    files = copy(chain)
    files[0].insert(10, b"x" * 5_000_000 + b"\n")
    found = verify_lines(files, chain.public_key)
    assert found.fault is not None
    assert (found.fault.change, found.fault.place.line) == (Change.INSERTED, 11)
