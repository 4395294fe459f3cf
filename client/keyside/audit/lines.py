"""One line of an audit log: how it is written, how it is read, and what its hash covers.

    {"v":1,"seq":N,<body>,"hash":"<64 hexadecimal digits>"}

A line is one JSON object in the one form that Python's ``json.dumps`` gives it with separators
``,`` and ``:`` (so ASCII, no spaces, no name twice). Its numbers are integers of 64 bits, and it is
nested no deeper than :data:`MAX_DEPTH`. Its hash is SHA-256 over a fixed prefix, the former line's
hash (32 zero bytes before the first line) and the line's own bytes up to and not including
``,"hash":"``. ``docs/audit.md`` and ``docs/audit-record.schema.json`` describe the body.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from keyside.errors import MalformedRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY_BYTES: Final = 32 * 1024
MAX_LINE_BYTES: Final = 33 * 1024
MAX_NUMBER: Final = 2**63 - 1
# Of arrays and objects in each other, the line itself among them.
MAX_DEPTH: Final = 32
FIRST_PREVIOUS: Final = bytes(32)

_DOMAIN: Final = b"keyside/v1/audit-record\x00"
_HASHER: Final = hashlib.sha256(_DOMAIN)
_HEAD: Final = re.compile(rb'\{"v":1,"seq":([1-9][0-9]{0,17}),"id":"')
_TAIL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
_TAIL_LENGTH: Final = 9 + 64 + 2
# A time that there is: no 30th of February, and a 29th in leap years only.
_DAY: Final = (
    r"(?!0000)(?:[0-9]{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
TIME: Final = re.compile(
    _DAY + r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z",
    re.ASCII,
)
EVENT: Final = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*", re.ASCII)
_ID: Final = re.compile(r".{1,100}", re.DOTALL)
_NEEDED: Final = (("id", _ID), ("time", TIME), ("event", EVENT))


@dataclass(frozen=True, slots=True)
class Line:
    """One line, in the form that it must have.

    Args:
        sequence: Its place in the log, from 1.
        hash: What it says that its hash is; whether that is so depends on the former line.
        fields: All of it, as JSON says it.
        covered: What its hash covers, beside the former line's hash.
    """

    sequence: int
    hash: bytes
    fields: dict[str, Any]
    covered: bytes

    @property
    def event(self) -> str:
        """What happened, such as ``"key.rotate"``."""
        event: str = self.fields["event"]
        return event

    def follows(self, previous: bytes) -> bool:
        """Return whether the line's hash is right after a line with hash ``previous``."""
        return hash_record(previous, self.covered) == self.hash

    def encode(self) -> bytes:
        """Return the line's bytes, without its end."""
        return b'%b,"hash":"%b"}' % (self.covered, self.hash.hex().encode())


def encode_json(value: object) -> str:
    """Return ``value`` in the one form that lines have.

    Raises:
        ValueError: It holds a number that JSON has no word for.
        TypeError: It holds what JSON can't say.
    """
    return _ENCODER.encode(value)


def hash_record(previous: bytes, covered: bytes) -> bytes:
    """Return a record's hash.

    Args:
        previous: The former record's hash, 32 bytes.
        covered: The line up to and not including ``,"hash":"``.
    """
    hasher = _HASHER.copy()
    hasher.update(previous)
    hasher.update(covered)
    return hasher.digest()


def cover(sequence: int, body: bytes) -> bytes:
    """Return what the hash of a record will cover."""
    return b'{"v":1,"seq":%d,%b' % (sequence, body)


def encode_line(covered: bytes, own_hash: bytes) -> bytes:
    """Return a whole line, its end included."""
    return b'%b,"hash":"%b"}\n' % (covered, own_hash.hex().encode())


def parse_line(data: bytes) -> Line:
    """Return a line's parts, if it has the one form that a line may have.

    The hash is not checked here: :meth:`Line.follows` does that.

    Args:
        data: The line, without its end.

    Raises:
        MalformedRecord: It hasn't; says how.
    """
    if len(data) > MAX_LINE_BYTES:
        raise MalformedRecord(f"is longer than {MAX_LINE_BYTES} bytes")
    head = _HEAD.match(data)
    tail = _TAIL.fullmatch(data, max(0, len(data) - _TAIL_LENGTH))
    if head is None or tail is None:
        raise MalformedRecord("does not begin and end as a record does")
    fields = parse_object(data)
    require_fields(fields)
    return Line(int(head[1]), bytes.fromhex(tail[1].decode()), fields, data[:-_TAIL_LENGTH])


def require_fields(fields: Mapping[str, object]) -> None:
    """Check the fields that every record has, beside its number and its hash.

    Raises:
        MalformedRecord: One of them is missing, or is not of the form that it must have.
    """
    for name, form in _NEEDED:
        value = fields.get(name)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise MalformedRecord(f'has no "{name}" of the form that it must have')


def parse_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object that is written in the one form that lines have.

    Raises:
        MalformedRecord: It isn't.
    """
    try:
        text = data.decode("ascii")
        fields = _DECODER.decode(text)
        same = _ENCODER.encode(fields) == text
    except (ValueError, RecursionError, TypeError):
        raise MalformedRecord("is no JSON object in ASCII, with integers of 64 bits") from None
    # (Most lines have fewer brackets than may be in each other.)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deeper(fields, MAX_DEPTH):
        raise MalformedRecord(f"is nested more than {MAX_DEPTH} deep")
    if not isinstance(fields, dict) or not same:
        # A name that stands there twice is lost on the way through a dictionary, too.
        raise MalformedRecord("is not written as a record is")
    return fields


def parse_sequence(data: bytes) -> int | None:
    """Return the sequence number that a line, sound or not, seems to have."""
    head = _HEAD.match(data)
    return int(head[1]) if head is not None else None


def is_plain_number(value: object) -> bool:
    """Return whether ``value`` is a number that a line may hold: an integer of 64 bits."""
    return type(value) is int and -MAX_NUMBER <= value <= MAX_NUMBER


def _is_deeper(value: Any, depth: int) -> bool:
    """Return whether arrays and objects stand more than ``depth`` deep in each other."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def _take_integer(digits: str) -> int:
    value = int(digits)
    if not is_plain_number(value):
        raise ValueError("no integer of 64 bits")
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER: Final = json.JSONDecoder(
    parse_int=_take_integer, parse_float=_refuse, parse_constant=_refuse
)
