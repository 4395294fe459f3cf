"""keyside keys disable, enable, destroy, cancel-destroy and a compromised rotation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.cli_process import call, on_terminal, run
from tests.unit.sidecar_double import STARTED_S, Double, Failure

from keyside.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.capture import CaptureFixture

AWAY = Failure(grpc.StatusCode.UNAVAILABLE, "the store is away", reason="STORE_UNAVAILABLE")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


def process(host: str, pid: int, seen_s: int = 0) -> keys_pb2.SidecarProcess:
    made = keys_pb2.SidecarProcess(host=host, pid=pid)
    if seen_s:
        made.seen_at.seconds = seen_s
    return made


@pytest.mark.parametrize(
    ("arguments", "rpc", "words"),
    [
        (["disable"], "DisableVersion", "mail: version 3 is disabled: what is sealed under it"),
        (["enable"], "EnableVersion", "mail: version 3 is archived and decrypts"),
        (
            ["destroy", "--yes"],
            "DestroyVersion",
            "mail: version 3 is disabled, and will be destroyed in 7 d of the sidecars' running",
        ),
        (["cancel-destroy"], "CancelDestroyVersion", "mail: version 3 will not be destroyed"),
    ],
)
def test_a_change_says_what_it_did(
    double: Double, arguments: list[str], rpc: str, words: str, capsys: CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert call(double, "keys", command, "mail", "3", *options) == 0
    assert capsys.readouterr().out.startswith(words)
    assert double.calls[-1] == rpc
    assert (double.requests[-1].name, double.requests[-1].number) == ("mail", 3)
    assert call(double, "keys", command, "mail", "3", *options, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"]["number"] == 3
    assert facts["unacknowledged"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["disable", "mail", "3"],
        ["enable", "mail", "3"],
        ["destroy", "mail", "3", "--yes"],
        ["rotate", "mail", "--compromised", "--yes"],
    ],
)
def test_who_has_not_acknowledged_is_named_and_the_code_is_75(
    double: Double, arguments: list[str], capsys: CaptureFixture[str]
) -> None:
    double.unacknowledged = [process("alpha\x1b", 11, STARTED_S), process("beta", 12)]
    assert call(double, "keys", *arguments) == 75
    shown = capsys.readouterr()
    assert "version" in shown.out
    assert (
        "keyside: 2 processes have not acknowledged this, and may go on serving as before until "
        "the store is within reach there:\n"
        "  alpha\\x1b, pid 11, last seen 2023-11-14T22:13:20Z\n"
        "  beta, pid 12, last seen never\n"
        "  what to do: "
    ) in shown.err
    assert call(double, "keys", *arguments, "--json") == 75
    assert json.loads(capsys.readouterr().out)["unacknowledged"] == [
        {"host": "alpha\x1b", "pid": 11, "seen_at": "2023-11-14T22:13:20Z"},
        {"host": "beta", "pid": 12, "seen_at": None},
    ]


def test_a_compromised_rotation_explains_asks_and_is_bound_to_what_was_shown(
    double: Double,
) -> None:
    double.key.pending_version = 251
    code, shown = on_terminal(
        double, "keys", "rotate", "mail", "--compromised", typed=b"y\n", prompt=b"[y/N] "
    )
    text = shown.decode().replace("\r\n", "\n")
    assert code == 0
    assert text.startswith("Version 250 of mail is disabled everywhere at once")
    assert "version 251, made to follow it, is disabled with it" in text
    assert "keyside reencrypt on all that was sealed under it" in text
    assert "Disable version 250 of mail? [y/N] " in text
    assert text.endswith("mail: version 251 is current; version 250 is disabled\n")
    assert double.calls == ["GetKey", "RotateKey"]
    assert (double.requests[-1].expected_current, double.requests[-1].compromised) == (250, True)


@pytest.mark.parametrize(("typed", "exit_code"), [(b"n\n", 1), (b"\n", 1), (b"\x04", 130)])
def test_anything_but_yes_changes_nothing(double: Double, typed: bytes, exit_code: int) -> None:
    code, shown = on_terminal(double, "keys", "destroy", "mail", "3", typed=typed, prompt=b"[y/N] ")
    assert code == exit_code
    assert b"lost for ever" in shown
    assert set(double.calls) == {"GetKey"}


def test_nobody_is_asked_without_a_terminal(double: Double) -> None:
    for arguments in (["rotate", "mail", "--compromised"], ["destroy", "mail", "3"]):
        finished = run(double, "keys", *arguments, stdin=b"y\n")
        assert finished.returncode == 64
        assert b"give --yes" in finished.stderr
    assert double.calls == []


def test_destroying_says_how_much_the_version_was_used(
    double: Double, capsys: CaptureFixture[str]
) -> None:
    version = keys_pb2.KeyVersion(number=3, state=keys_pb2.KEY_VERSION_STATE_ARCHIVED)
    version.usage.messages = 1234
    version.usage.last_opened_at.seconds = STARTED_S
    double.versions = [keys_pb2.KeyVersion(number=4), version]
    assert call(double, "keys", "destroy", "mail", "3", "--yes") == 0
    assert (
        "  messages sealed under it: at most 1,234\n"
        "  last sealed: not recorded; last opened: 2023-11-14T22:13:20Z\n"
    ) in capsys.readouterr().err


def test_a_plain_rotation_asks_nothing_and_an_expected_version_is_kept(double: Double) -> None:
    assert call(double, "keys", "rotate", "mail") == 0
    assert call(double, "keys", "rotate", "mail", "--compromised", "--yes") == 0
    assert (
        call(double, "keys", "rotate", "mail", "--compromised", "--yes", "--expected-current", "7")
        == 0
    )
    sent = [(request.expected_current, request.compromised) for request in double.requests]
    assert sent == [(0, False), (250, True), (7, True)]


def test_what_may_be_repeated_is_and_calling_off_is_not(double: Double) -> None:
    for arguments in (["disable"], ["enable"], ["destroy", "--yes"]):
        double.failures = [AWAY]
        if arguments[0] == "destroy":
            double.failures = []
        assert call(double, "keys", arguments[0], "mail", "3", *arguments[1:]) == 0
    double.failures = [AWAY]
    assert call(double, "keys", "cancel-destroy", "mail", "3") == 69
    assert double.calls.count("CancelDestroyVersion") == 1
