"""Every keysided command where a standard stream, the directory or the terminal is missing."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from support.sidecar import (
    IS_ROOT,
    OPERATOR_UID,
    PYTHON,
    SIDECAR_GID,
    SIDECAR_UID,
    Sidecar,
    sidecar_directory,
)
from tests.unit.surroundings import (
    LOST_OUTPUT,
    Call,
    Ended,
    Oddity,
    WarmProgram,
    judge,
    start_oddly,
)

from keyside_sidecar.__main__ import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (
    "keyside_sidecar.commands.backup",
    "keyside_sidecar.commands.check",
    "keyside_sidecar.commands.init",
    "keyside_sidecar.commands.migrate",
    "keyside_sidecar.commands.restore",
    "keyside_sidecar.commands.root",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "alembic.command",
)
NO_INPUT = 66


@dataclass(frozen=True)
class Row:
    """One way to call a command, on a host of its own.

    Args:
        arguments: What follows its name; ``{host}`` is the host's directory.
        done: What somebody must be told, even where standard output does not take it.
        there: A file that is there afterwards, come what may.
        lacks: What is removed beforehand.
        reads: It reads a backup from standard input.
        endless: It goes on until it is ended.
    """

    arguments: str = ""
    done: str = ""
    there: str = ""
    lacks: tuple[str, ...] = ()
    reads: bool = False
    endless: bool = False


# A command that is not here is called without arguments, and held to the same rules.
ROWS = {
    "init": [
        Row(
            done="its first public key is",
            there="audit/audit.jsonl",
            lacks=("state", "audit"),
        ),
        Row("--only-audit", "made the audit log", there="audit/audit.jsonl", lacks=("audit",)),
    ],
    "migrate": [Row(done="has schema")],
    "backup": [
        Row("{host}/private/new", "bytes to", there="private/new"),
        Row("-"),
    ],
    "restore": [
        Row(
            "{host}/private/backup", "restored the store", "state/keyside.db", ("state/keyside.db",)
        ),
        Row("-", "restored the store", "state/keyside.db", ("state/keyside.db",), reads=True),
    ],
    "root rotate": [
        Row(done="is in", there="state/root.key"),
        Row("--prepare", "made the root key", there="state/root.key.next"),
    ],
    "root show": [Row(), Row("--json")],
    "check": [Row(), Row("--json")],
    "serve": [Row(endless=True)],
    "files list": [Row(), Row("--json")],
    "files show": [Row("grants.sql")],
    "files install": [
        Row("--to {host}/private protos", "installed", "private/protos/keyside/v1/keys.proto")
    ],
    "completion": [Row("bash")],
}


def list_commands(group: click.Group, *above: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_commands(command, *above, name)
        else:
            yield " ".join((*above, name))


COMMANDS = list(list_commands(cli))
TABLE = [(command, row) for command in COMMANDS for row in ROWS.get(command, [Row()])]


@dataclass(frozen=True)
class Hosts:
    """Makes hosts that were set up already, as copies of one, and runs the table on them."""

    program: WarmProgram
    pattern: Sidecar
    place: Path

    def run_all(self, oddity: Oddity) -> tuple[list[Path], list[Ended]]:
        hosts = [self._make(oddity, number, row) for number, (_, row) in enumerate(TABLE)]
        calls = [
            self._make_call(oddity, host, command, row)
            for host, (command, row) in zip(hosts, TABLE, strict=True)
        ]
        return hosts, self.program.run_all(oddity, calls)

    def _make(self, oddity: Oddity, number: int, row: Row) -> Path:
        host = self.place / f"{oddity.name}-{number}"
        shutil.copytree(self.pattern.directory, host, copy_function=shutil.copy2)
        host.chmod(0o755)
        for name in row.lacks:
            gone = host / name
            if gone.is_dir():
                for file in gone.iterdir():
                    file.unlink()
            else:
                gone.unlink()
        if IS_ROOT:
            for name in ("run", "state", "audit"):
                for found in (host / name, *(host / name).iterdir()):
                    os.chown(found, SIDECAR_UID, SIDECAR_GID)
        config = host / "keyside.toml"
        config.write_text(config.read_text().replace(str(self.pattern.directory), str(host)))
        return host

    def _make_call(self, oddity: Oddity, host: Path, command: str, row: Row) -> Call:
        arguments = row.arguments.format(host=host).split()
        goes_on = row.endless and (oddity not in LOST_OUTPUT or command == "serve")
        return Call(
            ["keysided", "--config", str(host / "keyside.toml"), *command.split(), *arguments],
            (host / "private" / "backup").read_bytes() if row.reads else b"",
            3.0 if goes_on else None,
        )


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with sidecar_directory() as place:
        pattern = Sidecar(place / "pattern")
        pattern.directory.mkdir()
        pattern.prepare()
        (pattern.directory / "private").mkdir(mode=0o700)
        done = pattern.keysided("backup", str(pattern.directory / "private" / "backup"))
        assert done.returncode == 0, done.stderr
        with WarmProgram("keyside_sidecar.__main__:main", MODULES) as program:
            yield Hosts(program, pattern, place)


@pytest.fixture(scope="module")
def usually(hosts: Hosts) -> list[Ended]:
    return hosts.run_all(Oddity.NOTHING)[1]


def test_the_table_calls_every_command_as_it_is_meant(usually: list[Ended]) -> None:
    """All of them succeed where nothing is odd, and those that do something say so."""
    assert set(ROWS) <= set(COMMANDS)
    for (command, row), ended in zip(TABLE, usually, strict=True):
        assert ended.code == 0, (command, row, ended)
        assert row.done.encode() in ended.output


@pytest.mark.parametrize("oddity", [it for it in Oddity if it is not Oddity.NOTHING])
def test_every_command_ends_as_documented(
    hosts: Hosts, usually: list[Ended], oddity: Oddity
) -> None:
    """Never a traceback, nothing half done; 74 or 141 for output that is lost."""
    wrong = []
    places, results = hosts.run_all(oddity)
    for (command, row), usual, host, ended in zip(TABLE, usually, places, results, strict=True):
        expected = usual
        without_input = row.reads and oddity in {Oddity.INPUT_CLOSED, Oddity.ALL_CLOSED}
        if without_input:
            expected = Ended(NO_INPUT, b"", "")
        trouble = judge(oddity, expected, ended, done=row.done)
        if row.there and not without_input and not (host / row.there).exists():
            trouble = trouble or f"{row.there} is missing; {ended}"
        if trouble:
            wrong.append(f"{command} {row.arguments}: {trouble}")
    assert wrong == []


def test_a_backup_that_is_lost_leaves_no_doubt(hosts: Hosts) -> None:
    """What goes to standard output is the whole of it, so nothing was done."""
    config = str(hosts.pattern.config_path)
    command = [PYTHON, "-m", "keyside_sidecar", "--config", config, "backup", "-"]
    ended = start_oddly(Oddity.OUTPUT_CLOSED, command)
    assert (ended.code, ended.errors) == (
        74,
        "keysided: can't write standard output: it is not open for writing\n",
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [("--config keyside.toml check", 78), ("backup new", 73), ("restore old", 66)],
)
def test_a_relative_path_is_an_error_where_the_directory_is_gone(
    hosts: Hosts, command: str, code: int
) -> None:
    config = hosts.pattern.config_path
    if command.startswith("restore"):  # a store that is there would be refused first
        without = config.with_name("without-store.toml")
        without.write_text(config.read_text().replace("keyside.db", "no-such.db"))
        config = without
    configured = {"KEYSIDE_CONFIG": str(config)}
    called = [PYTHON, "-m", "keyside_sidecar", *command.split()]
    ended = start_oddly(Oddity.DIRECTORY_GONE, called, configured)
    assert ended.code == code, ended
    assert "Traceback" not in ended.errors
    assert "No such file or directory" in ended.errors


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_a_daemon_without_standard_descriptors_serves(closed: str) -> None:
    """None of its processes has a socket or a store where whoever prints would write."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        sidecar.launcher = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh")
        sidecar.start()
        try:
            assert sidecar.process is not None
            pids = [sidecar.process.pid, sidecar.recorder(), *sidecar.workers()]
            assert len(pids) > 2
            names = {
                str(Path(f"/proc/{pid}/fd/{number}").readlink())
                for pid in pids
                for number in range(3)
            }
            assert names <= {"/dev/null", str(sidecar.log)}
            assert "/dev/null" in names
            rolled = sidecar.keyside("keys", "rotate", "mail-credentials", uid=OPERATOR_UID)
            assert rolled.returncode == 0, rolled.stderr
            assert sidecar.stop() == 0
        finally:
            sidecar.kill()
        assert sidecar.verify_log().returncode == 0


def test_what_a_real_sidecar_did_is_said_and_stands() -> None:
    """A rollover whose answer has nowhere to go has happened, and the caller knows it."""
    with sidecar_directory() as directory:
        sidecar = Sidecar(directory)
        sidecar.prepare()
        sidecar.start()
        try:
            where = {
                "KEYSIDE_SOCKET": str(sidecar.socket),
                "KEYSIDE_EXPECTED_OWNER": str(SIDECAR_UID if IS_ROOT else os.geteuid()),
            }
            who = ("setpriv", f"--reuid={OPERATOR_UID}", "--clear-groups") if IS_ROOT else ()
            command = [
                *who,
                Path(PYTHON).with_name("keyside"),
                "keys",
                "rotate",
                "mail-credentials",
            ]
            for version, oddity in enumerate(LOST_OUTPUT, 2):
                ended = start_oddly(oddity, command, where)
                assert ended.code == LOST_OUTPUT[oddity][1]
                if oddity is not Oddity.ALL_CLOSED:
                    assert f"mail-credentials: version {version} is current" in ended.errors
            shown = sidecar.keyside("keys", "list", uid=OPERATOR_UID).stdout.decode()
            assert f"mail-credentials  {version}" in shown
        finally:
            sidecar.kill()
