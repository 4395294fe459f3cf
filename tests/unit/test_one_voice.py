"""One fact, one voice: times in one form, one table of severities, null where there is nothing."""

from __future__ import annotations

import inspect
import io
import json
import logging
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.access_double import ID, approve, make_record, make_request
from tests.unit.cli_process import run
from tests.unit.sidecar_double import STARTED_S, Double

import keyside_sidecar
from keyside.timestamps import format_timestamp
from keyside.v1 import access_pb2, keys_pb2, status_pb2
from keyside_sidecar import weaknesses
from keyside_sidecar.audit.problem import TEXTS
from keyside_sidecar.commands.findings import Finding, Grade
from keyside_sidecar.log import event, set_up_logging
from keyside_sidecar.problems import add_weakness
from keyside_sidecar.serving import Notice, Phase, Problem, ServingBoard
from keyside_sidecar.severity import SEVERITIES, Severity
from keyside_sidecar.weaknesses import Weakness, describe_unlocked_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDECAR = Path(keyside_sidecar.__file__).parent
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
# Whatever begins as a time does, with a T or a space behind the day.
TIME_LIKE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[\d.:+Z-]*")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
RECORD_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
HAS_PARTS = {"seconds": STARTED_S, "nanos": 123_456_789}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        fill(running)
        yield running


def fill(double: Double) -> None:
    """Have every field that is a time hold one, with a fraction of a second."""
    request = make_request(ID, state=access_pb2.ACCESS_STATE_ENDED, end_reason="REVOKED")
    approve(request, 0, "bob")
    for name in ("created_at", "decide_by", "approved_at", "activate_by", "activated_at"):
        set_time(getattr(request, name))
    set_time(request.expires_at)
    set_time(request.ended_at)
    set_time(request.levels[0].approvals[0].decided_at)
    use = access_pb2.AccessUse(operation=access_pb2.ACCESS_OPERATION_DECRYPT, key="mail", version=4)
    set_time(use.used_at)
    version = keys_pb2.KeyVersion(number=3, state=keys_pb2.KEY_VERSION_STATE_DESTROYED)
    for name in ("created_at", "activated_at", "archived_at", "disabled_at", "destroyed_at"):
        set_time(getattr(version, name))
    set_time(version.destroy_requested_at)
    set_time(version.usage.last_sealed_at)
    set_time(version.usage.last_opened_at)
    set_time(double.key.created_at)
    set_time(double.key.rotated_at)
    set_time(double.key.next_rollover_at)
    process = keys_pb2.SidecarProcess(host="mail-3", pid=7)
    set_time(process.seen_at)
    problem = status_pb2.Problem(reason="CLOCK_BEHIND", summary="x")
    set_time(problem.since)
    double.access, double.uses = {ID: request}, [use]
    double.versions, double.unacknowledged, double.problems = [version], [process], [problem]
    double.records = [
        make_record(
            1,
            "access.activate",
            access=ID,
            outcome="ok",
            details={"expires_at": "2026-11-25T22:45:11Z"},
        )
    ]


def set_time(stamp: Any) -> None:
    stamp.seconds, stamp.nanos = HAS_PARTS["seconds"], HAS_PARTS["nanos"]


COMMANDS = [
    ("keys", "list"),
    ("keys", "show", "mail"),
    ("keys", "rotate", "mail"),
    ("keys", "disable", "mail", "3"),
    ("keys", "destroy", "mail", "3", "--yes"),
    ("access", "list", "--all"),
    ("access", "show", ID),
    ("access", "revoke", ID),
    ("audit", "tail"),
    ("audit", "search"),
    ("audit", "explain", ID),
    ("status",),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_times_have_one_form(double: Double, command: tuple[str, ...], *, as_json: bool) -> None:
    done = run(double, *command, *(["--json"] if as_json else []))
    assert done.returncode in {0, 75}, done.stderr
    shown = (done.stdout + done.stderr).decode()
    found = [one.rstrip(".:") for one in TIME_LIKE.findall(shown)]
    assert found or command == ("keys", "list")
    # The log's own lines are as they were written.
    own = as_json and command[0] == "audit"
    wrong = [
        one for one in found if not TIME.fullmatch(one) and not (own and RECORD_TIME.fullmatch(one))
    ]
    assert wrong == []


def test_a_time_of_another_zone_is_told_in_utc() -> None:
    when = datetime(2026, 7, 5, 11, 0, 0, 999_999, timezone(timedelta(hours=2)))
    assert format_timestamp(when) == "2026-07-05T09:00:00Z"


def test_the_log_has_times_in_the_same_form() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("keyside_sidecar.test_one_voice")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        set_up_logging("info", stream)
        since = datetime(2026, 7, 5, 11, 0, 0, 5, timezone(timedelta(hours=2)))
        event(logger, logging.INFO, "over", since=since, all=[since], each={"x": since})
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    _, _, facts = stream.getvalue().partition("since=")
    assert TIME_LIKE.findall(facts) == ["2026-07-05T09:00:00Z"] * 3


def test_nobody_spells_a_time_himself() -> None:
    """Only these places make text of times; the rest call one of them."""
    own = {
        "timestamps.py",  # the one form
        "records.py",  # the audit log's, to the microsecond
        "log.py",  # the log's, to the millisecond
        "timeline.py",  # dates along an axis
    }
    client = Path(inspect.getfile(format_timestamp)).parent
    found = {
        path.name
        for place in (client, SIDECAR)
        for path in place.rglob("*.py")
        if re.search(
            r"(?<!from)isoformat\(|strftime\(|ToJsonString|:%Y-", path.read_text(encoding="utf-8")
        )
    }
    assert found - {path for path in found if path.endswith("_pb2.py")} <= own


# -- severities -------------------------------------------------------------------------------


def reasons_in(*names: str) -> set[str]:
    """Return the constants of that kind in some files, as they are written there."""
    text = "".join((SIDECAR / name).read_text(encoding="utf-8") for name in names)
    return set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', text))


def test_every_problem_has_a_severity() -> None:
    told = reasons_in(
        *("keys/health.py", "keys/caretaker.py", "keys/keyring.py", "audit/problem.py"),
        *("problems.py", "weaknesses.py", "candidate.py", "reload.py", "supervisor.py"),
    )
    assert told <= SEVERITIES.keys()
    assert set(TEXTS) <= SEVERITIES.keys()


def test_the_page_has_the_table() -> None:
    page = OPERATIONS.read_text(encoding="utf-8")
    for severity in Severity:
        (row,) = re.findall(rf"^\| {severity.name}: .*$", page, re.MULTILINE)
        listed = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", row))
        assert listed == {reason for reason, one in SEVERITIES.items() if one is severity}


@pytest.mark.parametrize("reason", SEVERITIES)
def test_a_problem_is_as_grave_in_check_in_status_and_in_the_log(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    severity = SEVERITIES[reason]
    weakness = Weakness(reason, "summary", "remedy")
    grade = {
        Severity.NOTE: Grade.NOTE,
        Severity.WARNING: Grade.WARNING,
        Severity.ERROR: Grade.FAILED,
    }[severity]
    finding = Finding.of_weakness("host", weakness)
    assert (finding.grade, finding.reason) == (grade, reason)
    board = ServingBoard(FrozenClock())
    board.phase = Phase.RUNNING
    with caplog.at_level(logging.DEBUG, "keyside_sidecar.problems"):
        add_weakness(board, weakness)
    assert [record.levelno for record in caplog.records] == [severity.log_level]
    (problem,) = board.problems()
    assert problem.severity is severity
    assert board.is_degraded() is (severity > Severity.NOTE)


class FrozenClock:
    """A clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 7, 5, 9, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return 0.0


def test_only_errors_block_or_raise_an_alarm() -> None:
    text = (SIDECAR / "problems.py").read_text(encoding="utf-8")
    assert "blocks_encryption" in text
    blocking = {"KEYS_NOT_READY", *TEXTS, *reasons_in("keys/health.py")}
    assert {SEVERITIES[reason] for reason in blocking} == {Severity.ERROR}


@pytest.mark.parametrize(
    ("swap", "reason"), [(False, "MEMORY_NOT_LOCKED"), (True, "KEYS_MAY_BE_SWAPPED")]
)
def test_unlocked_memory_is_grave_where_there_is_swap(
    monkeypatch: pytest.MonkeyPatch, reason: str, *, swap: bool
) -> None:
    monkeypatch.setattr(weaknesses, "_has_swap", lambda: swap)
    assert describe_unlocked_memory("why").reason == reason


def test_workers_tell_one_time_of_start_and_of_what_the_supervisor_says() -> None:
    """Each worker has a board of its own; what holds for the whole run has one time."""
    began = datetime(2026, 7, 5, 8, 59, 58, tzinfo=UTC)
    boards = [ServingBoard(FrozenClock(), began) for _ in range(2)]
    for board in boards:
        board.add_standing("PEER_PIDFD_FALLBACK", "x", "y")
        board.set_notices([Notice("CONFIG_INVALID", "x", "y", since_s=began.timestamp() + 60)])
    told = {
        (board.started_at, *((one.reason, one.since) for one in board.problems()))
        for board in boards
    }
    minute = timedelta(minutes=1)
    assert told == {(began, ("CONFIG_INVALID", began + minute), ("PEER_PIDFD_FALLBACK", began))}
    assert isinstance(boards[0].problems()[0], Problem)


# -- what is not known ------------------------------------------------------------------------


def test_a_stranger_is_told_null_and_no_blanks(double: Double, monkeypatch: Any) -> None:
    problem = status_pb2.Problem(
        reason="MEMORY_NOT_LOCKED", severity=status_pb2.PROBLEM_SEVERITY_NOTE
    )
    set_time(problem.since)
    answer = status_pb2.GetStatusResponse(serving=status_pb2.SERVING_YES, problems=[problem])
    set_time(answer.started_at)
    monkeypatch.setattr(double, "GetStatus", lambda *_: answer)
    double.stop()
    double.start()
    facts = json.loads(run(double, "status", "--json").stdout)
    assert facts == {
        "serving": "YES",
        "version": None,
        "started_at": "2023-11-14T22:13:20Z",
        "problems": [
            {
                "reason": "MEMORY_NOT_LOCKED",
                "severity": "NOTE",
                "summary": None,
                "remedy": None,
                "since": "2023-11-14T22:13:20Z",
                "blocking": False,
            }
        ],
        "you": None,
        "keys": [],
    }
    assert run(double, "status").stdout.decode() == (
        "serving: yes\n"
        "sidecar: since 2023-11-14T22:13:20Z\n"
        "note:    MEMORY_NOT_LOCKED since 2023-11-14T22:13:20Z\n"
    )


@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] != "audit"])
def test_json_has_null_and_never_an_empty_text(double: Double, command: tuple[str, ...]) -> None:
    """What every sidecar tells is there; what it may leave out is left out."""
    double.access = {ID: access_pb2.AccessRequest(id=ID, key="mail", host="mail-1", reason="why")}
    double.uses = [access_pb2.AccessUse(key="mail")]
    double.versions = [keys_pb2.KeyVersion(number=3, id=bytes(16))]
    double.key = keys_pb2.Key()
    double.problems = [status_pb2.Problem(reason="CLOCK_BEHIND")]
    double.unacknowledged = [keys_pb2.SidecarProcess(host="mail-3")]
    done = run(double, *command, "--json")
    assert list(empty_texts(json.loads(done.stdout))) == []


def empty_texts(value: Any, place: str = "") -> Iterator[str]:
    if value == "":
        yield place
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from empty_texts(one, f"{place}.{name}")
    elif isinstance(value, list):
        for one in value:
            yield from empty_texts(one, f"{place}[]")
