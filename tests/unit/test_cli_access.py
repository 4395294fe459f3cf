"""keyside access: asking, deciding and telling; passwords come from the terminal or a pipe."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.access_double import (
    ASKED_S,
    CREDENTIAL,
    ID,
    OTHER_ID,
    approve,
    make_request,
)
from tests.unit.cli_process import call, converse, run, running
from tests.unit.sidecar_double import Double, Failure

from keyside.v1 import access_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = b"correct horse"
EVIL = "evil\u202e\x1b[2J\n"
ASK = ("access", "request", "mail", "--reason", "why", "--duration", "30m")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        running.access[ID] = make_request()
        yield running


def test_a_request_is_made_as_it_was_typed(double: Double) -> None:
    finished = run(
        double,
        *("access", "request", "mail", "--reason", "why", "--duration", "1h30m"),
        *("--ticket", "T", "--operations", "decrypt,rewrap", "--versions", "3-5,7"),
        *("-c", "a=1", "--max-uses", "2", "--password-stdin"),
        stdin=PASSWORD + b"\nnot this",
    )
    assert (finished.returncode, finished.stdout) == (0, f"{ID}\n".encode())
    assert finished.stderr.decode() == (
        "to be approved by 1 of managers, then 2 of legal until 2096-10-02T07:06:40Z: "
        f"keyside access approve {ID}\nafterwards:  keyside access activate {ID}\n"
    )
    (sent,) = double.asked
    assert sent.password == PASSWORD
    assert (sent.reason, sent.ticket, sent.duration.seconds, sent.max_uses) == ("why", "T", 5400, 2)
    assert list(sent.operations) == [1, 2]
    assert [(one.first, one.last) for one in sent.versions] == [(3, 5), (7, 7)]
    assert dict(sent.context) == {"a": "1"}


@pytest.mark.parametrize(
    "arguments",
    [
        (*ASK,),
        ("access", "approve", ID),
        ("access", "approve", ID, "--yes"),
        ("access", "deny", ID, "--reason", "no"),
        ("access", "activate", ID),
    ],
    ids=lambda arguments: arguments[1],
)
def test_nothing_asks_for_a_password_where_nobody_is(
    double: Double, arguments: tuple[str, ...]
) -> None:
    finished = run(double, *arguments, stdin=PASSWORD + b"\n")
    assert (finished.returncode, finished.stdout) == (64, b"")
    assert b"give --password-stdin" in finished.stderr
    assert double.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        (*ASK, "--operations", "decrypt,reencrypt"),
        (*ASK, "--operations", "unknown"),
        (*ASK, "--versions", "5-3"),
        (*ASK, "--versions", "0"),
        (*ASK, "--versions", "3,,5"),
        (*ASK, "--versions", "4294967296"),
        (*ASK, "--max-uses", "0"),
        (*ASK, "--duration", "0s"),
        (*ASK, "--duration", "30"),
        (*ASK, "--duration", "30m1h"),
        (*ASK, "-c", "x"),
        (*ASK, "--password", "secret"),
        ("access", "request", "mail", "--reason", "why"),
        ("access", "request", "mail", "--duration", "5m"),
        ("access", "request", "Mail", "--reason", "why", "--duration", "5m"),
        ("access", "show", "ar-1"),
        ("access", "deny", ID),
        ("access", "revoke", ID.upper()),
    ],
)
def test_wrong_usage_exits_64_and_calls_nobody(double: Double, arguments: tuple[str, ...]) -> None:
    password = ("--password-stdin",) if "request" in arguments else ()
    assert call(double, *arguments, *password) == 64
    assert double.calls == []


@pytest.mark.parametrize("line", [b"", b"\n", b"a\0b\n", b"x" * 1025 + b"\n"])
def test_what_is_no_password_is_not_sent(double: Double, line: bytes) -> None:
    finished = run(double, *ASK, "--password-stdin", stdin=line)
    assert finished.returncode == 64
    assert b"a password is 1 to 1,024 bytes" in finished.stderr
    assert double.calls == []


def test_an_approver_sees_what_is_asked_and_types_unseen(double: Double) -> None:
    double.access[ID].reason = EVIL
    approve(double.access[ID], 1, "carol")
    code, shown = converse(
        double,
        *("access", "approve", ID, "--comment", "fine"),
        answers=[(b"[y/N]", b"y\n"), (b"Your password:", PASSWORD + b"\n")],
    )
    assert code == 0
    assert PASSWORD not in shown
    assert b"\x1b" not in shown
    lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert lines[:-1] == [
        f"{ID}: PENDING, waits for managers, until 2096-10-02T07:06:40Z "
        + lines[0].partition("Z ")[2],
        "who:        anna (uid 1001) on host-1, 2023-11-14T22:13:20Z",
        "why:        evil\\u202e\\x1b[2J\\x0a",
        "ticket:     INC-42",
        "key:        mail",
        "operations: decrypt",
        "versions:   3-5, 7",
        "context:    account=42",
        "for:        30 min, 10 uses at most",
        "level 1:    managers, 0 of 1 approval",
        "level 2:    legal, 1 of 2 approvals",
        "            2023-11-14T22:14:20Z  carol (uid 1105)",
        f"Approve {ID}? [y/N] y",
        "Your password: ",
    ]
    assert lines[-1].startswith(f"{ID}: approved; it is PENDING, waits for legal")
    assert double.asked[-1] == access_pb2.ApproveAccessRequest(
        id=ID, comment="fine", password=PASSWORD
    )


def test_an_approver_may_think_again(double: Double) -> None:
    code, shown = converse(double, "access", "approve", ID, answers=[(b"[y/N]", b"n\n")])
    assert (code, double.calls) == (1, ["GetAccess"])
    assert b"password" not in shown


def test_closing_the_terminal_at_the_password_sends_nothing(double: Double) -> None:
    answers = [(b"Your password:", b"\x04")]
    code, _ = converse(double, "access", "approve", ID, "--yes", answers=answers)
    assert (code, double.calls) == (130, ["GetAccess"])


def test_a_password_for_standard_input_is_not_typed_in_view(double: Double) -> None:
    code, shown = converse(double, *ASK, "--password-stdin", answers=[])
    assert (code, double.calls) == (64, [])
    assert b"leave --password-stdin out" in shown


def test_the_terminal_echoes_again_after_an_interruption(double: Double, tmp_path: Path) -> None:
    """Ctrl-C at the prompt: what is typed into the shell afterwards is to be seen."""
    script = tmp_path / "both.py"
    script.write_text(
        "import subprocess, sys, termios\n"
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "code = subprocess.run([sys.executable, '-m', 'keyside.cli', *sys.argv[1:]],\n"
        "    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))\n"
        "print('left', code.returncode, bool(termios.tcgetattr(0)[3] & termios.ECHO))\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["KEYSIDE_SOCKET"] = double.socket
        os.execv(sys.executable, [sys.executable, str(script), *ASK])
    shown = b""
    while b"Your password:" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    while b"left" not in shown or not shown.endswith(b"\r\n"):
        shown += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert b"left 130 True" in shown


def test_denying_cancelling_and_revoking_say_how_it_ended(double: Double) -> None:
    ended = "2023-11-14T22:16:20Z"
    denied = run(
        double, "access", "deny", ID, "--reason", EVIL, "--password-stdin", stdin=PASSWORD + b"\n"
    )
    assert denied.stdout.decode() == (
        f"{ID}: ended {ended}, DENIED by bob (uid 1103): evil\\u202e\\x1b[2J\\x0a\n"
    )
    assert double.asked[-1].password == PASSWORD
    assert run(double, "access", "cancel", ID).stdout.decode() == (
        f"{ID}: ended {ended}, CANCELLED by bob (uid 1103)\n"
    )
    assert run(double, "access", "revoke", ID, "--reason", "done").stdout.decode() == (
        f"{ID}: ended {ended}, REVOKED by bob (uid 1103): done\n"
    )


def test_the_whole_story_is_told(double: Double) -> None:
    found = double.access[ID]
    approve(found, 0, "bob", comment="fine")
    approve(found, 1, "carol", struck="LEFT_GROUP")
    approve(found, 1, "dora")
    approve(found, 1, "eve")
    found.state = access_pb2.ACCESS_STATE_ENDED
    found.approved_at.seconds = found.activated_at.seconds = ASKED_S + 60
    found.expires_at.seconds = ASKED_S + 1860
    found.ended_at.seconds = ASKED_S + 120
    found.end_reason = "REVOKED"
    found.end_comment = "done"
    found.ended_by.CopyFrom(found.requester)
    found.used = 3
    for number in range(2):
        use = access_pb2.AccessUse(
            operation=access_pb2.ACCESS_OPERATION_DECRYPT, key="mail", version=4
        )
        use.used_at.seconds = ASKED_S + 70 + number
        if not number:
            use.envelope_sha256 = b"\xab" * 32
            use.context["account"] = EVIL
        double.uses.append(use)
    shown = run(double, "access", "show", ID).stdout.decode().splitlines()
    assert shown[0] == f"{ID}: ENDED (REVOKED)"
    assert shown[9:] == [
        "level 1:    managers, 1 of 1 approval",
        "            2023-11-14T22:14:20Z  bob (uid 1103): fine",
        "level 2:    legal, 2 of 2 approvals",
        "            2023-11-14T22:14:20Z  carol (uid 1105) (counts no longer: LEFT_GROUP)",
        "            2023-11-14T22:14:20Z  dora (uid 1104)",
        "            2023-11-14T22:14:20Z  eve (uid 1103)",
        "approved:   2023-11-14T22:14:20Z",
        "activated:  2023-11-14T22:14:20Z, until 2023-11-14T22:44:20Z at the latest",
        "ended:      2023-11-14T22:15:20Z, REVOKED by anna (uid 1001): done",
        "opened:     3 of 10 uses",
        (
            f"            2023-11-14T22:14:30Z  decrypt, version 4, envelope {'ab' * 32}, "
            "account=evil\\u202e\\x1b[2J\\x0a"
        ),
        "            2023-11-14T22:14:31Z  decrypt, version 4",
        f"            ... and 1 more; keyside audit explain {ID}",
    ]


def test_lists_show_what_is_open_or_everything(double: Double) -> None:
    approve(double.access[ID], 0, "bob")
    ended = double.access[OTHER_ID] = make_request(OTHER_ID, end_reason="DENIED")
    ended.state = access_pb2.ACCESS_STATE_ENDED
    ended.ended_at.seconds = ASKED_S
    rows = [
        [ID, "PENDING", "mail", "anna", "decrypt", "30", "min", "1/3", "0/10"],
        [OTHER_ID, "ENDED", "DENIED", "mail", "anna", "decrypt", "30", "min", "0/3", "0/10"],
    ]
    shown = run(double, "access", "list").stdout.decode().splitlines()
    assert [line.split()[:-2] for line in shown[1:]] == rows[:1]
    shown = run(double, "access", "list", "--all").stdout.decode().splitlines()
    assert [line.split()[:-2] for line in shown[1:]] == rows
    assert [line.split()[-1] for line in shown[1:]] == ["legal", "-"]


def test_json_has_its_documented_shape(double: Double, tmp_path: Path) -> None:
    request = {
        "id": ID,
        "state": "PENDING",
        "key": "mail",
        "requester": {"uid": 1001, "account": "anna"},
        "host": "host-1",
        "reason": "mails of user 42 do not arrive",
        "ticket": "INC-42",
        "operations": ["decrypt"],
        "versions": [{"first": 3, "last": 5}, {"first": 7, "last": 7}],
        "context": {"account": "42"},
        "max_uses": 10,
        "used": 0,
        "duration_s": 1800,
        "created_at": "2023-11-14T22:13:20Z",
        "decide_by": "2096-10-02T07:06:40Z",
        "approved_at": None,
        "activate_by": None,
        "activated_at": None,
        "expires_at": None,
        "ended_at": None,
        "end_reason": None,
        "ended_by": None,
        "end_comment": None,
        "waits_for": {"group": "managers", "approvals_missing": 1, "person": None},
        "your_turn": None,
        "levels": [
            {"group": "managers", "approvals_needed": 1, "approvals_given": 0, "approvals": []},
            {"group": "legal", "approvals_needed": 2, "approvals_given": 0, "approvals": []},
        ],
    }
    made = run(double, *ASK, "--password-stdin", "--json", stdin=PASSWORD)
    assert json.loads(made.stdout) == {"request": request}
    assert made.stderr == b""
    assert json.loads(run(double, "access", "list", "--json").stdout) == {"requests": [request]}
    shown = json.loads(run(double, "access", "show", ID, "--json").stdout)
    assert shown == {"request": request, "uses": []}
    approved = run(double, "access", "approve", ID, "--password-stdin", "--json", stdin=PASSWORD)
    (approval,) = json.loads(approved.stdout)["request"]["levels"][0]["approvals"]
    assert approval == {
        "person": {"uid": 1103, "account": "bob"},
        "decided_at": "2023-11-14T22:14:20Z",
        "comment": None,
        "struck": None,
    }
    kept = str(tmp_path / "credential")
    arguments = ("access", "activate", ID, "--password-stdin", "--json", "--credential-file", kept)
    activated = run(double, *arguments, stdin=PASSWORD)
    assert json.loads(activated.stdout)["credential_file"] == kept
    assert CREDENTIAL.encode() not in activated.stdout + activated.stderr
    ended = json.loads(run(double, "access", "revoke", ID, "--json").stdout)["request"]
    assert (ended["state"], ended["end_reason"]) == ("ENDED", "REVOKED")
    assert ended["ended_by"] == {"uid": 1103, "account": "bob"}


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("UNAUTHENTICATED", "AUTHENTICATION_DENIED", 77),
        ("RESOURCE_EXHAUSTED", "AUTHENTICATION_LIMITED", 77),
        ("UNAUTHENTICATED", "ACCOUNT_LOCKED", 77),
        ("UNAVAILABLE", "AUTHENTICATION_UNAVAILABLE", 69),
        ("UNAVAILABLE", "AUDIT_UNAVAILABLE", 69),
        ("FAILED_PRECONDITION", "ACCESS_ENDED", 65),
        ("PERMISSION_DENIED", "ACCESS_OWN_REQUEST", 77),
        ("NOT_FOUND", "ACCESS_NOT_FOUND", 65),
    ],
)
def test_refusals_have_their_exit_codes(
    double: Double, capfd: pytest.CaptureFixture[str], code: str, reason: str, exit_code: int
) -> None:
    double.failures = [Failure(grpc.StatusCode[code], "no", reason=reason)] * 9
    assert call(double, "--timeout", "0.3", "access", "show", ID) == exit_code
    assert capfd.readouterr().err == "keyside: no\n"


def test_a_lost_answer_says_where_to_look(double: Double) -> None:
    double.failures = [Failure(grpc.StatusCode.UNAVAILABLE)]
    finished = run(double, *ASK, "--password-stdin", stdin=PASSWORD)
    assert finished.returncode == 69
    assert b"then see whether it was made: keyside access list" in finished.stderr
    assert PASSWORD not in finished.stderr


def test_the_time_limit_that_is_given_holds_with_a_password_too(double: Double) -> None:
    double.delay_s = 0.3
    given = run(double, "--timeout", "0.1", *ASK, "--password-stdin", stdin=PASSWORD)
    assert given.returncode == 69
    assert run(double, *ASK, "--password-stdin", stdin=PASSWORD).returncode == 0


def test_watch_prints_changes_as_they_come(double: Double) -> None:
    with running(double, "access", "watch", "--json") as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())]
        double.access[OTHER_ID] = make_request(OTHER_ID)
        seen.append(json.loads(process.stdout.readline()))
        approve(double.access[ID], 0, "bob", comment=EVIL)
        double.failures = [
            Failure(grpc.StatusCode.UNAVAILABLE, "away", reason="STORE_UNAVAILABLE")
        ] * 99
        time.sleep(1.2)
        double.failures = []
        seen.append(json.loads(process.stdout.readline()))
        double._end(ID, "DENIED", "no")
        seen.append(json.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=10)
    assert process.returncode == 130
    assert [(one["change"], one["request"]["id"]) for one in seen] == [
        ("OPEN", ID),
        ("REQUESTED", OTHER_ID),
        ("APPROVAL", ID),
        ("ENDED", ID),
    ]
    assert seen[-1]["request"]["end_reason"] == "DENIED"
    assert b"Traceback" not in complaints


def test_letters_that_the_terminal_does_not_have_are_spelt_out(double: Double) -> None:
    double.access[ID].reason = "sch\u00f6n \u65e5"
    environment = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    shown = run(double, "access", "show", ID, environment=environment)
    assert shown.returncode == 0
    assert b"sch\xf6n \\u65e5" in shown.stdout


def test_ids_are_completed(double: Double) -> None:
    environment = {
        "_KEYSIDE_COMPLETE": "bash_complete",
        "COMP_WORDS": "keyside access approve ar-a",
        "COMP_CWORD": "3",
    }
    assert run(double, environment=environment).stdout == f"plain,{ID}\n".encode()
