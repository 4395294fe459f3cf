"""Arguments and small files that are hostile or odd: the right exit code, and never a traceback."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyside import cli
from keyside.cli import exits

if TYPE_CHECKING:
    from collections.abc import Iterator

ID: Final = "ar-aaaaaaaaaaaa"
REQUEST: Final = ("access", "request", "k", "--password-stdin", "--reason")
# A command with one place, ``{}``, for what is odd.
PLACES: Final = {
    "timeout": ("--timeout", "{}", "status"),
    "socket": ("--socket", "{}", "status"),
    "expected owner": ("--expected-owner", "{}", "status"),
    "key": ("encrypt", "{}"),
    "context": ("encrypt", "k", "-c", "a={}"),
    "context's name": ("encrypt", "k", "-c", "{}=a"),
    "credential file": ("decrypt", "--credential-file", "{}"),
    "input": ("encrypt", "k", "-i", "{}"),
    "path": ("rewrap", "{}"),
    "journal": ("reencrypt", ".", "--journal", "{}"),
    "shown key": ("keys", "show", "{}"),
    "expected version": ("keys", "rotate", "k", "--expected-current", "{}"),
    "version": ("keys", "disable", "k", "{}"),
    "destroyed version": ("keys", "destroy", "k", "{}", "--yes"),
    "duration": (*REQUEST, "r", "--duration", "{}"),
    "reason": (*REQUEST, "{}", "--duration", "1h"),
    "versions": (*REQUEST, "r", "--duration", "1h", "--versions", "{}"),
    "operations": (*REQUEST, "r", "--duration", "1h", "--operations", "{}"),
    "uses": (*REQUEST, "r", "--duration", "1h", "--max-uses", "{}"),
    "ticket": (*REQUEST, "r", "--duration", "1h", "--ticket", "{}"),
    "id": ("access", "show", "{}"),
    "count": ("audit", "tail", "-n", "{}"),
    "searched count": ("audit", "search", "-n", "{}"),
    "since": ("audit", "search", "--since", "{}"),
    "until": ("audit", "search", "--until", "{}"),
    "uid": ("audit", "search", "--uid", "{}"),
    "record": ("audit", "show", "{}"),
    "log": ("audit", "verify", "{}"),
    "public key": ("audit", "verify", "/dev/null", "--public-key", "{}"),
    "checkpoint": ("audit", "verify", "/dev/null", "--checkpoint", "{}"),
    "shell": ("completion", "{}"),
}
ODD: Final = {
    "5,000 digits": "9" * 5000,
    "4,301 digits": "9" * 4301,
    "other digits": "\u0661\u0662",
    "no number": "nan",
    "infinity": "inf",
    "exponent": "1e400",
    "negative": "-1",
    "hexadecimal": "0x10",
    "underscore": "1_0",
    "space": " 1",
    "no UTF-8": "\udcff\udcfe",
    "line end": "1\n",
    "escape": "\x1b[31m",
    "nothing": "",
    "long": "x" * 100_000,
    "range of 5,000 digits": "1-" + "9" * 5000,
    "first year": "0001-01-01T00:00:00+14:00",
    "last year": "9999-12-31T23:59:59-14:00",
    "many days": "99999d",
}
TYPED: Final = {
    exits.USAGE,
    exits.DATA,
    exits.NO_INPUT,
    exits.UNAVAILABLE,
    exits.CANT_CREATE,
    exits.IO_ERROR,
    exits.CONFIG,
    exits.NOT_PERMITTED,
}
NUMBERS: Final = (
    "timeout",
    "expected version",
    "version",
    "uses",
    "count",
    "searched count",
    "uid",
)
NO_NUMBERS: Final = ("5,000 digits", "other digits", "no number", "hexadecimal", "underscore")


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYSIDE_SOCKET", str(tmp_path / "none.sock"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


def is_typed(code: int, arguments: tuple[object, ...]) -> bool:
    # 1: a log that was verified, and is not sound.
    return code in TYPED or (code == 1 and arguments[:2] == ("audit", "verify"))


def run(*arguments: str) -> int:
    return cli._run(["--timeout", "0.2", *arguments])


@pytest.mark.parametrize("place", PLACES)
def test_odd_argument_ends_in_a_typed_error(place: str, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    for what, text in ODD.items():
        code = run(*(part.replace("{}", text) for part in PLACES[place]))
        said = capfd.readouterr().err
        assert "Traceback" not in said, what
        assert "internal error" not in said, what
        assert is_typed(code, PLACES[place]) or code == exits.OK, (what, code, said[-500:])
        assert "\x1b" not in said
        if place in NUMBERS and what in NO_NUMBERS:
            assert code == exits.USAGE, (what, said[-500:])
    assert time.process_time() - began < 10


HOSTILE_BYTES: Final = {
    "nothing": b"",
    "zeros": bytes(5000),
    "no UTF-8": b"\xff\xfe" * 1000,
    "nested": b"[" * 100_000,
    "nested journal": b"[" * 4000 + b"\n",
    "nested objects": b'{"a":' * 100_000,
    "long number": b'{"v":1,"seq":' + b"9" * 5000 + b',"id":"',
    "a list": b"[]\n",
    "a number": b"9" * 4301,
    "constants": b'{"id":NaN,"key":Infinity}',
    "wrong types": b'{"id":1,"key":[],"credential":{},"expires_at":0,"socket":0,"operations":5}',
    "surrogate": b'{"id":"\\ud800","key":"\\ud800","credential":"\\ud800","expires_at":'
    b'"2026-01-01T00:00:00+00:00","socket":"\\ud800","operations":["\\ud800"]}',
    "a long line": b"a" * 3_000_000,
}


@pytest.mark.parametrize("what", HOSTILE_BYTES)
def test_file_of_odd_bytes_ends_in_a_typed_error(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "odd.jsonl"
    for arguments in (
        ("decrypt", "--credential-file", file),
        ("reencrypt", ".", "--journal", file),
        ("audit", "verify", file),
        ("audit", "verify", "/dev/null", "--checkpoint", file),
        ("decrypt", "-i", file),
        ("rewrap", "-i", file),
        ("rewrap", file),
    ):
        file.write_bytes(HOSTILE_BYTES[what])
        file.chmod(0o600)
        code = run(*map(str, arguments))
        said = capfd.readouterr().err
        assert "Traceback" not in said, arguments
        assert "internal error" not in said, arguments
        assert is_typed(code, arguments) or (what == "nothing" and code == exits.OK), (
            arguments,
            code,
            said,
        )


def test_endless_and_special_files_neither_hang_nor_exhaust(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/zero", str(tmp_path / "fifo"), str(tmp_path)):
        for arguments in (
            ("decrypt", "--credential-file", path),
            ("reencrypt", ".", "--journal", path),
            ("audit", "verify", "/dev/null", "--checkpoint", path),
        ):
            code = run(*arguments)
            assert code in TYPED, (arguments, capfd.readouterr().err)
