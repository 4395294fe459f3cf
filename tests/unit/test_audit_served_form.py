"""The quick way to check a record takes only what the slow way takes, and says the same of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.audit import parse_object, require_fields
from keyside_sidecar.audit.intake import Intake
from keyside_sidecar.audit.records import OWN_EVENTS, build_body, is_listed
from keyside_sidecar.audit.served import match_served
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.audit.wire import BEHIND
from keyside_sidecar.clock import SystemClock

WORKER = 77
IDENTITY = "0123456789ab-1f"
TIME = "2026-11-26T10:20:30.123456Z"
RECORD: dict[str, Any] = {
    "event": "encryption.encrypt",
    "caller": {
        "pid": 12,
        "uid": 4000,
        "gid": 0,
        "account": "mail svc",
        "login_uid": 4001,
        "exe": "/x",
    },
    "key": "mail-credentials",
    "digest": "ab" * 32,
    "version": 3,
    "context": ["a", "b c"],
    "outcome": "ok",
}
BODY = build_body(RECORD, IDENTITY, TIME, WORKER).encode()

TEXTS = st.text(max_size=12)
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'))
NUMBERS = st.integers(min_value=0, max_value=10**9 - 1)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def records(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> dict[str, Any]:
    caller: dict[str, Any] = {name: draw(NUMBERS) for name in ("pid", "uid", "gid")}
    for name, values in (("account", texts), ("login_uid", NUMBERS), ("exe", texts)):
        if draw(st.booleans()):
            caller[name] = draw(values)
    return {
        "event": draw(st.sampled_from(["encryption.encrypt", "encryption.decrypt"])),
        "caller": caller,
        "key": draw(texts),
        "digest": draw(DIGESTS),
        "version": draw(NUMBERS),
        "context": draw(st.none() | st.lists(texts, min_size=1, max_size=3)),
        "outcome": "ok",
    }


def take_slowly(body: bytes) -> tuple[str, int]:
    """Ask all that the log asks of a record; return its id and its worker."""
    fields = parse_object(b"{%b}" % body)
    require_fields(fields)
    assert is_listed(fields)
    assert fields["event"] not in OWN_EVENTS
    assert not fields["event"].startswith("access.")
    assert "details" not in fields
    assert type(fields["worker"]) is int
    return fields["id"], fields["worker"]


def test_a_typical_record_is_taken() -> None:
    assert match_served(BODY) == take_slowly(BODY) == (IDENTITY, WORKER)


@given(records(PLAIN))
def test_what_needs_no_escaping_is_taken(record: dict[str, Any]) -> None:
    body = build_body(record, IDENTITY, TIME, WORKER).encode()
    if len(body) < 1_000:  # what is longer may have been shortened
        assert match_served(body) == (IDENTITY, WORKER)
        assert take_slowly(body) == (IDENTITY, WORKER)


@given(records(TEXTS))
def test_what_is_taken_of_any_text_is_taken_slowly_too(record: dict[str, Any]) -> None:
    body = build_body(record, IDENTITY, TIME, WORKER).encode()
    found = match_served(body)
    if found is not None:
        assert found == take_slowly(body)


@given(
    st.integers(min_value=0, max_value=len(BODY)),
    st.integers(min_value=0, max_value=2),
    st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"0", b"-", b",", b"{", b"}", b"\x7f"]),
)
def test_what_is_taken_of_a_changed_record_is_taken_slowly_too(
    place: int, removed: int, added: bytes
) -> None:
    body = BODY[:place] + added + BODY[place + removed :]
    found = match_served(body)
    if found is not None:
        assert found == take_slowly(body)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        (b'"uid":4000', b'"uid":04000'),
        (b'"uid":4000', b'"uid":-0'),
        (b'"uid":4000', b'"uid":4e3'),
        (b'"uid":4000', b'"uid":true'),
        (b'"uid":4000', b'"uid":-4000'),
        (b'"uid":4000', b'"uid":4000000000'),
        (b'"uid":4000', b'"uid":1000000000000000000'),
        (b'"digest":"ab', b'"digest":"'),
        (b'"digest":"ab', b'"digest":"AB'),
        (b'"digest":"ab', b'"digest":"abab'),
        (b'"uid":4000', b'"uid":4000,"uid":4000'),
        (b'"uid":4000', b'"uid": 4000'),
        (b"mail svc", b"mail\\u0041svc"),
        (b"mail svc", b'mail","key":"other'),
        (b"mail svc", b"mail\x00svc"),
        (b"mail svc", b"mail\x7fsvc"),
        (b"mail svc", b"mail\nsvc"),
        (b"mail svc", "maïl".encode()),
        (b'"version":3', b'"version":3,"details":{}'),
        (b'"version":3', b'"version":3,"plaintext":"x"'),
        (b'"context":["a","b c"]', b'"context":[]'),
        (b'"context":["a","b c"]', b'"context":["a",1]'),
        (b"encryption.encrypt", b"encryption.batch_encrypt"),
        (b"encryption.encrypt", b"checkpoint"),
        (b'"outcome":"ok"', b'"outcome":"refused"'),
        (b"T10:20", b"T24:20"),
        (b"2026-11-26", b"2026-13-26"),
        (b"2026-11-26", b"2026-11-31"),
        (b"2026-11-26", b"2026-02-29"),
        (b'"worker":77', b'"worker":77\n'),
        (b'"worker":77', b'"worker":77,"worker":78'),
        (b'"id":"0123456789ab-1f"', b'"id":""'),
        (b'"id":"', b' "id":"'),
    ],
)
def test_any_other_form_is_looked_at_slowly(part: bytes, other: bytes) -> None:
    assert BODY.count(part) == 1
    assert match_served(BODY.replace(part, other)) is None


def make_intake() -> Intake:
    return Intake(Stamps(SystemClock()), [], None)


def test_a_record_that_came_before_is_left_out() -> None:
    intake = make_intake()
    other = BODY.replace(b"ab-1f", b"ab-20")
    first = intake.take(BEHIND, [BODY, other], WORKER, None)
    again = intake.take(BEHIND, [other, BODY.replace(b"ab-1f", b"ab-21")], WORKER, None)
    assert (first.bodies, again.count) == ([BODY, other], 2)
    assert again.bodies == [BODY.replace(b"ab-1f", b"ab-21")]


def test_a_record_in_another_workers_name_is_none() -> None:
    batch = make_intake().take(BEHIND, [BODY, BODY], WORKER + 1, None)
    assert batch.is_bad
    [stands_in] = batch.bodies
    assert b"AUDIT_BAD_RECORD" in stands_in
    assert b'"worker":78' in stands_in


def test_a_record_that_is_too_long_is_none_in_either_form() -> None:
    long = BODY.replace(b"mail svc", b"m" * 40_000)
    assert make_intake().take(BEHIND, [long], WORKER, None).is_bad
