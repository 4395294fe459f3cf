"""Help of both programs: whole summaries, examples, completion, tables in the terminal's width."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from tests.unit.access_double import ID, OTHER_ID, make_record, make_request
from tests.unit.cli_process import run
from tests.unit.sidecar_double import Double

from keyside.cli.commands import keyside
from keyside.cli.helping import walk_commands
from keyside.cli.tables import Column, lay_out
from keyside.quantities import count_of
from keyside.v1 import access_pb2
from keyside_sidecar.__main__ import cli as keysided

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"
PROGRAMS = {"keyside": keyside, "keysided": keysided}
PAGES = {"keyside": "cli.md", "keysided": "keysided.md"}
COMMANDS = {
    f"{program} {path}".strip(): (program, path, command)
    for program, group in PROGRAMS.items()
    for path, command in (("", group), *walk_commands(group))
}
WIDTHS = (40, 60, 80, 110, 200)


def help_of(program: str, path: str, width: int) -> str:
    done = CliRunner().invoke(
        PROGRAMS[program], [*path.split(), "--help"], prog_name=program, terminal_width=width
    )
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_no_summary_is_cut_at_any_width(name: str) -> None:
    program, path, command = COMMANDS[name]
    for width in range(40, 201, 5):
        shown = help_of(program, path, width)
        assert "…" not in shown
        assert "..." not in shown.replace("]...", "").replace("FILE...", "").replace("ARGS]...", "")
        if isinstance(command, click.Group):
            words = " ".join(shown.split())
            for one in command.commands.values():
                paragraph = (one.help or "").strip().split("\n\n")[0]
                assert " ".join(paragraph.split()) in words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_takes(name: str) -> None:
    program, path, command = COMMANDS[name]
    _, found, examples = help_of(program, path, 80).partition("Examples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert found
    assert lines
    for line in lines:
        (words,) = re.findall(rf"\b{program} ([^|<>)]*)", line)
        parse(program, shlex.split(words))
        assert path in words or isinstance(command, click.Group)


def parse(program: str, words: list[str]) -> None:
    """Have click parse a command line, and go no further."""
    context = PROGRAMS[program].make_context(program, words)
    command: click.Command = context.command
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, command_found, further = command.resolve_command(context, rest)
        assert command_found is not None
        context = command_found.make_context(name, list(further), parent=context)
        command = command_found


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_both_programs_complete_in_every_shell(program: str, shell: str) -> None:
    executable = Path(sys.executable).parent / program
    script = subprocess.run([executable, "completion", shell], capture_output=True, check=True)
    variable = f"_{program.upper()}_COMPLETE"
    assert variable.encode() in script.stdout
    environment = {variable: "bash_complete", "COMP_WORDS": f"{program} ", "COMP_CWORD": "1"}
    offered = subprocess.run([executable], env=environment, capture_output=True, check=True)
    names = {line.partition(b",")[2].decode() for line in offered.stdout.splitlines()}
    assert names == set(PROGRAMS[program].commands)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_page_names_every_command_and_option(program: str) -> None:
    """The synopsis and the program say the same: no command or option more or less."""
    page = (DOCS / PAGES[program]).read_text(encoding="utf-8")
    synopsis = re.search(r"```\n(.*?)```", page, re.DOTALL)
    assert synopsis
    usages = re.sub(r"\n {2,}", " ", synopsis[1]).splitlines()
    for name, (owner, path, command) in COMMANDS.items():
        if owner != program or isinstance(command, click.Group):
            continue
        shown = " ".join(line for line in usages if re.match(rf"{name}( |$)", line))
        assert shown, f"{name} is not in the synopsis"
        told = set(re.findall(r"(?<![\w-])-{1,2}[a-z][a-z-]*", shown))
        for option in command.params:
            if isinstance(option, click.Option) and "FILTER" not in shown:
                assert told & set(option.opts), f"{name}: {option.opts} in {path}"
        known = {spelling for option in command.params for spelling in option.opts}
        assert told <= known, f"{name}: {told - known}"
    commands = {name for name, (owner, *_) in COMMANDS.items() if owner == program}
    for line in usages:
        words = re.match(rf"{program}((?: [a-z][a-z-]*)+)", line)
        if words:
            assert any(
                (program + words[1]).startswith(name) for name in commands if name != program
            ), line


def test_the_daemons_page_names_every_exit_code() -> None:
    page = (DOCS / "keysided.md").read_text(encoding="utf-8")
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    sources = Path(sys.modules[keysided.callback.__module__].__file__ or "").parent.rglob("*.py")
    used = {
        int(code)
        for path in sources
        for code in re.findall(
            r"(?:_EX_[A-Z]+: Final = |exit_code=)(\d+)", path.read_text(encoding="utf-8")
        )
    }
    assert used
    assert used <= told


# -- tables -----------------------------------------------------------------------------------


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        fill(running)
        yield running


def fill(double: Double) -> None:
    pending = make_request(ID, key="a-key-with-quite-a-long-name-" + "x" * 40)
    pending.prospects.add(action=access_pb2.ACCESS_ACTION_APPROVE)
    pending.levels[0].group = "a-group-with-quite-a-long-name-" + "y" * 40
    double.access = {ID: pending, OTHER_ID: make_request(OTHER_ID)}
    double.records = [
        make_record(
            1_234_567 + number,
            "encryption.batch_generate_data_key",
            outcome="refused",
            reason="A_REASON_THAT_IS_RATHER_LONG",
            count=3,
            key="k" * 60,
            version=4_294_967_295,
            access=ID,
            caller={"uid": 1001, "account": "somebody-with-a-long-name"},
        )
        for number in range(3)
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "command",
    [
        ("keys", "list"),
        ("keys", "show", "mail"),
        ("access", "list"),
        ("access", "list", "--all"),
        ("audit", "tail"),
        ("audit", "search"),
    ],
)
def test_no_line_of_a_table_is_longer_than_the_terminal_is_wide(
    double: Double, command: tuple[str, ...], width: int
) -> None:
    done = run(double, *command, environment={"COLUMNS": str(width)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    if command[0] == "access":
        assert ID in done.stdout.decode(), "an id is whole"


def test_a_pipe_gets_every_column_whole(double: Double) -> None:
    listed = run(double, "access", "list").stdout.decode()
    assert "y" * 40 in listed
    assert "x" * 40 in listed
    assert "k" * 60 in run(double, "audit", "tail").stdout.decode()


def test_a_list_says_whom_it_waits_for_and_your_turn(double: Double) -> None:
    double.access[ID].levels[0].group = "managers"
    rows = run(double, "access", "list").stdout.decode().splitlines()
    assert rows[0].endswith("WAITS FOR")
    assert rows[1].endswith("  you (managers)")
    assert rows[2].endswith("  managers")


def test_columns_of_the_highest_rank_go_first_and_cells_are_cut_before() -> None:
    columns = (Column("ID", 0), Column("WHO", 2, least=4), Column("NOTE", 1, least=4))
    wanted = (10, 20, 20)
    assert lay_out(columns, wanted, 54).widths == (10, 20, 20)
    assert lay_out(columns, wanted, 40).widths == (10, 6, 20)
    assert lay_out(columns, wanted, 22).widths == (10, 4, 4)
    assert lay_out(columns, wanted, 21).places == (0, 2)
    assert lay_out(columns, wanted, 12).places == (0,)
    assert lay_out(columns, wanted, 7).widths == (7,)
    assert lay_out(columns, wanted, 5).line(("0123456789", "", "")) == "012.."


# -- plurals ----------------------------------------------------------------------------------


def test_plurals() -> None:
    assert [count_of(number, "key") for number in (0, 1, 2, 1000)] == [
        *("0 keys", "1 key", "2 keys", "1,000 keys")
    ]
    assert count_of(1, "process has", "processes have") == "1 process has"
    assert count_of(2, "process has", "processes have") == "2 processes have"


def test_no_page_and_no_source_has_one_of_several() -> None:
    """Nowhere is it 1 with a plural, and no text puts a bare count before one."""
    root = Path(__file__).parents[2]
    nouns = "keys|versions|files|records|approvals|uses|processes|envelopes|requests"
    wrong = re.compile(rf"(?<![\d,.-])1 (?:{nouns})\b|\{{[^{{}}]*len\([^{{}}]*\}} (?:{nouns})\b")
    places = [
        *root.glob("*.md"),
        *(root / "docs").rglob("*.md"),
        *(root / "client").rglob("*.py"),
        *(root / "sidecar").rglob("*.py"),
    ]
    found = [
        f"{path.name}: {match[0]}"
        for path in places
        for match in wrong.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
