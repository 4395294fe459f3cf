"""keyside audit: which records are asked for, and how they are shown."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.unit.access_double import ID, make_record
from tests.unit.cli_process import call, run, running
from tests.unit.sidecar_double import Double, Failure

from keyside.cli.moments import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyside.v1 import audit_pb2

EVIL = "evil\u202e\x1b[2J\n"
ANNA = {"pid": 7, "uid": 1001, "gid": 100, "account": "anna", "login_uid": 1001, "exe": "/bin/k"}
BOB = {"pid": 8, "uid": 1002, "account": "bob"}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


def story() -> list[audit_pb2.AuditRecord]:
    """Return a grant's records, as a sidecar writes them."""

    def act(sequence: int, event: str, caller: dict[str, Any], **fields: Any) -> Any:
        return make_record(sequence, f"access.{event}", caller=caller, access=ID, **fields)

    done = {"phase": "outcome", "outcome": "ok"}
    use = {"key": "mail", "version": 4, "digest": "ab" * 32, "context": ["account", EVIL]}
    asked = {
        "why": EVIL,
        "ticket": "INC-42",
        "duration_s": 1800,
        "operations": ["decrypt"],
        "versions": [[3, 5]],
        "context": {"account": "42"},
        "max_uses": 10,
        "state": "PENDING",
    }
    expires = "2026-11-25T23:15:11Z"
    approved = {"comment": "fine", "state": "APPROVED"}
    return [
        act(2, "request", ANNA, key="mail", request_id="a", details=asked, **done),
        act(3, "approve", ANNA, phase="intent", request_id="b"),
        act(
            4,
            "approve",
            ANNA,
            phase="outcome",
            outcome="refused",
            reason="ACCESS_OWN_REQUEST",
            request_id="b",
        ),
        act(5, "approve", BOB, phase="intent", request_id="c"),
        act(6, "approve", BOB, request_id="c", details=approved, **done),
        act(7, "activate", ANNA, request_id="d", details={"expires_at": expires}, **done),
        act(8, "use", ANNA, phase="intent", request_id="e", **use),
        act(9, "use", ANNA, request_id="e", details={"operation": "decrypt"}, **use, **done),
        act(10, "use", ANNA, phase="intent", request_id="f", **use),
        make_record(11, "access.ended", access=ID, details={"end_reason": "EXPIRED"}),
    ]


def test_explain_tells_the_story_in_sentences(double: Double) -> None:
    double.records = [make_record(1, "run.start"), *story()]
    double.page = 3
    shown = run(double, "audit", "explain", ID).stdout.decode().splitlines()
    evil = "evil\\u202e\\x1b[2J\\x0a"
    assert [line.partition("Z  ")[2] or line for line in shown] == [
        f"{ID}, from 10 records of the audit log:",
        (
            "anna (uid 1001) asked for decrypt with mail, versions [[3, 5]], "
            'context {"account": "42"}, for 30 min, at most 10 uses: '
            f'"{evil}" (ticket "INC-42").  [2]'
        ),
        "anna (uid 1001) tried access.approve: refused ACCESS_OWN_REQUEST.  [4]",
        'bob (uid 1002) approved it: "fine"; every level has approved it.  [6]',
        "anna (uid 1001) activated it; it lasts until 2026-11-25T23:15:11Z at the latest.  [7]",
        (
            f"anna (uid 1001) used it: decrypt, mail version 4, envelope {'ab' * 32}, "
            f'context "account", "{evil}".  [9]'
        ),
        "anna (uid 1001) began access.use, and the log holds no outcome.  [10]",
        "it ended by itself: EXPIRED.  [11]",
        "In all, the log holds 1 use of it.",
    ]
    records = run(double, "audit", "explain", ID, "--json").stdout.decode().splitlines()
    assert records == [record.json for record in double.records[1:]]
    assert {request.access_id for request in double.asked} == {ID}


def test_what_people_wrote_can_not_be_taken_for_the_story(double: Double) -> None:
    """A comment that tries to end its quotation, and to go on as the log."""
    evil = 'fine"; every level has approved it.  [7] carol (uid 1004) approved it: "ok\\'
    said = {"comment": evil}
    double.records = [
        make_record(
            6,
            "access.approve",
            access=ID,
            phase="outcome",
            outcome="ok",
            caller={"uid": 1002, "account": "bob"},
            details=said,
        )
    ]
    shown = run(double, "audit", "explain", ID).stdout.decode().splitlines()
    sentence = shown[1].partition("Z  ")[2].removesuffix(".  [6]")
    who, _, quoted = sentence.partition(": ")
    assert who == "bob (uid 1002) approved it"
    assert json.loads(quoted) == evil


@pytest.mark.parametrize("event", ["deny", "cancel", "revoke"])
def test_explain_tells_who_ended_it(
    double: Double, capfd: pytest.CaptureFixture[str], event: str
) -> None:
    details = {"comment": "why"}
    double.records = [
        make_record(1, f"access.{event}", access=ID, caller=BOB, outcome="ok", details=details)
    ]
    assert call(double, "audit", "explain", ID) == 0
    verb = {"deny": "denied", "cancel": "cancelled", "revoke": "revoked"}[event]
    assert f'bob (uid 1002) {verb} it, which ended it: "why".' in capfd.readouterr().out


def test_nothing_to_explain_exits_65(double: Double) -> None:
    finished = run(double, "audit", "explain", ID)
    assert (finished.returncode, finished.stdout) == (65, b"")
    assert b"tells you nothing about" in finished.stderr


ODD: list[dict[str, Any]] = [
    {"caller": 5, "key": ["x"], "version": {}, "access": 7, "details": "x", "count": "many"},
    {"caller": {"uid": None, "account": EVIL}, "outcome": EVIL, "reason": {"a": EVIL}},
    {"phase": "intent", "request_id": [1]},
    {"details": {"operations": "x", "duration_s": "x", "context": 3}, "outcome": "ok"},
]


@pytest.mark.parametrize("fields", ODD)
def test_a_record_is_shown_whatever_its_fields_hold(
    double: Double, capfd: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    events = ("access.request", "access.use", "access.approve", EVIL)
    double.records = [
        make_record(number, event, **{"access": ID, **fields})
        for number, event in enumerate(events, start=1)
    ]
    explained = call(double, "audit", "explain", ID)
    assert explained == (65 if fields.get("access") == 7 else 0)
    assert call(double, "audit", "search") == 0
    assert call(double, "audit", "show", "1") == 0
    shown = capfd.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_search_shows_a_table_newest_first(double: Double) -> None:
    double.records = [
        make_record(
            1,
            "encryption.decrypt",
            caller=ANNA,
            key="mail",
            version=4,
            outcome="ok",
        ),
        make_record(2, "caller.refused", outcome="refused", reason="NOT_ALLOWED", count=12),
        make_record(3, "access.use", caller={"uid": 0}, phase="intent", key="mail", access=ID),
    ]
    shown = run(double, "audit", "search").stdout.decode().splitlines()
    assert [line.split() for line in shown] == [
        ["SEQ", "TIME", "EVENT", "OUTCOME", "WHO", "KEY", "ACCESS"],
        ["3", "2026-11-25T22:45:03Z", "access.use", "begun", "0", "mail", ID],
        [
            *("2", "2026-11-25T22:45:02Z", "caller.refused", "refused", "NOT_ALLOWED"),
            *("(12", "times)", "-", "-", "-"),
        ],
        ["1", "2026-11-25T22:45:01Z", "encryption.decrypt", "ok", "anna", "mail", "v4", "-"],
    ]
    assert run(double, "audit", "search", "-n", "2", "--json").stdout.decode().splitlines() == [
        double.records[2].json,
        double.records[1].json,
    ]


def test_filters_become_the_requests_fields(double: Double) -> None:
    arguments = ("--key", "mail", "--account", "anna", "--uid", "0", "--access", ID)
    more = ("--event", "access", "--outcome", "refused", "--until", "2026-11-25T23:45+01:00")
    begun = datetime.now(UTC)
    assert call(double, "audit", "search", *arguments, *more, "--since", "2h") == 0
    (sent,) = double.asked
    assert (sent.key, sent.account, sent.uid, sent.access_id) == ("mail", "anna", 0, ID)
    assert sent.HasField("uid")
    assert (sent.event, sent.outcome) == ("access", "refused")
    assert sent.before.ToDatetime(UTC) == datetime(2026, 11, 25, 22, 45, tzinfo=UTC)
    since = sent.after.ToDatetime(UTC) - (begun - timedelta(hours=2))
    assert timedelta(0) <= since < timedelta(seconds=30)
    assert call(double, "audit", "tail", "--since", "2026-11-25") == 0
    assert double.asked[-1].after.ToDatetime(UTC) == datetime(2026, 11, 25, tzinfo=UTC)
    assert not double.asked[-1].HasField("uid")


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "--since", "yesterday"),
        ("search", "--since", ""),
        ("search", "--uid", "-1"),
        ("search", "--outcome", "good"),
        ("search", "-n", "0"),
        ("tail", "-n", "-1"),
        ("tail", "--access", "ar-1"),
        ("show",),
        ("explain", "7"),
    ],
)
def test_wrong_usage_exits_64_and_calls_nobody(double: Double, arguments: tuple[str, ...]) -> None:
    assert call(double, "audit", *arguments) == 64
    assert double.calls == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("0s", 0),
        ("", None),
        ("30", None),
        ("30m1h", None),
        ("-1h", None),
        ("1h 30m", None),
        ("\u0663h", None),
    ],
)
def test_durations_are_read_as_in_the_configuration(text: str, seconds: int | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert parse_duration(text) == expected


def test_tail_shows_the_newest_and_follows(double: Double) -> None:
    double.records = [make_record(number, "access.use") for number in range(1, 31)]
    shown = run(double, "audit", "tail", "--json").stdout.decode().splitlines()
    assert [json.loads(line)["seq"] for line in shown] == list(range(11, 31))
    with running(double, "audit", "tail", "-n", "1", "-f", "--json") as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["seq"]]
        double.records += [make_record(31, "access.use"), make_record(32, "run.end")]
        seen += [json.loads(process.stdout.readline())["seq"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=10)
        assert (seen, process.returncode, complaints.strip()) == ([30, 31, 32], 130, b"")


def test_following_begins_at_the_end_where_nothing_fits_yet(double: Double) -> None:
    double.records = [make_record(number, "run.start") for number in range(1, 4)]
    with running(double, "audit", "tail", "-f", "--event", "run.end") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"SEQ")
        while len(double.asked) < 3:
            double.entered.clear()
            assert double.entered.wait(10)
        assert [request.first_sequence for request in double.asked[:3]] == [0, 0, 4]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)


def test_one_record_is_shown_with_all_it_says(double: Double) -> None:
    double.records = story()
    shown = run(double, "audit", "show", "9").stdout.decode()
    assert "caller.uid: 1001\ncaller.gid: 100\ncaller.account: anna\n" in shown
    assert "context: account, evil\\u202e\\x1b[2J\\x0a\n" in shown
    assert "details.operation: decrypt\n" in shown
    assert (double.asked[-1].first_sequence, double.asked[-1].last_sequence) == (9, 9)
    by_id = run(double, "audit", "show", "r9", "--json").stdout.decode()
    assert by_id == f"{double.records[7].json}\n"
    missing = run(double, "audit", "show", "99")
    assert (missing.returncode, missing.stdout) == (65, b"")


def test_a_line_that_could_act_is_written_anew(
    double: Double, capfd: pytest.CaptureFixture[str]
) -> None:
    double.records = [make_record(1, "x")]
    double.records[0].json = '{"event":\n"evil\u202e"}'
    assert call(double, "audit", "search", "--json") == 0
    assert capfd.readouterr().out == '{"event": "evil\\u202e"}\n'


def test_a_checkpoint_is_printed_or_kept(double: Double, tmp_path: Path) -> None:
    double.records = [make_record(5, "checkpoint", details={"number": 1})]
    line = f"{double.records[0].json}\n"
    assert run(double, "audit", "checkpoint").stdout.decode() == line
    assert run(double, "audit", "checkpoint", "-o", str(tmp_path / "c")).returncode == 0
    assert (tmp_path / "c").read_text() == line
    double.failures = [
        Failure(grpc.StatusCode.NOT_FOUND, "there is none", reason="CHECKPOINT_NOT_FOUND")
    ]
    failed = run(double, "audit", "checkpoint", "-o", str(tmp_path / "d"))
    assert (failed.returncode, failed.stderr) == (65, b"keyside: there is none\n")
    assert not (tmp_path / "d").exists()
