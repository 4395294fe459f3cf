"""The schema and the recorder take the same records: neither is more lenient than the other."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.audit_chain import make_chain
from tests.unit.audit_scene import Scene, action_record, call_record
from tests.unit.record_schema import SCHEMA, is_valid

from keyside.audit import encode_json, parse_checkpoint, parse_object
from keyside.audit.lines import TIME
from keyside.errors import MalformedRecord
from keyside_sidecar.audit.intake import Intake
from keyside_sidecar.audit.records import build_body
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.audit.wire import DURABLE
from keyside_sidecar.clock import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

T = "2026-11-25T22:45:11.123456Z"
GOOD: dict[str, Any] = {"id": "a-1", "time": T, **call_record(1), "worker": 7}


def is_taken(body: bytes) -> bool:
    """Return whether the recorder takes what a worker sends."""
    return not Intake(Stamps(SystemClock()), [], None).take(DURABLE, [body], None, None).is_bad


def is_in_schema(body: bytes) -> bool:
    """Return whether the line that becomes of it meets the schema."""
    line = b'{"v":1,"seq":7,%b,"hash":"%b"}' % (body, b"0" * 64)
    return is_valid(json.loads(line))


def body_of(fields: dict[str, Any]) -> bytes:
    return encode_json(fields)[1:-1].encode()


DETAIL = [
    ("a fraction", 1.5, False),
    ("a whole number with a fraction", 1.0, False),
    ("the largest number", 2**63 - 1, True),
    ("more than that", 2**63, False),
    ("the least number", -(2**63) + 1, True),
    ("less than that", -(2**63), False),
    ("a truth value", True, True),
    ("nothing", None, True),
    ("a list", [1, "a", {"b": [None]}], True),
    ("a list with a fraction", [1, {"b": [0.5]}], False),
]
FIELD = [
    ("time", "2026-13-01T00:00:00.000000Z", False),
    ("time", "2026-00-01T00:00:00.000000Z", False),
    ("time", "2026-01-32T00:00:00.000000Z", False),
    ("time", "2026-04-31T00:00:00.000000Z", False),
    ("time", "2026-02-29T00:00:00.000000Z", False),
    ("time", "2028-02-29T00:00:00.000000Z", True),
    ("time", "2100-02-29T00:00:00.000000Z", False),
    ("time", "0000-01-01T00:00:00.000000Z", False),
    ("time", "2026-01-01T24:00:00.000000Z", False),
    ("time", "2026-01-01T23:60:00.000000Z", False),
    ("time", "2026-01-01T23:59:60.000000Z", False),
    ("time", "2026-01-01T23:59:59.999999Z", True),
    ("time", "2026-01-01T23:59:59.999999Z\n", False),
    ("time", "2026-01-01T23:59:59.999Z", False),
    ("time", "2026-01-01 23:59:59.999999Z", False),
    ("time", "2026-01-01T23:59:59.999999+00:00", False),
    ("time", "２026-01-01T23:59:59.999999Z", False),  # noqa: RUF001
    ("id", "", False),
    ("id", "a" * 100, True),
    ("id", "a" * 101, False),
    ("event", "key.rotate", True),
    ("event", "Key.rotate", False),
    ("event", "key..rotate", False),
    ("event", "key.rotate\n", False),
    ("phase", "intent", True),
    ("phase", "before", False),
    ("outcome", "partial", True),
    ("outcome", "fine", False),
    ("reason", "NOT_ALLOWED", True),
    ("reason", 1, False),
    ("key", None, False),
    ("version", 0, True),
    ("version", -1, False),
    ("version", 2**32, False),
    ("version", 1.0, False),
    ("version", True, False),
    ("digest", "ab" * 32, True),
    ("digest", "AB" * 32, False),
    ("digest", "ab" * 31, False),
    ("digest", "ab" * 33, False),
    ("digest", "", False),
    ("digest", "ab" * 32 + "\n", False),
    ("context", [], True),
    ("context", ["a", 1], False),
    ("context", "a", False),
    ("count", -1, False),
    ("count", 2**63, False),
    ("worker", -1, False),
    ("worker", 2**31, False),
    ("request_id", [], False),
    ("access", {}, False),
    ("caller", {}, True),
    ("caller", [], False),
    ("caller", {"uid": 0, "gid": 2**32 - 1, "pid": 1, "login_uid": 1000}, True),
    *(("caller", {name: -1}, False) for name in ("pid", "uid", "gid", "login_uid")),
    *(("caller", {name: 2**32}, False) for name in ("pid", "uid", "gid", "login_uid")),
    *(("caller", {name: "0"}, False) for name in ("pid", "uid", "gid", "login_uid")),
    ("caller", {"account": 1}, False),
    ("caller", {"password": "x"}, False),
    ("details", [], False),
    ("details", {"password": "x"}, False),
    ("details", {"number": 1}, False),
    ("details", {"signature": "0" * 128}, False),
    ("password", "x", False),
    *(("details", {"since": value}, good) for _, value, good in DETAIL),
]


@pytest.mark.parametrize(("name", "value", "good"), FIELD)
def test_recorder_and_schema_take_the_same(name: str, value: object, *, good: bool) -> None:
    body = body_of({**GOOD, name: value})
    assert (is_taken(body), is_in_schema(body)) == (good, good)


@pytest.mark.parametrize("name", ["id", "time", "event"])
def test_recorder_and_schema_want_the_same(name: str) -> None:
    fields = {**GOOD, "details": {}}
    del fields[name]
    assert (is_taken(body_of(fields)), is_in_schema(body_of(fields))) == (False, False)


def test_times_have_one_form() -> None:
    assert SCHEMA["properties"]["time"]["pattern"] == f"^(?:{TIME.pattern})$"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {"event": st.just("x.y")},
        optional={
            "details": st.dictionaries(st.sampled_from(["since", "items", "levels"]), plain),
            "caller": st.dictionaries(st.sampled_from(["uid", "pid", "account"]), plain),
            **dict.fromkeys(("key", "digest", "phase", "outcome", "context", "count"), plain),
        },
    )
)
def test_whatever_is_recorded_meets_both(record: dict[str, object]) -> None:
    body = build_body(record, "a-1", T, 7).encode("ascii")
    assert is_taken(body)
    assert is_in_schema(body)


@pytest.mark.parametrize(
    "detail", [1.5, 2**63, {1: "a"}, [[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]
)
def test_what_a_line_may_not_hold_does_not_cost_the_worker_its_record(detail: object) -> None:
    body = build_body({"event": "x", "details": {"since": detail, "code": 3}}, "a-1", T, 7)
    assert is_taken(body.encode())
    assert json.loads("{" + body + "}")["details"]["code"] == 3


SEALS = [
    ({"number": 0}, False),
    ({"number": 1.0}, False),
    ({"every_s": 0}, False),
    ({"kind": "end"}, False),
    ({"log": "0" * 15}, False),
    ({"next_key": "0" * 63}, False),
    ({"signature": "0" * 127}, False),
    ({"store_id": "ab" * 16}, False),
    ({"store_generation": 3}, False),
    ({"store_id": "ab" * 16, "store_generation": 3}, True),
    ({"store_id": "AB" * 16, "store_generation": 3}, False),
    ({"store_id": "ab" * 16, "store_generation": -3}, False),
    ({"since": "x"}, False),
    ({}, True),
]


@pytest.mark.parametrize(("change", "good"), SEALS)
def test_checkpoint_in_the_schema(change: dict[str, Any], *, good: bool) -> None:
    line = parse_object_loosely(make_chain(1, files=1).files[0][0])
    line["details"].update(change)
    # (What is put in keeps its place, so that only its value is judged.)
    try:
        parse_checkpoint(encode_json(line).encode())
    except MalformedRecord:
        parses = False
    else:
        parses = True
    assert (is_valid(line), parses) == (good, good)


def test_checkpoint_says_no_other_field() -> None:
    line = parse_object_loosely(make_chain(1, files=1).files[0][0])
    assert is_valid(line)
    assert not is_valid({**line, "count": 1})
    assert not is_valid({name: value for name, value in line.items() if name != "details"})


def parse_object_loosely(line: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = parse_object(line[:-1])
    return fields


def test_every_line_of_a_real_log_meets_the_schema(tmp_path: Path) -> None:
    scene = Scene.make(tmp_path, rotate_every_s=0.2, checkpoint_every_s=0.1)

    async def work() -> None:
        sender = scene.make_sender()
        await sender.wait_attached(5)
        for number in range(20):
            sender.note(call_record(number))
            await sender.record(action_record("intent", request_id=f"r{number}"))
            await asyncio.sleep(0.02)
        await sender.flush()
        await sender.close()

    try:
        scene.start()
        asyncio.run(work())
        scene.kill()
        scene.start()
        assert scene.stop() == 0
    finally:
        scene.end()
    records = scene.read()
    assert {"log.continued", "run.recovered", "run.end"} <= {it["event"] for it in records}
    assert all(is_valid(record) for record in records)
