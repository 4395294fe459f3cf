"""The keyside command as a process: what it prints, its exit codes, completion."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.cli_process import run
from tests.unit.sidecar_double import STARTED_S, VERSION_COUNT, Double, Failure

from keyside.v1 import status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"plaintext-that-must-not-show"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


def test_bytes_go_from_standard_input_to_standard_output(double: Double) -> None:
    sealed = run(double, "encrypt", "mail", "-c", "a=1", "--context", "b=", stdin=b"\x00abc\xff")
    assert (sealed.returncode, sealed.stdout, sealed.stderr) == (
        0,
        b"KS:a=1;b=;:\xffcba\x00",
        b"",
    )
    assert run(double, "decrypt", stdin=sealed.stdout).stdout == b"\x00abc\xff"
    assert run(double, "rewrap", stdin=sealed.stdout).stdout.startswith(b"KT:")


def test_a_context_value_may_hold_an_equals_sign(double: Double) -> None:
    assert run(double, "encrypt", "mail", "-c", "a=b=c").stdout == b"KS:a=b=c;:"


@pytest.mark.parametrize(
    "arguments",
    [
        ("encrypt", "mail", "-c", "novalue"),
        ("encrypt", "mail", "-c", "=x"),
        ("encrypt", "mail", "-c", "a=1", "-c", "a=2"),
        ("encrypt", "Mail"),
        ("encrypt",),
        ("nonsense",),
        ("--timeout", "0", "status"),
        ("--socket", "tcp://x", "status"),
        ("keys", "rotate", "mail", "--expected-current", "0"),
        ("keys", "rotate", "mail", "--compromised"),
        ("keys", "disable", "mail"),
        ("keys", "enable", "mail", "0"),
        ("keys", "destroy", "mail", "1"),
        ("keys", "cancel-destroy", "mail", "4294967296"),
        ("completion", "tcsh"),
    ],
)
def test_wrong_usage_exits_64_and_calls_nobody(double: Double, arguments: tuple[str, ...]) -> None:
    finished = run(double, *arguments)
    assert finished.returncode == 64
    assert finished.stdout == b""
    assert b"Error" in finished.stderr
    assert double.calls == []


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("INVALID_ARGUMENT", "ENVELOPE_REJECTED", 65),
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT", 65),
        ("FAILED_PRECONDITION", "VERSION_DISABLED", 65),
        ("FAILED_PRECONDITION", "VERSION_IN_USE", 65),
        ("FAILED_PRECONDITION", "VERSION_STATE", 65),
        ("NOT_FOUND", "VERSION_NOT_FOUND", 65),
        ("PERMISSION_DENIED", "NOT_ALLOWED", 77),
        ("UNAUTHENTICATED", "PEER_ENDED", 77),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", 69),
        ("UNAVAILABLE", "STORE_UNAVAILABLE", 69),
        ("INTERNAL", "INTERNAL", 70),
        ("UNKNOWN", "", 70),
    ],
)
def test_a_refusal_is_told_with_its_remedy_and_exit_code(
    double: Double, code: str, reason: str, exit_code: int
) -> None:
    metadata = {"remedy": "do \x1b[31mthis\u202e", "request_id": "r-1"}
    double.failures = [
        Failure(grpc.StatusCode[code], "no\nentry", reason=reason, metadata=metadata)
        for _ in range(50)
    ]
    finished = run(double, "--timeout", "2", "decrypt", stdin=SECRET)
    assert finished.returncode == exit_code
    assert finished.stdout == b""
    assert b"must-not-show" not in finished.stderr
    assert finished.stderr.startswith(b"keyside: ")
    if reason:
        assert finished.stderr.decode() == (
            "keyside: no\\x0aentry\n  request id: r-1\n  what to do: do \\x1b[31mthis\\u202e\n"
        )


def test_a_conflict_exits_65(double: Double) -> None:
    double.failures = [Failure(grpc.StatusCode.ABORTED, "it is 8", reason="ROTATION_CONFLICT")]
    finished = run(double, "keys", "rotate", "mail", "--expected-current", "7")
    assert (finished.returncode, finished.stderr) == (65, b"keyside: it is 8\n")


def test_no_sidecar_exits_69_and_says_how_to_start_one(tmp_path: Path) -> None:
    finished = run(tmp_path / "none.sock", "--timeout", "0.3", "decrypt")
    assert finished.returncode == 69
    assert b"there is no socket at" in finished.stderr
    assert b"what to do: start the sidecar" in finished.stderr


def test_an_untrusted_socket_exits_77(double: Double, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    finished = run(double, "decrypt")
    assert finished.returncode == 77
    assert b"writable by others" in finished.stderr


def test_a_wrong_environment_exits_78(double: Double) -> None:
    finished = run(double, "status", environment={"KEYSIDE_SOCKET": "tcp://x"})
    assert (finished.returncode, finished.stderr[:24]) == (78, b"keyside: KEYSIDE_SOCKET:")


def test_keys_are_listed_and_shown_for_people(double: Double) -> None:
    listed = run(double, "keys", "list").stdout.decode().splitlines()
    assert listed[0].split() == ["KEY", "CURRENT", "VERSIONS", "SINCE", "SUITE"]
    assert listed[1].split() == ["mail", "250", "250", "-", "AES-256-GCM"]
    shown = run(double, "keys", "show", "mail", "--all").stdout.decode().splitlines()
    assert shown[0] == "mail: version 250 is current"
    rows = [line.split() for line in shown if "ARCHIVED" in line]
    assert [row[:2] for row in rows] == [
        [str(number), "ARCHIVED"] for number in range(VERSION_COUNT, 0, -1)
    ]
    newest = run(double, "keys", "show", "mail").stdout.decode().splitlines()
    assert len([line for line in newest if line.split()[1:2] == ["ARCHIVED"]]) == 25
    assert newest[-1] == "... and 225 older: 225 ARCHIVED  (--all shows them)"
    rotated = run(double, "keys", "rotate", "mail").stdout
    assert rotated.startswith(b"mail: version 251 is current; version 250 is archived")


def test_json_has_its_documented_shape(double: Double) -> None:
    key = {
        "name": "mail",
        "current_version": 250,
        "version_count": 250,
        "created_at": "2023-11-14T22:13:20Z",
        "rotated_at": None,
        "suite": "AES-256-GCM",
        "pending_version": None,
        "rollover": None,
        "next_rollover_at": None,
    }
    assert STARTED_S == 1_700_000_000
    listed = json.loads(run(double, "keys", "list", "--json").stdout)
    assert listed == {"keys": [key, {**key, "name": "payroll"}]}
    shown = json.loads(run(double, "keys", "show", "mail", "--json").stdout)
    assert shown["key"] == key
    assert len(shown["versions"]) == VERSION_COUNT
    assert shown["versions"][0] == {
        "number": 250,
        "id": "000000000000000000000000000000fa",
        "state": "ARCHIVED",
        "created_at": "2023-11-14T22:17:30Z",
        "activated_at": None,
        "archived_at": None,
        "made_by_uid": None,
        "disabled_at": None,
        "disabled_by_uid": None,
        "destroy_requested_at": None,
        "destroy_requested_by_uid": None,
        "destroy_in_s": None,
        "destroyed_at": None,
        "usage": None,
    }
    rotated = json.loads(run(double, "keys", "rotate", "mail", "--json").stdout)
    assert rotated.keys() == {"key", "version", "previous", "unacknowledged"}
    assert rotated["version"]["number"] == 251


@pytest.mark.parametrize(
    ("serving", "exit_code"),
    [("YES", 0), ("DEGRADED", 0), ("STARTING", 69), ("DRAINING", 69), ("NO", 69)],
)
def test_status_exits_0_only_when_serving(double: Double, serving: str, exit_code: int) -> None:
    double.serving = status_pb2.Serving.Value(f"SERVING_{serving}")
    double.problems = [
        status_pb2.Problem(
            reason="MEMORY_NOT_LOCKED",
            summary="keys\ncan be swapped",
            remedy="raise the limit",
            severity=status_pb2.PROBLEM_SEVERITY_NOTE,
        )
    ]
    finished = run(double, "status")
    assert finished.returncode == exit_code
    assert finished.stdout.decode() == (
        f"serving: {serving.lower()}\n"
        "sidecar: 0.1.0, since 2023-11-14T22:13:20Z\n"
        "you:     uid 2 (evil\\u202e\\x1b[2J), gid 3, pid 1, no login\n"
        "key:     mail, version 7, ready\n"
        "note:    MEMORY_NOT_LOCKED\n"
        "         keys\\x0acan be swapped\n"
        "         what to do: raise the limit\n"
    )
    facts = run(double, "status", "--json")
    assert facts.returncode == exit_code
    assert json.loads(facts.stdout) == {
        "serving": serving,
        "version": "0.1.0",
        "started_at": "2023-11-14T22:13:20Z",
        "problems": [
            {
                "reason": "MEMORY_NOT_LOCKED",
                "severity": "NOTE",
                "summary": "keys\ncan be swapped",
                "remedy": "raise the limit",
                "since": None,
                "blocking": False,
            }
        ],
        "you": {
            "pid": 1,
            "uid": 2,
            "gid": 3,
            "account": "evil\u202e\x1b[2J",
            "login_uid": None,
            "refused": None,
            "remedy": None,
        },
        "keys": [{"name": "mail", "current_version": 7, "ready": True}],
    }
    assert facts.stdout.isascii()


def test_status_of_an_absent_sidecar_answers_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert run(tmp_path / "none", "status").returncode == 69
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(double: Double, shell: str) -> None:
    finished = run(double, "completion", shell)
    assert finished.returncode == 0
    assert f"_KEYSIDE_COMPLETE={shell}_complete".encode() in finished.stdout


def test_completion_offers_the_keys_that_the_sidecar_lists(double: Double, tmp_path: Path) -> None:
    environment = {
        "_KEYSIDE_COMPLETE": "bash_complete",
        "COMP_WORDS": "keyside encrypt m",
        "COMP_CWORD": "2",
    }
    assert run(double, environment=environment).stdout == b"plain,mail\n"
    assert run(tmp_path / "none", environment=environment).stdout.strip() == b""


def test_help_and_version_load_no_grpc(double: Double) -> None:
    code = (
        "import sys\n"
        "from keyside.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert not {'grpc', 'google.protobuf', 'cryptography'} & sys.modules.keys()\n"
    )
    for arguments in (
        ["--help"],
        ["keys", "show", "--help"],
        ["access", "approve", "--help"],
        ["audit", "verify", "--help"],
        ["--version"],
        ["completion", "zsh"],
    ):
        finished = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, check=False
        )
        assert (finished.returncode, finished.stderr) == (0, b""), arguments
    assert double.calls == []


def test_import_keyside_loads_no_grpc() -> None:
    code = "import keyside, sys; keyside.Client('/x'); sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
