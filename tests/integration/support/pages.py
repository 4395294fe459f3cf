"""Code blocks of README.md and docs/*.md, and what is done with each of them.

A block is known by its page and its first line. ``page_blocks.py`` has the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[3]
_FENCE = re.compile(r"^( *)```(\w*)$")
_LIST_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ")


@dataclass(frozen=True)
class Block:
    """One fenced or indented code block.

    Args:
        page: The page's name in the repository.
        line: Where it begins there, counted from 1.
        language: What the fence says; empty for none.
        text: The code, without the page's indentation, with its last line feed.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def opening(self) -> str:
        """The first line, which names the block; with the second one where it is a brace only."""
        first, second, *_ = [*self.text.split("\n"), ""]
        return f"{first} {second.strip()}" if first == "{" else first.strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.opening}"


@dataclass(frozen=True)
class Shell:
    """Typed into a shell on the page's host, and must succeed.

    Args:
        account: Who types it.
        cwd: Where; by default at home.
        before: What else must be there, made by root first.
        within: A command that the shell is started by.
        shell: Which one.
        replace: What stands for something that only the reader knows.
    """

    account: str = "root"
    cwd: str = ""
    before: str = ""
    within: str = ""
    shell: str = "sh"
    replace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """A configuration file, or a part of one, that the daemon's own loader takes.

    Args:
        path: Where the page says that it goes, on the host.
        around: The rest of the file, with ``{block}`` where this part belongs.
    """

    path: str = ""
    around: str = "{block}"


@dataclass(frozen=True)
class Program:
    """A program in Python or for Node, run as a service's account.

    Args:
        before: What the page takes for granted, put before it.
        after: What must hold afterwards.
    """

    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Transcript:
    """Commands with what they print: run, and compared (or written anew)."""


@dataclass(frozen=True)
class Unit:
    """Told to systemd; the commands of the installed unit are run as it says, without systemd."""

    name: str


@dataclass(frozen=True)
class Facts:
    """JSON with the members that a command prints, all of them and no others.

    Args:
        command: Prints the JSON.
        account: Who asks.
        pick: Which part: members and numbers, separated by dots.
    """

    command: str
    account: str = "olga"
    pick: str = ""


@dataclass(frozen=True)
class Shown:
    """Held to the code by another test.

    Args:
        by: ``tests/…/test_file.py::test_name``.
    """

    by: str


@dataclass(frozen=True)
class NotRun:
    """Can't be run, for a reason that somebody has looked at."""

    because: str


Use = Shell | Configuration | Program | Transcript | Unit | Facts | Shown | NotRun


def list_pages() -> list[str]:
    """Return the names of the pages whose blocks count."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def find_blocks(page: str) -> list[Block]:
    """Return a page's blocks in their order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return list(_scan(page, lines))


def _scan(page: str, lines: list[str]) -> Iterator[Block]:
    number = 0
    in_list = False
    while number < len(lines):
        line = lines[number]
        fence = _FENCE.match(line)
        if fence:
            end = number + 1
            while lines[end].strip() != "```":
                end += 1
            inner = [one.removeprefix(fence[1]) for one in lines[number + 1 : end]]
            yield Block(page, number + 1, fence[2], "\n".join([*inner, ""]))
            number = end + 1
            continue
        indented = line.startswith("    ") and line.strip()
        if indented and not in_list and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            inner = [one.removeprefix("    ") for one in lines[number:end]]
            yield Block(page, number + 1, "", "\n".join(inner).rstrip("\n") + "\n")
            number = end
            continue
        if _LIST_ITEM.match(line):
            in_list = True
        elif line.strip() and not line.startswith(" "):
            in_list = False
        number += 1


def replace_block(block: Block, text: str) -> None:
    """Write other text into a block's place on its page."""
    path = ROOT / block.page
    page = path.read_text(encoding="utf-8")
    assert page.count(block.text) == 1, f"{block} is there more than once"
    path.write_text(page.replace(block.text, text), encoding="utf-8")
