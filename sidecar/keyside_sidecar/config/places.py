"""Which line of a TOML file each setting stands on.

``tomllib`` forgets lines. This scanner walks text that ``tomllib`` has already accepted, and so
checks nothing: where it can't follow, it keeps what it has found until there, and a setting without
a line is reported under the nearest line above it.
"""

from __future__ import annotations

import contextlib
import json
import re
import tomllib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from keyside_sidecar.config.tokens import find_gap_end, find_string_end

if TYPE_CHECKING:
    from collections.abc import Mapping

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"[ \t]*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_NAME_LENGTH: Final = 100
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Places:
    """Lines by path: a table's or key's names, and the index inside an array.

    Args:
        file: The file's name, as problems begin with it.
        lines: The line of each path, counted from 1.
    """

    def __init__(
        self, file: str = "configuration", lines: Mapping[Path, int] | None = None
    ) -> None:
        self._file = file
        self._lines: Mapping[Path, int] = MappingProxyType(dict(lines or {}))

    def line(self, path: Path) -> int | None:
        """Return the line of ``path``, or else of what it stands in; None where unknown."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return line
        return None

    def describe(self, table: Path, *rest: str | int) -> str:
        """Return such as ``keyside.toml line 12, [keys.mail-credentials] allow_groups``.

        Args:
            table: The table's names; empty for the top of the file.
            rest: A key in it, and an index in its array, as far as they matter for the line.
        """
        line = self.line((*table, *rest))
        text = self._file if line is None else f"{self._file} line {line}"
        # An array's tables have no numbers in the file; the line tells them apart.
        dotted = ".".join(_quote(part) for part in table if isinstance(part, str))
        brackets = "[[{}]]" if any(isinstance(part, int) for part in table) else "[{}]"
        names = [brackets.format(dotted)] if table else []
        names += [_quote(part) for part in rest if isinstance(part, str)]
        return f"{text}, {' '.join(names)}" if names else text


def find_places(file: str, text: str) -> Places:
    """Return the lines of all tables, keys and array items in ``text``, valid TOML.

    Args:
        file: The file's name.
        text: What ``tomllib`` has accepted.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_LostError, RecursionError):  # best effort: see the docstring above
        scanner.scan()
    return Places(file, scanner.lines)


def _quote(name: str) -> str:
    """Return ``name`` as TOML would write it as a key, with everything odd escaped; shortened."""
    if len(name) > _NAME_LENGTH:
        return f'{json.dumps(name[:_NAME_LENGTH])[:-1]}…"'
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


class _LostError(Exception):
    """The scanner met something that it doesn't understand."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._line = 1
        self._counted_to = 0
        self._array_tables: dict[Path, int] = {}

    def scan(self) -> None:
        table: Path = ()
        self._skip_gap()
        while self.at < len(self.text):
            if self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_gap()

    def _header(self) -> Path:
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        path = self._dotted_key()
        self._expect("]]" if double else "]")
        if double:
            self._array_tables[path] = self._array_tables.get(path, -1) + 1
        full: Path = ()
        for part in path:
            full = (*full, part)
            self._note(full)
            if full in self._array_tables:  # what follows stands in the array's last element
                full = (*full, self._array_tables[full])
                self._note(full)
        return full

    def _pair(self, table: Path) -> None:
        key = self._dotted_key()
        for length in range(1, len(key) + 1):
            self._note((*table, *key[:length]))
        self._expect("=")
        self._skip(_BLANK)
        self._value((*table, *key))

    def _dotted_key(self) -> Path:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            raw = self._match(_KEY)
            parts.append(tomllib.loads(f"key = {raw}")["key"] if raw[0] in "\"'" else raw)
            self._skip(_BLANK)
            if self._peek() != ".":
                return tuple(parts)
            self.at += 1

    def _value(self, path: Path) -> None:
        first = self._peek()
        if first in ('"', "'"):
            end = find_string_end(self.text, self.at)
            if end is None:
                raise _LostError
            self.at = end
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._match(_SCALAR)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        self._skip_gap()
        while self._peek() != "]":
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._skip_gap()
            if self._peek() == ",":
                self.at += 1
                self._skip_gap()
            elif self._peek() != "]":
                raise _LostError
        self.at += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        self._skip_gap()
        while self._peek() != "}":
            self._pair(path)
            self._skip_gap()
            if self._peek() == ",":
                self.at += 1
                self._skip_gap()
            elif self._peek() != "}":
                raise _LostError
        self.at += 1

    def _note(self, path: Path) -> None:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        self.lines.setdefault(path, self._line)

    def _peek(self) -> str:
        if self.at >= len(self.text):
            raise _LostError
        return self.text[self.at]

    def _expect(self, token: str) -> None:
        self._skip(_BLANK)
        if not self.text.startswith(token, self.at):
            raise _LostError
        self.at += len(token)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()

    def _skip_gap(self) -> None:
        self.at = find_gap_end(self.text, self.at)

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if not match or not match[0]:
            raise _LostError
        self.at = match.end()
        return match[0]
