"""Every remedy in the code, the situation that produces it, and what following it does.

``remedies.txt`` holds one line for each. A new remedy needs a line: say what following it does, and
try it. Those that can be produced on a host alone are followed in ``test_remedies.py``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import keyside
import keyside_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE: Final = Path(__file__).with_name("remedies.txt")
# Which argument of what is made so is a remedy, where it is not given by name.
PLACES: Final = {
    "Finding": 3,
    "CommandError": 2,
    "Failure": 3,
    "_Row": 4,
    "Problem": 2,
    "Notice": 2,
    "Weakness": 2,
    "add_standing": 2,
}


def read_table() -> dict[str, tuple[str, str]]:
    rows: dict[str, tuple[str, str]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            remedy, situation, effect = line.split(" | ")
            assert remedy not in rows
            rows[remedy] = (situation, effect)
    return rows


def list_remedies() -> Iterator[str]:
    for package in (keyside, keyside_sidecar):
        for file in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield from filter(None, map(read_text, find_remedies(node)))


def find_remedies(call: ast.Call) -> list[ast.expr]:
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    found = [word.value for word in call.keywords if word.arg in {"remedy", "what_to_do"}]
    place = PLACES.get(name)
    return found if place is None else [*found, *call.args[place : place + 1]]


def read_text(node: ast.expr) -> str:
    """Return a text as it is written, with ``{}`` for what is filled in; "" for anything else."""
    text = ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    text = re.sub(r"\{[a-z_.]+\}", "{}", text)  # a template's own places
    return text if text.strip("{}; ") else ""


def find_row(remedy: str, rows: dict[str, tuple[str, str]]) -> str | None:
    """Return the longest beginning in the table that fits."""
    return max((row for row in rows if remedy.startswith(row)), key=len, default=None)


def test_every_remedy_has_its_line_in_the_table() -> None:
    rows = read_table()
    remedies = set(list_remedies())
    assert len(remedies) > 100
    assert sorted(one for one in remedies if find_row(one, rows) is None) == []


def test_every_line_of_the_table_belongs_to_a_remedy() -> None:
    rows = read_table()
    used = {find_row(one, rows) for one in list_remedies()}
    assert sorted(rows.keys() - used) == []


def test_every_line_says_when_and_what_for() -> None:
    assert all(situation and effect for situation, effect in read_table().values())
