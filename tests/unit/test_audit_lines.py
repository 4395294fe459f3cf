"""The form of a line: one way to write it, and everything else is refused with our error."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.audit_chain import make_chain

from keyside.audit import (
    FIRST_PREVIOUS,
    MAX_LINE_BYTES,
    cover,
    encode_line,
    hash_record,
    is_sound_key,
    parse_checkpoint,
    parse_line,
    parse_object,
    parse_public_key,
)
from keyside.errors import KeysideError, MalformedRecord

BODY = b'"id":"a-1","time":"2026-11-25T22:45:11.123456Z","event":"key.rotate"'
COVERED = cover(7, BODY)
LINE = encode_line(COVERED, hash_record(FIRST_PREVIOUS, COVERED))[:-1]


def test_line_says_what_it_was_made_of() -> None:
    line = parse_line(LINE)
    assert (line.sequence, line.event) == (7, "key.rotate")
    assert line.follows(FIRST_PREVIOUS)
    assert not line.follows(bytes(31) + b"\x01")
    assert line.encode() == LINE
    assert json.loads(LINE) == line.fields


def test_hash_is_as_documented() -> None:
    """A vector, made with sha256sum(1): whoever reimplements the format gets the same bytes."""
    assert LINE == COVERED + (
        b',"hash":"2d48a9d4e11a576d8ada0cd3ffc5e597d9f62a778f9542829cbb25d2543384bc"}'
    )


WRONG = [
    ("empty", b""),
    ("no JSON", b"hello"),
    ("another version", LINE.replace(b'"v":1', b'"v":2')),
    ("number 0", LINE.replace(b'"seq":7', b'"seq":0')),
    ("a number with zeros", LINE.replace(b'"seq":7', b'"seq":07')),
    ("a negative number", LINE.replace(b'"seq":7', b'"seq":-7')),
    ("a number of text", LINE.replace(b'"seq":7', b'"seq":"7"')),
    ("no id", LINE.replace(b'"id":"a-1",', b"")),
    ("an empty id", LINE.replace(b'"id":"a-1"', b'"id":""')),
    ("no time", LINE.replace(b'"time":"2026-11-25T22:45:11.123456Z",', b"")),
    ("a time of no day", LINE.replace(b"2026-11", b"2026-13")),
    ("a local time", LINE.replace(b"123456Z", b"123456+01:00")),
    ("no event", LINE.replace(b',"event":"key.rotate"', b"")),
    ("an event of capitals", LINE.replace(b"key.rotate", b"Key.rotate")),
    ("a space", LINE.replace(b'"v":1,', b'"v":1, ')),
    ("a name twice", LINE.replace(b',"hash"', b',"event":"key.rotate","hash"')),
    ("a name twice, inside", LINE.replace(b',"hash"', b',"details":{"a":1,"a":1},"hash"')),
    ("a second hash", LINE.replace(b',"hash"', b',"hash":"00","hash"')),
    ("an escape too many", LINE.replace(b"a-1", b"\\u0061-1")),
    ("capitals in an escape", LINE.replace(b"a-1", b"\\u00E4")),
    ("raw UTF-8", LINE.replace(b"a-1", "ä".encode())),
    ("not a number", LINE.replace(b',"hash"', b',"count":NaN,"hash"')),
    ("a number like 1e5", LINE.replace(b',"hash"', b',"count":1e5,"hash"')),
    ("capitals in the hash", LINE[:-20] + LINE[-20:-2].upper() + LINE[-2:]),
    ("a short hash", LINE[:-3] + LINE[-2:]),
    ("a line's end", LINE + b"\n"),
    ("something after it", LINE + b" "),
    ("too deep", LINE.replace(b',"hash"', b',"details":' + b"[" * 9000 + b"]" * 9000 + b',"hash"')),
    ("too long", LINE.replace(b"a-1", b"a" * MAX_LINE_BYTES)),
    ("an id too long", LINE.replace(b"a-1", b"a" * 200)),
    ("a huge number", LINE.replace(b',"hash"', b',"count":' + b"9" * 5000 + b',"hash"')),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), WRONG, ids=[name for name, _ in WRONG])
def test_other_forms_are_refused(name: str, data: bytes) -> None:
    assert name
    with pytest.raises(MalformedRecord):
        parse_line(data)


@given(st.binary(max_size=300))
def test_parsers_raise_only_our_errors(data: bytes) -> None:
    for parse in (parse_line, parse_object, parse_checkpoint):
        try:
            parse(data)
        except KeysideError:
            continue


@given(st.integers(0, len(LINE) - 1), st.binary(min_size=0, max_size=4))
def test_line_with_other_bytes_in_it_is_refused_or_says_something_else(
    at: int, data: bytes
) -> None:
    changed = LINE[:at] + data + LINE[at + len(data) :]
    try:
        line = parse_line(changed)
    except KeysideError:
        return
    assert line.encode() == changed
    assert line.follows(FIRST_PREVIOUS) is (changed == LINE)


@given(st.text(max_size=70))
def test_public_key_is_64_digits_or_our_error(text: str) -> None:
    try:
        assert len(parse_public_key(text)) == 32
    except KeysideError:
        is_hex = re.fullmatch("[0-9a-f]{64}", text.lower(), re.ASCII)
        assert not is_hex or not is_sound_key(bytes.fromhex(text))


def test_checkpoint_is_signed_over_everything_before_it() -> None:
    chain = make_chain(3, files=1)
    lines = chain.files[0]
    first, last = parse_checkpoint(lines[0]), parse_checkpoint(lines[-1])
    assert first.is_signed_by(chain.public_key, FIRST_PREVIOUS)
    assert not first.is_signed_by(chain.public_key, bytes(31) + b"\x01")
    assert not first.is_signed_by(bytes(32), FIRST_PREVIOUS)
    assert last.seal.kind == "stop"
    assert last.is_signed_by(first.seal.next_key, parse_line(lines[-2].strip()).hash)
    assert not last.is_signed_by(chain.public_key, parse_line(lines[-2].strip()).hash)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number":1', b'"number":-1'),
        (b'"number":1', b'"number":true'),
        (b'"kind":"start"', b'"kind":"end"'),
        (b'"log":"', b'"log":"x'),
        (b'"every_s":60', b'"every_s":null'),
        (b'"store_id":null', b'"store_id":1'),
        (b'"store_generation":null', b'"store_generation":"1"'),
        (b'"event":"checkpoint"', b'"event":"run.start"'),
        (b'"signature":"', b'"signature":"x'),
    ],
)
def test_checkpoint_that_says_something_else_is_none(old: bytes, new: bytes) -> None:
    line = make_chain(1, files=1).files[0][0]
    assert old in line
    with pytest.raises(MalformedRecord):
        parse_checkpoint(line.replace(old, new))
