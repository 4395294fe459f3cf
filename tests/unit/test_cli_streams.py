"""Every keyside command where a standard stream, the directory or the terminal is missing."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from tests.unit.access_double import ID, make_record, make_request
from tests.unit.audit_chain import make_chain
from tests.unit.sidecar_double import Double
from tests.unit.surroundings import (
    LOST_OUTPUT,
    Call,
    Ended,
    Oddity,
    WarmProgram,
    judge,
    start_oddly,
)

from keyside.cli.commands import keyside

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (
    "click.shell_completion",
    "keyside._access_messages",
    "keyside._bulk_messages",
    "keyside._channel",
    "keyside._connection",
    "keyside._messages",
    "keyside._sealed_input",
    "keyside._translate",
    "keyside.audit",
    "keyside.cli.commands",
)
PASSWORD = b"a password\n"
INPUT, ANSWER = 74, 64  # what a command ends with that has no input, or no password
ENOUGH_S, ENDED = 1.0, 143
WITHOUT_INPUT = {Oddity.INPUT_CLOSED, Oddity.ALL_CLOSED}


@dataclass(frozen=True)
class Row:
    """One way to call a command.

    Args:
        arguments: What follows its name; ``{new}`` is a path where nothing is, ``{folder}`` an
            empty directory, ``{log}`` an audit log.
        stdin: What it reads.
        done: What somebody must be told, even where standard output does not take it.
        without_input: Its exit code where standard input is closed, if not the usual one.
        endless: It goes on until it is ended.
    """

    arguments: str = ""
    stdin: bytes = b""
    done: str = ""
    without_input: int | None = None
    endless: bool = False


# A command that is not here is called without arguments, and held to the same rules.
ROWS = {
    "encrypt": [
        Row("mail", b"abc", without_input=INPUT),
        Row("mail -i /dev/null -o {new}"),
    ],
    "decrypt": [Row("", b"KS::abc", without_input=INPUT)],
    "rewrap": [
        Row("", b"KS::abc", without_input=INPUT),
        Row("{folder}", done="0 files rewrapped"),
        Row("{folder} --json", done="0 files rewrapped"),
    ],
    "reencrypt": [
        Row("", b"KS::abc", without_input=INPUT),
        Row("{folder} --journal {new}", done="0 files re-encrypted"),
    ],
    "keys show": [Row("mail")],
    "keys rotate": [
        Row("mail", done="mail: version 251 is current; version 250 is archived"),
        Row("mail --json", done="mail: version 251 is current; version 250 is archived"),
        Row("mail --compromised --yes", done="version 251 is current; version 250 is disabled"),
    ],
    "keys disable": [Row("mail 3", done="mail: version 3 is disabled")],
    "keys enable": [Row("mail 3", done="mail: version 3 is archived and decrypts")],
    "keys destroy": [
        Row("mail 3 --yes", done="mail: version 3 is disabled, and will be destroyed")
    ],
    "keys cancel-destroy": [Row("mail 3", done="mail: version 3 will not be destroyed")],
    "access request": [
        Row(
            f"mail --reason why --duration 30m --password-stdin{json}",
            PASSWORD,
            done=f"{ID}: access to mail was requested",
            without_input=ANSWER,
        )
        for json in ("", " --json")
    ],
    "access show": [Row("ar-222222222222")],
    "access approve": [
        Row(
            "ar-333333333333 --password-stdin",
            PASSWORD,
            done="ar-333333333333: approved",
            without_input=ANSWER,
        )
    ],
    "access deny": [
        Row(
            "ar-444444444444 --reason no --password-stdin",
            PASSWORD,
            done="ar-444444444444: ended",
            without_input=ANSWER,
        )
    ],
    "access cancel": [Row("ar-555555555555", done="ar-555555555555: ended")],
    "access activate": [
        Row(
            f"ar-666666666666 --password-stdin --credential-file {{new}}{json}",
            PASSWORD,
            done="ar-666666666666: active until",
            without_input=ANSWER,
        )
        for json in ("", " --json")
    ],
    "access revoke": [Row("ar-777777777777", done="ar-777777777777: ended")],
    "access watch": [Row(endless=True), Row("--json", endless=True)],
    "audit tail": [Row(), Row("--follow --json", endless=True)],
    "audit show": [Row("2")],
    "audit explain": [Row(ID)],
    "audit verify": [Row("{log}"), Row("{log} --json")],
    "status": [Row(), Row("--json")],
    "completion": [Row("bash"), Row("fish")],
}


def list_commands(group: click.Group, *above: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_commands(command, *above, name)
        else:
            yield " ".join((*above, name))


COMMANDS = list(list_commands(keyside))
TABLE = [(command, row) for command in COMMANDS for row in ROWS.get(command, [Row()])]


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Double]:
    with Double(tmp_path_factory.mktemp("double") / "k.sock") as running:
        for number in range(2, 8):
            one = f"ar-{str(number) * 12}"
            running.access[one] = make_request(one)
        running.records = [
            make_record(1, "run.start"),
            make_record(2, "access.request", access=ID, outcome="ok"),
        ]
        yield running


@dataclass(frozen=True)
class Runner:
    """Runs the table, each row with a place of its own."""

    program: WarmProgram
    place: Path
    log: Path

    def run_all(self, oddity: Oddity) -> list[Ended]:
        return self.program.run_all(oddity, [self._make_call(oddity, *entry) for entry in TABLE])

    def _make_call(self, oddity: Oddity, command: str, row: Row) -> Call:
        place = Path(tempfile.mkdtemp(prefix=oddity.name, dir=self.place))
        folder = place / "folder"
        folder.mkdir()
        arguments = row.arguments.format(new=place / "new", folder=folder, log=self.log)
        goes_on = row.endless and oddity not in LOST_OUTPUT
        return Call(
            ["keyside", *command.split(), *arguments.split()],
            row.stdin,
            ENOUGH_S if goes_on else None,
        )


@pytest.fixture(scope="module")
def runner(double: Double, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    place = tmp_path_factory.mktemp("runs")
    log = place / "log"
    log.mkdir()
    lines = [line for file in make_chain(20, files=1).files for line in file]
    (log / "audit.jsonl").write_bytes(b"".join(lines))
    # Without a home directory: nothing of it may be needed.
    with WarmProgram("keyside.cli:main", MODULES, {"KEYSIDE_SOCKET": double.socket}) as program:
        yield Runner(program, place, log)


@pytest.fixture(scope="module")
def usually(runner: Runner) -> list[Ended]:
    return runner.run_all(Oddity.NOTHING)


def test_the_table_calls_every_command_as_it_is_meant(usually: list[Ended]) -> None:
    """All of them succeed where nothing is odd, and those that do something say so."""
    assert set(ROWS) <= set(COMMANDS)
    for (command, row), ended in zip(TABLE, usually, strict=True):
        assert ended.code == (ENDED if row.endless else 0), (command, row, ended)


@pytest.mark.parametrize("oddity", [it for it in Oddity if it is not Oddity.NOTHING])
def test_every_command_ends_as_documented(
    runner: Runner, usually: list[Ended], oddity: Oddity
) -> None:
    """Never a traceback; 74 or 141 for output that is lost; else nothing changes the exit code."""
    wrong = []
    for (command, row), usual, ended in zip(TABLE, usually, runner.run_all(oddity), strict=True):
        expected = usual
        if oddity in WITHOUT_INPUT and row.without_input is not None:
            expected = Ended(row.without_input, b"", "")
        trouble = judge(oddity, expected, ended, done=row.done)
        if oddity is Oddity.INPUT_CLOSED and row.without_input is not None:
            trouble = trouble or ("" if "standard input" in ended.errors else ended.errors)
        if oddity is Oddity.ERRORS_CLOSED:
            trouble = trouble or (
                "complains on standard output" if "keyside: " in str(ended.output) else ""
            )
        if trouble:
            wrong.append(f"{command} {row.arguments}: {trouble}")
    assert wrong == []


@pytest.mark.parametrize("oddity", list(Oddity))
@pytest.mark.parametrize("name", ["keyside", "keysided"])
def test_both_programs_start_where_something_is_odd(name: str, oddity: Oddity) -> None:
    """As new processes: what Python makes of missing descriptors as it starts is part of it."""
    program = Path(sys.prefix).resolve() / "bin" / name
    usually = Ended(0, b"its help", "")
    assert judge(oddity, usually, start_oddly(oddity, [program, "--help"])) == ""
    refused = start_oddly(oddity, [program, "no-such-command"])
    assert refused.code == 64
    assert refused.output == b""
