"""Missing descriptors, readers that go away, a directory that is gone: one command at a time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.unit.access_double import ID, make_record, make_request
from tests.unit.cli_process import running
from tests.unit.sidecar_double import Double
from tests.unit.surroundings import Oddity, start_oddly

from keyside.cli.watching import _INTERVAL_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYSIDE = [sys.executable, "-m", "keyside.cli"]
PREPARED = (
    "from keyside._standard_streams import prepare_streams; prepare_streams(); import os, sys\n"
)
CLOSED = [Oddity.OUTPUT_CLOSED, Oddity.INPUT_CLOSED, Oddity.ERRORS_CLOSED, Oddity.ALL_CLOSED]


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        running.access[ID] = make_request(ID)
        running.records = [make_record(1, "run.start")]
        yield running


@pytest.mark.parametrize("oddity", CLOSED)
def test_a_command_that_needs_no_missing_descriptor_does_its_work(
    double: Double, tmp_path: Path, oddity: Oddity
) -> None:
    """And writes to its own file alone."""
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(b"abc")
    where = {"KEYSIDE_SOCKET": double.socket}
    commands = (
        f"encrypt mail -i {plain} -o {sealed}",
        f"rewrap -i {sealed} -o {sealed}",
        f"decrypt -i {sealed} -o {opened}",
    )
    for command in commands:
        ended = start_oddly(oddity, [*KEYSIDE, *command.split()], where)
        assert (ended.code, ended.errors) == (0, "")
    assert (sealed.read_bytes(), opened.read_bytes()) == (b"KT::cba", b"abc")


@pytest.mark.parametrize("command", [["encrypt", "mail"], ["decrypt"], ["rewrap"], ["reencrypt"]])
def test_nothing_is_asked_for_that_could_not_be_written(double: Double, command: list[str]) -> None:
    """A use of a grant would be counted for nothing."""
    ended = start_oddly(Oddity.OUTPUT_CLOSED, [*KEYSIDE, "--socket", double.socket, *command])
    assert (ended.code, ended.errors) == (
        74,
        "keyside: can't write standard output: it is not open for writing\n",
    )
    assert double.calls == []


def test_a_password_is_not_taken_from_a_closed_input(double: Double) -> None:
    command = ["access", "approve", ID, "--password-stdin"]
    ended = start_oddly(Oddity.INPUT_CLOSED, [*KEYSIDE, "--socket", double.socket, *command])
    assert ended.code == 64
    assert "standard input is closed" in ended.errors
    assert double.calls == []


@pytest.mark.parametrize("oddity", CLOSED)
def test_whatever_is_opened_gets_no_standard_descriptor(tmp_path: Path, oddity: Oddity) -> None:
    """They are /dev/null, in programs that are started later as well."""
    told = tmp_path / "told"
    code = (
        f"{PREPARED}made = os.open({str(told)!r}, os.O_WRONLY | os.O_CREAT)\n"
        "os.write(made, b'%d ' % made)\n"
        "import subprocess\n"
        "ls = 'import os; print([os.readlink(f\"/proc/self/fd/{n}\") for n in range(3)])'\n"
        "subprocess.run([sys.executable, '-c', ls], stdout=made, check=True)\n"
        "print('output'); print('errors', file=sys.stderr); sys.stderr.flush()\n"
    )
    start_oddly(oddity, [sys.executable, "-c", code])
    number, names = told.read_text().split(" ", 1)
    assert int(number) > 2
    shown = ast.literal_eval(names)
    assert shown[1] == str(told)
    if oddity in {Oddity.INPUT_CLOSED, Oddity.ALL_CLOSED}:
        assert shown[0] == "/dev/null"
    if oddity in {Oddity.ERRORS_CLOSED, Oddity.ALL_CLOSED}:
        assert shown[2] == "/dev/null"


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("1</dev/null", "it is not open for writing"),
        ("1<>/dev/full", "No space left on device"),
        (">large", "File too large"),
        ("2>&1 >/dev/full | cat >&2", "No space left on device"),
    ],
)
def test_output_that_fails_in_other_ways(
    double: Double, tmp_path: Path, way: str, why: str
) -> None:
    """Whatever the reason, it is one line; and where that can't be written either, nothing."""
    rotate = " ".join([*KEYSIDE, "--socket", double.socket, "keys", "rotate", "mail"])
    limited = "ulimit -f 0; " if way == ">large" else ""
    for errors in ("", "2>/dev/full"):
        where = way if "|" in way else f"{way} {errors}"
        script = f"{limited}{rotate} {where}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 74
        told = f"{why}; but this was done: mail: version 251 is current"
        assert (told in done.stderr) is (errors == "" or "|" in way)
        assert len(done.stderr.splitlines()) < 2


def test_errors_that_nobody_reads_change_nothing(double: Double) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        for command, code in ((["keys", "list"], 0), (["no-such-command"], 64), (["decrypt"], 74)):
            done = subprocess.run(
                [*KEYSIDE, "--socket", double.socket, *command],
                stdin=subprocess.DEVNULL if code != 74 else nobody,
                stdout=subprocess.DEVNULL,
                stderr=nobody,
                check=False,
            )
            assert done.returncode == code


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """Whoever shares it may have made it so: large answers still arrive whole."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = f"{PREPARED}sys.stdout.write('x' * 1_000_000); sys.stdout.flush()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writer) as process:
        os.close(writer)
        time.sleep(0.3)
        with os.fdopen(reader, "rb") as stream:
            assert len(stream.read()) == 1_000_000
    assert process.returncode == 0


@pytest.mark.parametrize(
    "command",
    [["access", "watch"], ["access", "watch", "--json"], ["audit", "tail", "--follow"]],
    ids=" ".join,
)
def test_a_follower_ends_when_nobody_reads_it(double: Double, command: list[str]) -> None:
    """Soon, and not with the next news, which may never come."""
    with running(double, *command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        begun_s = time.monotonic()
        assert process.wait(20 * _INTERVAL_S) == 141
        assert time.monotonic() - begun_s < 10 * _INTERVAL_S
        assert process.stderr.read() == b""


def test_a_follower_ends_where_there_is_nothing_to_write_to(double: Double) -> None:
    """Not when the first record comes: its caller waits for what it will never see."""
    command = [*KEYSIDE, "--socket", double.socket, "audit", "tail", "-n0", "--json", "--follow"]
    for oddity, code in ((Oddity.OUTPUT_CLOSED, 74), (Oddity.OUTPUT_UNREAD, 141)):
        assert start_oddly(oddity, command).code == code


def test_completion_in_the_shell_exits_0(double: Double) -> None:
    asked = {
        "_KEYSIDE_COMPLETE": "bash_complete",
        "COMP_WORDS": "keyside stat",
        "COMP_CWORD": "1",
        "KEYSIDE_SOCKET": double.socket,
    }
    ended = start_oddly(Oddity.NOTHING, KEYSIDE, asked)
    assert (ended.code, ended.output, ended.errors) == (0, b"plain,status\n", "")
    assert start_oddly(Oddity.OUTPUT_FULL, KEYSIDE, asked).code == 74


# -- the working directory is gone ------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["--socket", "k.sock", "status"], 64, "k.sock is relative, and the working directory"),
        (["encrypt", "mail", "-i", "in"], 66, "can't read in: No such file or directory"),
        (["encrypt", "mail", "-i", "/dev/null", "-o", "out"], 73, "can't create out"),
        (["decrypt", "--credential-file", "c"], 66, "can't read c: No such file or directory"),
        (["rewrap", "folder"], 66, "folder: can't"),
        (["rewrap", "."], 66, ".: can't"),
        (["reencrypt", "folder"], 66, "the working directory does not exist any more"),
        (["reencrypt", "/etc/hostname", "--journal", "j"], 73, "j"),
        (["audit", "verify", "log"], 66, "log can't be opened"),
        (["audit", "checkpoint", "-o", "kept"], 73, "can't create kept"),
        (
            ["access", "activate", ID, "--password-stdin", "--credential-file", "c"],
            73,
            "can't keep a credential in c",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_relative_path_is_an_error_where_the_directory_is_gone(
    double: Double, command: list[str], code: int, said: str
) -> None:
    where = {"KEYSIDE_SOCKET": double.socket, "HOME": "/nonexistent"}
    ended = start_oddly(Oddity.DIRECTORY_GONE, [*KEYSIDE, *command], where)
    assert (ended.code, said in ended.errors) == (code, True), ended
    assert "Traceback" not in ended.errors


def test_a_relative_socket_in_the_environment_is_a_configuration_error() -> None:
    ended = start_oddly(
        Oddity.DIRECTORY_GONE, [*KEYSIDE, "status"], {"KEYSIDE_SOCKET": "unix:k.sock"}
    )
    assert ended.code == 78
    assert "what to do: give an absolute path" in ended.errors


@pytest.mark.parametrize(
    "code",
    [
        "print(keyside.Client(path).encrypt('mail', b'abc'))",
        "print(keyside.Client().encrypt('mail', b'abc'))",
        "print(asyncio.run(seal()))",
    ],
)
def test_clients_need_no_working_directory(double: Double, code: str) -> None:
    program = (
        "import asyncio, keyside\n"
        f"path = {double.socket!r}\n"
        "async def seal():\n"
        "    async with keyside.AsyncClient(path) as client:\n"
        "        return await client.encrypt('mail', b'abc')\n"
        f"{code}\n"
    )
    where = {"KEYSIDE_SOCKET": double.socket}
    ended = start_oddly(Oddity.DIRECTORY_GONE, [sys.executable, "-c", program], where)
    assert (ended.code, ended.output, ended.errors) == (0, b"b'KS::cba'\n", "")


def test_a_client_of_a_relative_path_says_what_is_wrong() -> None:
    program = (
        "import keyside\n"
        "try:\n"
        "    keyside.Client('k.sock')\n"
        "except keyside.InvalidArgument as error:\n"
        "    print(error.reason, error.remedy)\n"
    )
    ended = start_oddly(Oddity.DIRECTORY_GONE, [sys.executable, "-c", program])
    assert ended.output == b"INVALID_SOCKET give an absolute path\n"
