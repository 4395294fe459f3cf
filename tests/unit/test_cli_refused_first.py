"""What is refused before anybody is asked: every prompt and every read of standard input.

Each row is typed at a terminal on which nobody ever answers: whatever asked, or read, would hang.
"""

from __future__ import annotations

import ast
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from tests.unit.access_double import CREDENTIAL, ID, make_request
from tests.unit.cli_process import run
from tests.unit.sidecar_double import STARTED_S, Double, Failure

import keyside.cli
from keyside.envelope import VersionKey, seal
from keyside.names import KeyName, VersionNumber
from keyside.v1 import access_pb2, keys_pb2
from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.access.refusals import refuse
from keyside_sidecar.api.v1.status import make_status
from keyside_sidecar.errors import Refused
from keyside_sidecar.services.failures import describe_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = VersionKey(KeyName("mail"), VersionNumber(7), bytes(16), bytes(32))
ENVELOPE = seal(VERSION, b"x", {})
CLI = Path(keyside.cli.__file__).parent
ASKED = (b"[y/N]", b"Your password:", b"reading from the terminal")
NO_SOCKET = "/nowhere/k.sock"
APPROVE, DENY, ACTIVATE = (
    access_pb2.ACCESS_ACTION_APPROVE,
    access_pb2.ACCESS_ACTION_DENY,
    access_pb2.ACCESS_ACTION_ACTIVATE,
)
WISH = ("access", "request", "mail", "--reason", "why", "--duration", "9d")


class Row(NamedTuple):
    """A command, what makes it impossible, and how it says so."""

    command: tuple[str, ...]
    arrange: Callable[[Double], None]
    exit_code: int
    said: bytes
    socket: str = ""


def nothing(_: Double) -> None:
    """All is well with the sidecar."""


def forbid(action: access_pb2.AccessAction.ValueType, reason: str) -> Callable[[Double], None]:
    def arrange(double: Double) -> None:
        status = make_status(describe_failure(refuse(reason), ""))
        double.access[ID].prospects.add(action=action, refused=status)

    return arrange


def refuse_wish(double: Double) -> None:
    double.refuses_wish = Failure(
        grpc.StatusCode.INVALID_ARGUMENT, "duration: must be shorter", reason="BAD_REQUEST"
    )


def no_operator(double: Double) -> None:
    failure = describe_failure(Refused(Reason.NOT_AN_OPERATOR), "")
    double.key = keys_pb2.Key(change_refused=make_status(failure))


def version_in(state: keys_pb2.KeyVersionState.ValueType) -> Callable[[Double], None]:
    def arrange(double: Double) -> None:
        double.versions = [keys_pb2.KeyVersion(number=3, state=state)]

    return arrange


def table() -> Iterator[tuple[str, Row]]:
    commands: list[tuple[str, ...]] = [("encrypt", "mail"), ("decrypt",)]
    for command in (*commands, ("rewrap",), ("reencrypt",)):
        name = command[0]
        yield f"{name}: nowhere to write", Row((*command, "-o", "/nowhere/out"), nothing, 73, b"")
        yield f"{name}: sidecar away", Row((*command, "-o", "out"), nothing, 69, b"", NO_SOCKET)
        if name != "decrypt":  # which shows text
            yield f"{name}: binary to a terminal", Row(command, nothing, 64, b"would go to the ter")
        if name != "reencrypt":  # which takes no grants
            named = (*command, "-o", "out", "--credential-file")
            yield f"{name}: no such credential", Row((*named, "none"), nothing, 66, b"none")
            yield f"{name}: no credential", Row((*named, "empty"), nothing, 65, b"no credential")
            if name != "decrypt":
                yield (
                    f"{name}: credential for decrypt",
                    Row((*named, "kept"), nothing, 77, b"is for decrypt, not for"),
                )
            yield f"{name}: other sidecar", Row((*named, "elsewhere"), nothing, 64, b"--socket")
    yield "encrypt: no key", Row(("encrypt", "other", "-o", "out"), nothing, 77, b"no key other")
    approve, deny = ("access", "approve", ID), ("access", "deny", ID, "--reason", "no")
    people: list[tuple[str, ...]] = [approve, deny]
    for command in (*people, ("access", "activate", ID, "--credential-file", "new"), WISH):
        yield (
            f"{command[1]}: password in sight",
            Row((*command, "--password-stdin"), nothing, 64, b"would show the password"),
        )
        yield f"{command[1]}: sidecar away", Row(command, nothing, 69, b"", NO_SOCKET)
    yield "request: too long", Row(WISH, refuse_wish, 65, b"must be shorter")
    activate = ("access", "activate", ID, "--credential-file")
    for reason, code in (
        ("ACCESS_NOT_YOUR_LEVEL", 77),
        ("ACCESS_OWN_REQUEST", 77),
        ("ACCESS_DECIDED_ALREADY", 65),
        ("ACCESS_NOT_PENDING", 65),
    ):
        yield f"approve: {reason}", Row(approve, forbid(APPROVE, reason), code, b"what to do")
    for reason, code in (("ACCESS_OWN_REQUEST", 77), ("ACCESS_ACTIVE", 65)):
        yield f"deny: {reason}", Row(deny, forbid(DENY, reason), code, b"what to do")
    for reason, code in (("ACCESS_NOT_APPROVED", 65), ("ACCESS_NOT_YOURS", 77)):
        arrange = forbid(ACTIVATE, reason)
        yield f"activate: {reason}", Row((*activate, "new"), arrange, code, b"what to do")
    yield "activate: no place", Row(activate[:3], nothing, 64, b"KEYSIDE_CREDENTIAL_FILE")
    yield "activate: exists", Row((*activate, "kept"), nothing, 73, b"exists already")
    rotate = ("keys", "rotate", "mail", "--compromised")
    yield "rotate: no operator", Row(rotate, no_operator, 77, b"operator")
    other = (*rotate, "--expected-current", "7")
    yield "rotate: other version", Row(other, nothing, 65, b"is 250, not 7")
    destroy = ("keys", "destroy", "mail", "3")
    yield "destroy: no operator", Row(destroy, no_operator, 77, b"operator")
    for name, said in (("CURRENT", b"the current one"), ("DESTROYED", b"is destroyed")):
        state = keys_pb2.KeyVersionState.Value(f"KEY_VERSION_STATE_{name}")
        yield f"destroy: {name}", Row(destroy, version_in(state), 65, said)
    yield "destroy: no such", Row((*destroy[:3], "999"), nothing, 65, b"no version 999")


TABLE = dict(table())


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        running.access[ID] = make_request()
        yield running


def keep(path: Path, socket: str) -> None:
    path.write_text(
        f'{{"id": "{ID}", "key": "mail", "credential": "{CREDENTIAL}", "socket": "{socket}", '
        '"expires_at": "2096-10-02T07:06:40Z", "operations": ["decrypt"]}'
    )
    path.chmod(0o600)


def run_unanswered(
    folder: Path, socket: str, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Run ``keyside`` on a terminal on which nobody types; end it where it waits for that."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        outside = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
        outside |= {"KEYSIDE_SOCKET": socket, **(environment or {})}
        os.execve(sys.executable, [sys.executable, "-m", "keyside.cli", *arguments], outside)
    shown, until_s = b"", time.monotonic() + 30
    try:
        while select.select([terminal], [], [], max(0.0, until_s - time.monotonic()))[0]:
            chunk = os.read(terminal, 4096)
            shown += chunk
            if not chunk or any(asked in shown for asked in ASKED):
                break
    except OSError:  # the terminal's way to say that nobody is there any more
        pass
    finally:
        if any(asked in shown for asked in ASKED) or time.monotonic() >= until_s:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
    return code, shown


@pytest.mark.parametrize("name", TABLE)
def test_nobody_is_asked(double: Double, tmp_path: Path, name: str) -> None:
    row = TABLE[name]
    row.arrange(double)
    keep(tmp_path / "kept", double.socket)
    keep(tmp_path / "elsewhere", "/other.sock")
    (tmp_path / "empty").write_text("{}")
    (tmp_path / "empty").chmod(0o600)
    socket = row.socket or double.socket
    code, shown = run_unanswered(tmp_path, socket, "--timeout", "2", *row.command)
    assert not any(asked in shown for asked in ASKED), shown
    assert (code, row.said in shown) == (row.exit_code, True), shown
    assert not (tmp_path / "out").exists()
    assert double.asked == [] or not any(
        hasattr(request, "password") for request in double.asked
    ), "nothing with a password was sent"


def test_the_table_has_every_command_that_asks_or_reads() -> None:
    """Whatever calls one of these is a command of the table, or called by one."""
    asking = {"read_password", "require_consent", "Input", "read_input"}
    found: dict[str, set[str]] = {}
    for path in CLI.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                called = {
                    call.func.id
                    for call in ast.walk(function)
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                }
                if called & asking:
                    found.setdefault(path.stem, set()).add(function.name)
    assert found == {
        "access": {"request"},
        "activating": {"activate"},
        "crypt": {"encrypt", "decrypt"},
        "deciding": {"approve", "deny"},
        "files": {"read_input"},
        "keys": {"_confirm_compromised"},
        "rewrap": {"_rewrap_one", "reencrypt"},
        "versions": {"destroy"},
    }
    commands = {
        row.command[1] if row.command[0] in {"access", "keys"} else row.command[0]
        for row in TABLE.values()
    }
    assert commands == {
        *("encrypt", "decrypt", "rewrap", "reencrypt"),
        *("request", "approve", "deny", "activate"),
        *("rotate", "destroy"),
    }


def test_what_is_possible_is_asked(double: Double, tmp_path: Path) -> None:
    """The table's other half: where the sidecar says yes, or nothing, the question comes."""
    double.access[ID].prospects.add(action=APPROVE)
    for command, asked in (
        (("access", "approve", ID), b"[y/N]"),
        (("access", "deny", ID, "--reason", "no"), b"Your password:"),
        (("access", "activate", ID, "--credential-file", "new"), b"Your password:"),
        (WISH, b"Your password:"),
        (("keys", "destroy", "mail", "3"), b"[y/N]"),
        (("keys", "rotate", "mail", "--compromised"), b"[y/N]"),
        (("encrypt", "mail", "-o", "out"), b"reading from the terminal"),
    ):
        _, shown = run_unanswered(tmp_path, double.socket, *command)
        assert asked in shown


# -- grants that nobody named -----------------------------------------------------------------


def make_grant(double: Double, state: str) -> None:
    granted = double.access[ID]
    granted.requester.uid = os.geteuid()
    granted.key = "mail"
    granted.state = access_pb2.AccessState.Value(f"ACCESS_STATE_{state}")
    granted.expires_at.seconds = STARTED_S


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("ACTIVE", f"you have a grant, {ID}"),
        ("APPROVED", f"keyside access activate {ID}"),
        ("PENDING", f"keyside access show {ID}"),
        ("ENDED", "join the group"),
    ],
)
def test_a_refusal_tells_of_the_grant_that_would_have_helped(
    double: Double, tmp_path: Path, state: str, remedy: str
) -> None:
    make_grant(double, state)
    (tmp_path / "sealed").write_bytes(ENVELOPE)
    double.failures = [
        Failure(
            grpc.StatusCode.PERMISSION_DENIED,
            "no",
            reason="PEER_PERSON_LOGIN",
            metadata={"remedy": "join the group"},
        )
    ]
    done = run(double, "decrypt", "-i", str(tmp_path / "sealed"))
    assert done.returncode == 77
    assert remedy in done.stderr.decode()


@pytest.mark.parametrize("command", [("encrypt", "mail"), ("decrypt",), ("rewrap",)])
def test_the_environment_names_a_credential(
    double: Double, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """It is used where it fits, and does not stand in the way where it does not."""
    keep(tmp_path / "kept", double.socket)
    named = {"KEYSIDE_CREDENTIAL_FILE": str(tmp_path / "kept")}
    data: dict[str, Any] = {"stdin": ENVELOPE, "environment": named}
    assert run(double, *command, **data).returncode == 0
    assert double.credentials == [CREDENTIAL if command == ("decrypt",) else None]


def test_activate_keeps_the_credential_where_the_environment_says(
    double: Double, tmp_path: Path
) -> None:
    named = {"KEYSIDE_CREDENTIAL_FILE": str(tmp_path / "made")}
    done = run(
        double, "access", "activate", ID, "--password-stdin", stdin=b"pw\n", environment=named
    )
    assert done.returncode == 0, done.stderr
    assert CREDENTIAL in (tmp_path / "made").read_text()
    assert run(double, "access", "revoke", ID, environment=named).returncode == 0
    assert not (tmp_path / "made").exists(), "what has ended is removed"
