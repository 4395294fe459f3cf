"""Every event that the code can write stands in docs/audit.md and in the schema, and no other.

What the code can write is gathered from its table of RPCs, and from its sources: each place that
gives a record its event must do so in a way that is known here.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.unit.record_schema import SCHEMA

import keyside_sidecar
from keyside_sidecar.api.rpcs import list_rows
from keyside_sidecar.audit.records import OWN_EVENTS, SERVICE_EVENTS

SOURCES = Path(keyside_sidecar.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
# Who makes a record of an event that is its first argument. (Not the log for people; and what else
# is called `tell` is given no text.)
WRITERS = {"append_own", "tell", "_tell"}
# Whatever is named like one of the known families is an event, wherever it stands.
FAMILY = re.compile(
    r"(?:run|log|audit|connection|caller|encryption|key|access|store|worker)\.[a-z0-9_]*[a-z0-9]"
)
NO_EVENTS: set[str] = set()
# What stands for an event that was named elsewhere: in the table of RPCs, or in another record.
PASSED_ON = {
    "event",
    "row.event",
    "call.rpc.event",
    "self._call.rpc.event",
    "self._event",
    "record.get('event')",
    "request.event",
    "name",  # office.py: what _name_turn returns
}
EVENT = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*")


class Gatherer(ast.NodeVisitor):
    """Collects what one module names as the event of a record."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[str] = set()
        self.strange: list[str] = []
        self._constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and isinstance(node.value, ast.Constant)
            for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
            if isinstance(target, ast.Name)
        }
        self.visit(tree)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "event":
                self._take(value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called in WRITERS and node.args and (called == "append_own" or self._read(node.args[0])):
            self._take(node.args[0])
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in {"_name_turn", "_name_event"}:
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and part.value is not None:
                    self._take(part.value)
            return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and FAMILY.fullmatch(node.value):
            self.found |= {node.value} - NO_EVENTS

    def _read(self, node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return self._constants.get(node.id)
        return node.value if isinstance(node, ast.Constant) else None

    def _take(self, node: ast.expr) -> None:
        value = self._read(node)
        if isinstance(value, str) and EVENT.fullmatch(value):
            self.found.add(value)
        elif not (isinstance(node, ast.Constant) or ast.unparse(node) in PASSED_ON):
            self.strange.append(ast.unparse(node))


def gather_emitted() -> set[str]:
    """Return every event that the code can write."""
    found = {row.event for _path, row in list_rows() if row.event}
    strange = []
    for path in sorted(SOURCES.rglob("*.py")):
        gatherer = Gatherer(ast.parse(path.read_text("utf-8")))
        found |= gatherer.found
        strange += [f"{path.name}: {text}" for text in gatherer.strange]
    assert not strange, "these name an event in a way that this test can't follow"
    return found


def read_page() -> set[str]:
    """Return every event in the page's table; ``.b`` after ``a.x`` stands for ``a.b``."""
    table = PAGE[PAGE.index("| event | |") : PAGE.index("There may be others in later releases.")]
    found = set()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        family = ""
        for name in re.findall(r"`([a-z0-9_.]+)`", cell):
            family = name.partition(".")[0] if not name.startswith(".") else family
            found.add(f"{family}{name}" if name.startswith(".") else name)
    return found


def test_gathering_finds_each_way_to_name_an_event() -> None:
    """A name that isn't there would make the tests below say nothing."""
    source = """
_EVENT: Final = "a.constant"
{"event": "a.literal", "outcome": "ok"}
{"event": _EVENT}
journal.append_own("an.own", outcome="ok")
self._keyring.tell("a.told", facts)
def _name_event(self):
    return "an.action"
def _name_turn(before, after):
    return "a.turn"
{"event": f"{computed}.here"}
"""
    gatherer = Gatherer(ast.parse(source))
    assert gatherer.found == {
        *("a.constant", "a.literal", "an.own", "a.told", "an.action", "a.turn"),
    }
    assert len(gatherer.strange) == 1


def test_schema_names_every_event_that_is_written_and_no_other() -> None:
    assert set(SCHEMA["properties"]["event"]["examples"]) == gather_emitted()


def test_page_describes_every_event_that_is_written_and_no_other() -> None:
    assert read_page() == gather_emitted()


def test_groups_of_events_are_among_them() -> None:
    assert gather_emitted() >= OWN_EVENTS | SERVICE_EVENTS
