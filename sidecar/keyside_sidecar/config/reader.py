"""Reading one table: each setting by name, every problem kept, nothing raised until the end."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final, TypeVar, cast

from keyside_sidecar.config.units import WrongValueError
from keyside_sidecar.errors import ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyside_sidecar.config.places import Path, Places

T = TypeVar("T")
_SHOWN_LENGTH: Final = 60
_NAME_LENGTH: Final = 4096
_LISTED: Final = 10
MAX_PROBLEMS: Final = 100
MAX_WARNINGS: Final = 100


def show(value: object) -> str:
    """Return ``value`` as an error quotes it: ASCII only, shortened."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"


def show_name(name: str) -> str:
    """Return ``name`` as a place or a message holds it: printable, shortened."""
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in name[:_NAME_LENGTH])
    return text if len(name) <= _NAME_LENGTH else f"{text}…"


def list_shown(values: Iterable[object]) -> str:
    """Return all of ``values``, or as many as are worth reading, as an error lists them."""
    shown = sorted(map(show, values))
    rest = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "…"?`` where a known name is near, otherwise ``""``."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


class TooManyProblemsError(Exception):
    """So much is wrong that more of it would help nobody."""


class Report:
    """Everything wrong or doubtful in one file, in the order of finding."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.problems: list[ConfigProblem] = []
        self.warnings: list[str] = []

    def add_problem(self, problem: ConfigProblem) -> None:
        """Keep a problem.

        Raises:
            TooManyProblemsError: It was one of 100, and no more of them shall be looked for.
        """
        self.problems.append(problem)
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyProblemsError

    def add_warning(self, place: str, message: str) -> None:
        """Keep a warning, unless there are 100 already: then the last says that there are more."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(f"{place}: {message}")
        elif len(self.warnings) == MAX_WARNINGS:
            self.warnings.append("there are more such warnings, which are left out")


class Table:
    """One table of the file. Read every setting, then call ``finish``.

    Args:
        report: Where problems go.
        path: The table's names.
        values: What ``tomllib`` made of it; anything but a table is a problem.
    """

    def __init__(self, report: Report, path: Path, values: object) -> None:
        self.report = report
        self.path = path
        self._known: dict[str, None] = {}  # in the order of asking
        self._values: Mapping[str, object] = {}
        if isinstance(values, dict):
            self._values = cast("dict[str, object]", values)
        else:
            self.problem("must be a table")

    def problem(self, message: str, *rest: str | int) -> None:
        """Note that the setting ``rest`` names, or the table itself, is wrong."""
        place = self.report.places.describe(self.path, *rest)
        self.report.add_problem(ConfigProblem(place, message))

    def warn(self, message: str, *rest: str | int) -> None:
        """Note that the setting ``rest`` names is legal but doubtful."""
        self.report.add_warning(self.report.places.describe(self.path, *rest), message)

    def has(self, key: str) -> bool:
        """Return whether the file gives the setting."""
        return key in self._values

    def is_empty(self, key: str) -> bool:
        """Return whether the setting is absent or an empty list."""
        return self._values.get(key, []) == []

    def get(self, key: str, parse: Callable[[object], T], default: T) -> T:
        """Return the setting as ``parse`` makes it, or ``default`` where absent or wrong."""
        self._known[key] = None
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except WrongValueError as error:
            self.problem(str(error), key)
            return default

    def require(self, key: str, parse: Callable[[object], T], stand_in: T) -> T:
        """Return the setting; its absence is a problem (``stand_in`` never leaves the loader)."""
        if key not in self._values:
            self.problem(f'needs the setting "{key}"')
        return self.get(key, parse, stand_in)

    def get_items(self, key: str, parse: Callable[[object], T], *, shape: str) -> tuple[T, ...]:
        """Return a list's items, each parsed; each wrong or repeated item is its own problem."""
        self._known[key] = None
        values = self._values.get(key, [])
        if not isinstance(values, list):
            self.problem(f"must be a list, as in {shape}", key)
            return ()
        items: dict[T, None] = {}  # in the order of the file
        for index, value in enumerate(values):
            try:
                item = parse(value)
            except WrongValueError as error:
                self.problem(str(error), key, index)
                continue
            if item in items:
                self.problem(f"{show(item)} is given twice", key, index)
            items[item] = None
        return tuple(items)

    def tables(self, key: str) -> Mapping[str, object]:
        """Return the tables below this one under ``key``; empty where absent."""
        self._known[key] = None
        values = self._values.get(key, {})
        if isinstance(values, dict):
            return cast("dict[str, object]", values)
        self.problem(f"must be tables, as in [{key}.NAME]", key)
        return {}

    def table(self, key: str) -> Table:
        """Return the table under ``key``, an empty one where absent."""
        self._known[key] = None
        return Table(self.report, (*self.path, key), self._values.get(key, {}))

    def finish(self, elsewhere: Mapping[str, Iterable[str]] | None = None) -> None:
        """Note every setting that nobody asked for.

        Args:
            elsewhere: Other tables' settings, to say where a misplaced one belongs.
        """
        for key, value in self._values.items():
            if key in self._known:
                continue
            if isinstance(value, dict) and not self.path:
                unknown = Table(self.report, (key,), value)
                unknown.problem(f"unknown table{suggest(key, self._known)}")
                continue
            homes = [table for table, known in (elsewhere or {}).items() if key in known]
            hint = f"; it belongs in [{homes[0]}]" if homes else suggest(key, self._known)
            self.problem(f"unknown setting{hint}", key)
