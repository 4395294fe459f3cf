"""What may stand in a record (I7), and what keeps refusals and summaries small."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit_scene import call_record

from keyside.audit import MAX_BODY_BYTES, parse_object
from keyside_sidecar.audit.coalescing import Coalescer
from keyside_sidecar.audit.records import build_body, format_time, is_listed
from keyside_sidecar.audit.summary import INTERVAL_S, Summary

T = "2026-11-25T22:45:11.123456Z"


def body_of(record: dict[str, object], worker: int | None = 7) -> dict[str, object]:
    fields: dict[str, object] = json.loads("{" + build_body(record, "a-1", T, worker) + "}")
    return fields


def test_time_is_utc_to_the_microsecond() -> None:
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02T03:04:05.000000Z"
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))[-8:] == ".000006Z"


def test_record_is_stamped_and_what_is_none_is_left_out() -> None:
    found = body_of({"event": "key.rotate", "outcome": None, "key": "mail"})
    assert found == {"id": "a-1", "time": T, "event": "key.rotate", "key": "mail", "worker": 7}


def test_given_id_and_time_are_kept() -> None:
    found = body_of({"event": "worker.ended", "id": "s-1", "time": "T", "worker": 9}, None)
    assert (found["id"], found["time"], found["worker"]) == ("s-1", "T", 9)


def test_i7_unlisted_names_are_left_out() -> None:
    record: dict[str, object] = {
        "event": "access.request",
        "password": "hunter2",
        "caller": {"uid": 1, "password": "hunter2"},
        "details": {"comment": "why", "plaintext": "hunter2", "credential": "hunter2"},
    }
    text = build_body(record, "a-1", T, 7)
    assert "hunter2" not in text
    assert body_of(record)["details"] == {"comment": "why"}
    assert body_of(record)["caller"] == {"uid": 1}


def test_i7_bytes_and_objects_are_named_by_their_type_only() -> None:
    found = body_of({"event": "x", "details": {"comment": b"hunter2", "ticket": object()}})
    assert found["details"] == {"comment": "<bytes>", "ticket": "<object>"}


def test_long_texts_and_lists_are_cut() -> None:
    found = body_of({"event": "x", "details": {"comment": "a" * 5000, "versions": [1] * 5000}})
    details = found["details"]
    assert isinstance(details, dict)
    digests = [
        hashlib.sha256(json.dumps(whole, separators=(",", ":")).encode()).hexdigest()
        for whole in ("a" * 5000, [1] * 5000)
    ]
    assert details["comment"] == "a" * 2000 + f"… cut: sha256 {digests[0]}"
    assert details["versions"] == [*[1] * 200, f"… cut: sha256 {digests[1]}"]


def test_everything_that_may_be_asked_for_at_once_is_on_the_record() -> None:
    """The longest of each, in characters that JSON needs twelve bytes for, fits one record."""
    wide = "\U0001f600"
    context: dict[str, str] = {}
    while len(json.dumps({**context, f"n{len(context):02}": wide * 20})) <= 8_192:
        context[f"n{len(context):02}"] = wide * 20
    details = {
        "why": wide * 1000,
        "ticket": wide * 128,
        "duration_s": 2**31,
        "operations": ["decrypt", "encrypt", "rewrap", "reencrypt"],
        "versions": [[2**32 - 33 + number, 2**32 - 1] for number in range(32)],
        "context": context,
        "max_uses": 2**32 - 1,
    }
    record: dict[str, object] = {
        "event": "access.request",
        "phase": "intent",
        "caller": {"pid": 2**22, "uid": 2**32 - 2, "account": "é" * 32, "exe": "é" * 1000},
        "key": "k" * 64,
        "access": "ar-abcdefghijkl",
        "request_id": "f" * 32,
        "details": details,
    }
    assert body_of(record) == {"id": "a-1", "time": T, "worker": 7, **record}


def test_what_is_left_out_is_committed_to() -> None:
    """Whoever has the request can show that it is the one that was recorded."""
    long = {f"n{number:02}": "x" * 1024 for number in range(32)}
    found = body_of({"event": "x", "details": {"context": long, "why": "because"}})
    text = json.dumps(long, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert found["details"] == {"context": f"left out: sha256 {digest}", "why": "because"}


def test_record_fits_whatever_is_long_in_it() -> None:
    wide = "\U0001f600" * 1990
    record: dict[str, object] = {
        "event": "access.approve",
        "caller": {"uid": 1, "account": wide, "exe": wide},
        "access": wide,
        "key": wide,
        "context": [wide, wide, wide],
        "version": 10**400,
        "details": {"why": wide, "comment": wide},
    }
    body = build_body(record, "a-1", T, 7).encode("ascii")
    assert len(body) <= MAX_BODY_BYTES
    fields = parse_object(b"{%b}" % body)
    assert is_listed(fields)
    assert b"sha256 " in body
    assert "version" not in fields


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["event", "key", "details", "caller", "context"]), plain))
def test_any_facts_make_a_body_of_the_form_that_the_recorder_takes(
    record: dict[str, object],
) -> None:
    body = build_body(record, "a-1", T, 7).encode("ascii")
    assert len(body) <= MAX_BODY_BYTES
    assert b"\n" not in body
    fields = parse_object(b"{%b}" % body)
    assert fields["id"] == "a-1"
    # The recorder lets a worker go whose records it does not take.
    assert is_listed(fields)


def test_hostile_texts_can_not_leave_their_place() -> None:
    """A reason that tries to be the end of the record stays a text."""
    hostile = 'x"},"hash":"00"}\n{"v":1,"seq":2,\u202e\x1b[2J\x00\ud800'
    body = build_body({"event": "x", "details": {"comment": hostile}}, "a-1", T, 7)
    assert body.isascii()
    assert body.isprintable()
    assert body_of({"event": "x", "details": {"comment": hostile}})["details"] == {
        "comment": hostile
    }


# --- coalescing


def refusal(uid: int = 1001, reason: str = "NOT_ALLOWED") -> dict[str, object]:
    return {
        "event": "caller.refused",
        "outcome": "refused",
        "reason": reason,
        "caller": {"uid": uid, "pid": 7, "account": "mail"},
        "details": {"method": "/x"},
    }


def test_first_refusal_at_once_then_counts_at_growing_intervals() -> None:
    coalescer = Coalescer()
    key = (1001, "NOT_ALLOWED")
    told: list[tuple[int, int]] = []
    singles = 0
    for second in range(1800):
        for _ in range(10):
            singles += coalescer.note(key, refusal(), float(second), T)
        told += [(second, due["count"]) for due in coalescer.take_due(float(second))]
    assert singles == 1
    assert [second for second, _ in told] == [10, 30, 70, 150, 310, 630, 1230]
    assert sum(count for _, count in told) == 1231 * 10 - 1


def test_count_names_the_caller_and_not_the_single_call() -> None:
    coalescer = Coalescer()
    for _ in range(3):
        coalescer.note((1001, "R"), refusal(), 0.0, T)
    assert coalescer.take_due(10.0) == [
        {
            "event": "caller.refused",
            "outcome": "refused",
            "reason": "NOT_ALLOWED",
            "caller": {"uid": 1001, "account": "mail"},
            "count": 2,
            "details": {"since": T},
        }
    ]


def test_quiet_caller_is_forgotten_and_told_at_once_again() -> None:
    coalescer = Coalescer()
    assert coalescer.note((1, "R"), refusal(), 0.0, T)
    assert coalescer.take_due(15.0) == []
    assert not coalescer.note((1, "R"), refusal(), 16.0, T)
    assert len(coalescer.take_due(16.5)) == 1
    assert coalescer.take_due(100.0) == []
    assert coalescer.note((1, "R"), refusal(), 101.0, T)


def test_new_entries_are_bounded_and_the_rest_is_counted_together() -> None:
    """A stranger with many uids makes 257 records at once, and no more."""
    coalescer = Coalescer()
    singles = sum(coalescer.note((uid, "R"), refusal(uid), 0.0, T) for uid in range(50_000))
    assert singles == 257
    (rest,) = coalescer.take_due(10.0)
    assert rest["count"] == 50_000 - 257


def test_stranger_with_many_uids_makes_few_records_a_second_for_ever() -> None:
    """One local account may have 65,536 uids of its own, and be refused with each of them."""
    coalescer = Coalescer()
    records = 0
    for step in range(6_000):
        now_s = step / 10
        for uid in range(step * 10, step * 10 + 10):
            records += coalescer.note((uid % 65_536, "R"), refusal(uid), now_s, T)
        records += len(coalescer.take_due(now_s))
    assert 600 < records < 600 * 1.5 + 256


def test_end_of_a_run_tells_what_is_counted() -> None:
    coalescer = Coalescer()
    for _ in range(5):
        coalescer.note((1, "R"), refusal(), 0.0, T)
    assert coalescer.take_due(0.1) == []
    assert coalescer.take_due(0.1, everything=True)[0]["count"] == 4


# --- summary


def test_calls_of_a_kind_are_one_record() -> None:
    summary = Summary()
    for number in range(70):
        summary.add(call_record(number), 0.0, T)
    summary.add(call_record(0, outcome="failed", reason="ENVELOPE_REJECTED"), 1.0, T)
    assert summary.take_due(INTERVAL_S - 0.1) == []
    due = summary.take_due(INTERVAL_S)
    assert sum(record["count"] for record in due) == 71
    assert len(due) == 8
    assert due[0] == {
        "event": "encryption.summary",
        "outcome": "ok",
        "key": "mail",
        "version": 1,
        "caller": {"uid": 1001, "account": "mail"},
        "count": 10,
        "details": {"operation": "encryption.decrypt", "since": T},
    }
    assert due[-1]["reason"] == "ENVELOPE_REJECTED"
    assert summary.take_due(100.0) == []


def test_items_of_a_batch_count_each_under_its_key() -> None:
    """And what did not succeed under the batch's own outcome."""
    summary = Summary()
    caller = {"uid": 1001, "account": "mail"}
    items = [{"key": "mail", "version": 3, "count": 7}, {"key": "bank", "version": 1, "count": 2}]
    batch = {
        "event": "encryption.batch_decrypt",
        "caller": caller,
        "outcome": "partial",
        "count": 10,
        "details": {"items": items, "refused": 0, "failed": 1},
    }
    for _ in range(2):
        summary.add(batch, 0.0, T)
    due = summary.take_due(INTERVAL_S)
    assert [
        (r["outcome"], r.get("key"), r.get("version"), r["count"], r["caller"]) for r in due
    ] == [
        ("ok", "mail", 3, 14, caller),
        ("ok", "bank", 1, 4, caller),
        ("partial", None, None, 2, caller),
    ]


def test_summary_is_bounded() -> None:
    summary = Summary()
    for number in range(5000):
        summary.add(call_record(0, caller={"uid": number}), 0.0, T)
    due = summary.take_due(INTERVAL_S)
    assert len(due) == 1025
    assert sum(record["count"] for record in due) == 5000
