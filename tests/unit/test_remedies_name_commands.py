"""Commands that messages name: each exists, and takes the options that it is named with."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import pytest

import keyside
import keyside_sidecar
from keyside.cli.commands import keyside as client_command
from keyside_sidecar.__main__ import cli as daemon_command

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS: Final = {"keyside": client_command, "keysided": daemon_command}
# What may follow a program's name where it is spoken of, and not called.
PROSE: Final = re.compile(
    r"a|after|and|as|before|has|is|itself|knows|needs|or|reads|runs|serves|than|that|under|when|with"
)
NAMED: Final = re.compile(r"(?<![\w./'-])(keysided|keyside)[ `]+([^;,.)\n]*)")
OPTION: Final = re.compile(r"--[a-z][a-z-]*|-[a-z]\b")


def list_texts() -> Iterator[tuple[str, str]]:
    """Yield every text in both packages that is no docstring, and where it stands."""
    for package in (keyside, keyside_sidecar):
        root = Path(package.__path__[0])
        for file in sorted(root.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                text = None if id(node) in docstrings else read_text(node)
                if text:
                    yield f"{file.relative_to(root.parent)}:{getattr(node, 'lineno', 0)}", text


def read_text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return None


def find_command(program: str, words: list[str]) -> click.Command | None:
    """Return the command that ``words`` begin with; None where they name none."""
    command: click.Command = PROGRAMS[program]
    rest = list(words)
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("--"):  # the program's own, each with a value
            if not any(rest[0] in option.opts for option in command.params):
                return None
            rest = rest[2:]
        if not rest or (found := command.commands.get(rest.pop(0))) is None:
            return None
        command = found
    return command


def list_named() -> list[tuple[str, str, str]]:
    found = []
    for place, text in list_texts():
        for program, rest in NAMED.findall(text):
            first = rest.split(" ", 1)[0].strip("`{}:'\"")
            if first and not PROSE.fullmatch(first) and not first.startswith("/"):
                found.append((place, program, rest))
    return found


def test_the_search_finds_what_it_should() -> None:
    named = [f"{program} {rest}" for _, program, rest in list_named()]
    assert len(named) > 50
    for command in ("keysided init --only-audit", "keysided restore FILE", "keyside keys rotate"):
        assert any(one.startswith(command) for one in named), command
    assert find_command("keysided", ["init", "--only-audits"]) is not None
    assert find_command("keysided", ["initialise"]) is None
    assert find_command("keyside", ["keys"]) is None


@pytest.mark.parametrize(("place", "program", "rest"), list_named())
def test_command_that_a_message_names_exists(place: str, program: str, rest: str) -> None:
    words = shlex.split(re.sub(r"['\"`]", " ", rest.replace("{}", "")))  # options, or a value
    command = find_command(program, words)
    assert command is not None, f"{place}: {program} {rest}"
    taken = {option for param in command.params for option in param.opts}
    group = {option for param in PROGRAMS[program].params for option in param.opts}
    for option in OPTION.findall(rest):
        assert option in taken | group, f"{place}: {program} {rest} has no {option}"
