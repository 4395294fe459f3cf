"""A second verifier of audit logs, written from docs/audit.md alone.

It shares no code with Keyside, and goes other ways where it can: lines are read by a parser that
knows no other spelling than the page's, where Keyside writes them again and compares; and points
are added in affine coordinates. It exists to show that the page suffices.

Usage: python second_verifier.py [--public-key HEX] [--checkpoint FILE] FILE...
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LONGEST = 33_792
DEEPEST = 32
GREATEST = 2**63 - 1
HEAD = re.compile(rb'\{"v":1,"seq":([1-9][0-9]{0,17}),"id":"')
TAIL = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
TEXT = re.compile(
    r'"((?:[ !#-\[\]-~]|\\["\\btnfr]|\\u(?:000[0-7be-f]|001[0-9a-f]|007f|00[89a-f][0-9a-f]'
    r'|0[1-9a-f][0-9a-f]{2}|[1-9a-f][0-9a-f]{3}))*)"'
)
NUMBER = re.compile(r"0|-?[1-9][0-9]*")
WORDS = {"true": True, "false": False, "null": None}
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
GAP = {"log.continued", "run.start", "run.recovered", "audit.failed"}
SEAL = ["number", "kind", "log", "every_s", "next_key", "store_id", "store_generation", "signature"]
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


class Wrong(Exception):
    """What is there is not what belongs there."""


@dataclass
class Record:
    """One line of the form that a line has."""

    data: bytes
    number: int
    fields: dict[str, Any]
    covered: bytes
    hash: bytes


@dataclass
class Verdict:
    """What was found."""

    intact: bool = True
    authenticated: bool = False
    completeness: str = "open-ended"
    records: int = 0
    unsealed: int = 0
    torn: int = 0
    why: str = ""

    @property
    def exit_code(self) -> int:
        """What ``keyside audit verify`` would exit with."""
        if not self.intact or self.completeness == "cut":
            return 65
        return 0 if self.completeness == "closed" else 1


def require(holds: object, what: str) -> None:
    """Refuse unless something holds."""
    if not holds:
        raise Wrong(what)


# -- a line -----------------------------------------------------------------------------------


class Parser:
    """Reads the one spelling of JSON that the page allows."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def parse(self) -> Any:
        """Return what the whole text says."""
        value = self.value(0)
        require(self.at == len(self.text), "something stands after the object")
        return value

    def skip(self, word: str) -> bool:
        """Go past ``word``, if it is next."""
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def value(self, depth: int) -> Any:
        """Return the value that is next."""
        if self.text.startswith('"', self.at):
            return self.string()
        if self.skip("{"):
            require(depth < DEEPEST, "too deep")
            return self.object(depth + 1)
        if self.skip("["):
            require(depth < DEEPEST, "too deep")
            return self.array(depth + 1)
        for word, meaning in WORDS.items():
            if self.skip(word):
                return meaning
        found = NUMBER.match(self.text, self.at)
        require(found, "no value")
        assert found is not None
        self.at = found.end()
        require(len(found[0]) <= 20 and abs(int(found[0])) <= GREATEST, "a number too large")
        return int(found[0])

    def string(self) -> str:
        """Return the text that is next."""
        found = TEXT.match(self.text, self.at)
        require(found, "no text of the page's spelling")
        assert found is not None
        self.at = found.end()
        text: str = json.loads(found[0]) if "\\" in found[1] else found[1]
        return text

    def object(self, depth: int) -> dict[str, Any]:
        """Return the rest of an object."""
        found: dict[str, Any] = {}
        if self.skip("}"):
            return found
        while True:
            name = self.string()
            require(name not in found and self.skip(":"), "a name twice, or without a value")
            found[name] = self.value(depth)
            if self.skip("}"):
                return found
            require(self.skip(","), "no comma")

    def array(self, depth: int) -> list[Any]:
        """Return the rest of an array."""
        found: list[Any] = []
        if self.skip("]"):
            return found
        while True:
            found.append(self.value(depth))
            if self.skip("]"):
                return found
            require(self.skip(","), "no comma")


def read_line(data: bytes) -> Record:
    """Return a line, without its line feed, if it has the form that a line has."""
    require(len(data) <= LONGEST and data.isascii(), "too long, or not ASCII")
    head, tail = HEAD.match(data), TAIL.search(data, max(0, len(data) - 75))
    require(head and tail and tail.end() == len(data), "no record's beginning and end")
    assert head is not None
    assert tail is not None
    fields = Parser(data.decode("ascii")).parse()
    identity, event = fields.get("id"), fields.get("event")
    require(isinstance(identity, str) and 1 <= len(identity) <= 100, "id")
    require(is_time(fields.get("time")), "time")
    require(isinstance(event, str) and re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", event), "event")
    covered = data[: tail.start()]
    return Record(data, int(head[1]), fields, covered, bytes.fromhex(tail[1].decode()))


def is_time(value: Any) -> bool:
    """Return whether ``value`` is a time that there is."""
    form = r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.\d{6}Z"
    found = re.fullmatch(form, value, re.ASCII) if isinstance(value, str) else None
    if found is None:
        return False
    year, month, day, hour, minute, second = map(int, found.groups())
    if year < 1 or not 1 <= month <= 12:
        return False
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    last = DAYS[month - 1] + (month == 2 and is_leap)
    return 1 <= day <= last and hour < 24 and minute < 60 and second < 60


# -- a checkpoint -----------------------------------------------------------------------------


def read_seal(record: Record) -> dict[str, Any]:
    """Return a checkpoint's details, if it has the form that one has."""
    require(
        list(record.fields) == ["v", "seq", "id", "time", "event", "details", "hash"],
        "other fields",
    )
    seal = record.fields["details"]
    require(isinstance(seal, dict) and list(seal) == SEAL, "other details")
    assert isinstance(seal, dict)
    require(is_count(seal["number"], 1) and is_count(seal["every_s"], 1), "number, every_s")
    require(seal["kind"] in ("start", "interval", "rotation", "stop"), "kind")
    for name, length in (("log", 16), ("next_key", 64), ("signature", 128)):
        require(is_hex(seal[name], length), name)
    store = seal["store_id"], seal["store_generation"]
    is_store = is_hex(store[0], 32) and is_count(store[1], 0)
    require(store == (None, None) or is_store, "store")
    require(is_sound(bytes.fromhex(seal["next_key"])), "next_key")
    return dict(seal)


def is_count(value: Any, least: int) -> bool:
    """Return whether ``value`` is a whole number from ``least``."""
    return type(value) is int and least <= value <= GREATEST


def is_hex(value: Any, length: int) -> bool:
    """Return whether ``value`` is so many lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", value) is not None


def name_log(key: bytes) -> str:
    """Return what checkpoints call the log of a first public key."""
    return hashlib.sha256(key).hexdigest()[:16]


def is_signed(record: Record, key: bytes, previous: bytes) -> bool:
    """Return whether a checkpoint is signed with a key."""
    start = record.covered[: record.covered.rindex(b',"signature":"')]
    signed = b"keyside/v1/audit-checkpoint\x00" + previous + start
    signature = bytes.fromhex(record.fields["details"]["signature"])
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Add two points of the curve: RFC 8032, 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = one, other
    both = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - both, -1, P)
    return x % P, y % P


@cache
def is_sound(key: bytes) -> bool:
    """Return whether a public key is one that the page allows."""
    number = int.from_bytes(key, "little")
    y, sign = number % 2**255, number >> 255
    if len(key) != 32 or y >= P:
        return False
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and sign):
        return False
    point = ((P - x) % P if x % 2 != sign else x), y
    total, neutral = (0, 1), (0, 1)
    doubled = point
    for place in range(L.bit_length()):
        if L >> place & 1:
            total = add(total, doubled)
        doubled = add(doubled, doubled)
    return total == neutral and point != neutral


# -- a log ------------------------------------------------------------------------------------


@dataclass
class Walk:
    """Goes through the records of a log, and remembers what the next one must be."""

    key: bytes | None
    kept: dict[int, list[tuple[Record, dict[str, Any]]]]
    verdict: Verdict = field(default_factory=Verdict)
    next_number: int = 0
    previous: bytes = bytes(32)
    next_seal: int | None = None
    next_key: bytes | None = None
    log: str | None = None
    known: bool = False
    last_kind: str = ""
    last_events: tuple[str, str] = ("", "")
    sealed: bool = False

    def take(self, record: Record) -> None:
        """Take the next record, in the steps of the page."""
        if not self.next_number:
            self.begin(record)
        require(record.number == self.next_number, "another number")
        digest = hashlib.sha256(b"keyside/v1/audit-record\x00" + self.previous + record.covered)
        require(digest.digest() == record.hash, "another hash")
        for kept, _seal in self.kept.get(record.number, ()):
            require(kept.data == record.data, "not the checkpoint that was kept")
        event = record.fields["event"]
        is_seal = event == "checkpoint"
        require(record.number != 1 or self.key is None or is_seal, "no checkpoint at first")
        if self.last_kind == "stop":
            details = record.fields.get("details")
            kind = details.get("kind") if isinstance(details, dict) else None
            require(event in GAP or (is_seal and kind == "start"), "inserted between two runs")
        if is_seal:
            self.take_seal(record)
        self.previous = record.hash
        self.next_number += 1
        self.last_events = self.last_events[1], event
        self.sealed = is_seal
        self.verdict.records += 1
        self.verdict.unsealed = 0 if is_seal else self.verdict.unsealed + 1

    def begin(self, record: Record) -> None:
        """Find out what the first line goes on from."""
        self.log = None if self.key is None else name_log(self.key)
        self.next_number = record.number
        if record.number == 1:
            self.next_key, self.next_seal, self.known = self.key, 1, self.key is not None
            return
        earlier = [number for number in self.kept if number < record.number]
        if earlier:
            kept, seal = self.kept[max(earlier)][0]
            self.next_number, self.previous = kept.number + 1, kept.hash
            self.next_key, self.next_seal = bytes.fromhex(seal["next_key"]), seal["number"] + 1
            self.log, self.known = self.log or seal["log"], True
            return
        require(self.key is None or self.kept, "the first records are missing")
        details = record.fields.get("details")
        require(record.fields["event"] == "log.continued" and isinstance(details, dict), "no link")
        assert isinstance(details, dict)
        require(is_hex(details.get("previous_hash"), 64), "no link")
        former = details.get("previous_sequence")
        require(type(former) is int and former == record.number - 1, "no link")
        self.previous = bytes.fromhex(details["previous_hash"])

    def take_seal(self, record: Record) -> None:
        """Take a checkpoint."""
        seal = read_seal(record)
        require(self.log in (None, seal["log"]), "another log's checkpoint")
        require(self.next_seal in (None, seal["number"]), "another checkpoint's number")
        if self.next_key is not None:
            require(is_sound(self.next_key), "an unsound public key")
            require(is_signed(record, self.next_key, self.previous), "another signature")
        self.known = self.known or record.number in self.kept
        self.verdict.authenticated = self.known
        self.log, self.next_seal = seal["log"], seal["number"] + 1
        self.next_key, self.last_kind = bytes.fromhex(seal["next_key"]), seal["kind"]

    def finish(self) -> Verdict:
        """Say what was found, when all records were taken."""
        verdict = self.verdict
        seals = [seal for kept in self.kept.values() for _record, seal in kept]
        if verdict.records:
            strange = [seal for seal in seals if seal["log"] != self.log and self.log is not None]
            require(not strange, "a kept checkpoint of another log")
        else:
            require(self.key is None or self.kept, "no record")
        is_end = self.sealed and self.last_kind == "stop" and self.last_events[0] == "run.end"
        if max(self.kept, default=0) >= max(self.next_number, 1):
            verdict.completeness = "cut"
        elif is_end and not verdict.torn:
            verdict.completeness = "closed"
        return verdict


def order(files: Mapping[str, bytes]) -> list[bytes]:
    """Return what is in the files, in the order of their first records."""

    def first(name: str) -> int:
        votes: Counter[int] = Counter()
        for index, line in enumerate(files[name].split(b"\n", 3)[:3]):
            if head := HEAD.match(line):
                votes[int(head[1]) - index] += 1
        named = re.search(r"-([0-9]{12,18})\.jsonl$", name)
        return votes.most_common(1)[0][0] if votes else int(named[1]) if named else 1 << 62

    return [files[name] for name in sorted(files, key=first)]


def verify(
    files: Mapping[str, bytes], public_key: bytes | None = None, kept: Sequence[bytes] = ()
) -> Verdict:
    """Verify a log.

    Args:
        files: What is in each file, by name.
        public_key: The log's first, 32 bytes.
        kept: Lines of checkpoints that were kept elsewhere.
    """
    anchors: dict[int, list[tuple[Record, dict[str, Any]]]] = {}
    for line in kept:
        record = read_line(line.strip())
        require(record.fields["event"] == "checkpoint", "what was kept is no checkpoint")
        anchors.setdefault(record.number, []).append((record, read_seal(record)))
    walk = Walk(public_key, anchors)
    try:
        full = [data for data in order(files) if data]
        for index, data in enumerate(full):
            *lines, rest = data.split(b"\n")
            for line in lines:
                walk.take(read_line(line))
            require(not rest or index + 1 == len(full), "a line that was cut short")
            walk.verdict.torn = len(rest)
        return walk.finish()
    except Wrong as wrong:
        found = walk.verdict
        found.intact, found.authenticated, found.completeness = False, False, "unknown"
        found.why = str(wrong)
        return found


def main(arguments: list[str]) -> int:
    """Verify the files that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--public-key", type=bytes.fromhex)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    if given.public_key is not None and not is_sound(given.public_key):
        return 64
    kept = given.checkpoint.read_bytes().strip().split(b"\n") if given.checkpoint else []
    found = verify({str(file): file.read_bytes() for file in given.files}, given.public_key, kept)
    print(found)
    return found.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
