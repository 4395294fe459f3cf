"""Parser of a file's bytes into TOML's values, in bounded memory and time whatever they are.

``tomllib`` takes memory in the square of a dotted name's parts, recurses into nested values, and
loses the place of a number that is longer than Python reads. So the text's tokens are counted
before it sees them. A token of TOML can be told without knowing what stands around it, up to the
first one that is none, and there ``tomllib`` ends too.
"""

from __future__ import annotations

import codecs
import re
import tomllib
from dataclasses import dataclass
from typing import Final

from keyside_sidecar.config.tokens import find_string_end
from keyside_sidecar.errors import ConfigProblem

MAX_FILE_BYTES: Final = 1 << 20
MAX_PARTS: Final = 16
MAX_DEPTH: Final = 16
MAX_BARE_LENGTH: Final = 256
MAX_TOKENS: Final = 200_000
_MAX_MESSAGE_LENGTH: Final = 200
_SYNTAX_ERROR: Final = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)",
    re.DOTALL,
)
_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t]+|\#[^\n]*)
    |(?P<bare>[A-Za-z0-9_+:-]+)
    |(?P<quote>["'])
    |(?P<dot>\.)
    |(?P<opening>[\[{])
    |(?P<closing>[\]}])
    |(?P<between>[=,\n])""",
    re.VERBOSE,
)
_MARKS: Final = (
    (codecs.BOM_UTF8, "begins with a byte-order mark; save it as UTF-8 without one"),
    (codecs.BOM_UTF16_LE, "is UTF-16; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "is UTF-16; save it as UTF-8"),
)


class SyntaxProblemError(Exception):
    """The bytes are no TOML that is read here; ``problem`` says where and why."""

    def __init__(self, problem: ConfigProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text, with line feeds alone at its lines' ends, and its values."""

    text: str
    values: dict[str, object]


def parse_document(file: str, data: bytes) -> Document:
    """Return what ``data`` says.

    Args:
        file: The file's name, as problems begin with it.
        data: At most 1 MiB.

    Raises:
        SyntaxProblemError: It is too long, no UTF-8, no TOML, or TOML beyond the limits above.
    """
    if len(data) > MAX_FILE_BYTES:
        raise SyntaxProblemError(ConfigProblem(file, f"is larger than {MAX_FILE_BYTES} bytes"))
    for mark, message in _MARKS:
        if data.startswith(mark):
            raise SyntaxProblemError(ConfigProblem(f"{file} line 1, column 1", message))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise _at(file, before, len(before), "is not UTF-8") from None
    nul = text.find("\0")
    if nul >= 0:
        raise _at(file, text, nul, "holds a NUL character; if it is UTF-16, save it as UTF-8")
    text = text.replace("\r\n", "\n")
    if "\r" in text and "\n" not in text:
        message = "ends its lines with CR alone; end them with LF or CR LF"
        raise _at(file, text, text.index("\r"), message)
    _require_modest(file, text)
    try:
        return Document(text, tomllib.loads(text))
    except ValueError as error:  # TOMLDecodeError is one; another would be without its place
        raise _translate(file, text, str(error)) from None


def _require_modest(file: str, text: str) -> None:
    """Refuse what would take ``tomllib`` more than its text's own order of memory and time."""
    at = parts = depth = count = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return
        kind = match.lastgroup
        if kind == "dot":
            parts += 1
        elif kind in {"opening", "closing", "between"}:
            parts = 0
            depth += {"opening": 1, "closing": -1}.get(kind, 0)
        if parts >= MAX_PARTS:
            raise _at(file, text, at, f"a name has more than {MAX_PARTS} parts")
        if depth > MAX_DEPTH:
            raise _at(file, text, at, f"is nested more than {MAX_DEPTH} deep")
        if kind == "bare" and match.end() - at > MAX_BARE_LENGTH:
            message = f"a name or number without quotes has more than {MAX_BARE_LENGTH} characters"
            raise _at(file, text, at, message)
        count += kind not in {"blank", "between"}
        if count > MAX_TOKENS:
            raise _at(file, text, at, f"holds more than {MAX_TOKENS} names, values and brackets")
        end = find_string_end(text, at) if kind == "quote" else match.end()
        if end is None:
            return
        at = end


def _translate(file: str, text: str, message: str) -> SyntaxProblemError:
    match = _SYNTAX_ERROR.fullmatch(message)
    if match is None or match["line"] is None:
        what = message if match is None else match["what"]
        return _at(file, text, len(text), what)
    line, column = int(match["line"]), int(match["column"])
    what = match["what"][:_MAX_MESSAGE_LENGTH]
    found = text.split("\n", line)[line - 1][column - 1 : column]
    if found and not found.isascii():
        what += f"; there is U+{ord(found):04X}"
    return SyntaxProblemError(ConfigProblem(f"{file} line {line}, column {column}", what))


def _at(file: str, text: str, offset: int, message: str) -> SyntaxProblemError:
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    place = f"{file} line {line}, column {column}"
    return SyntaxProblemError(ConfigProblem(place, message[:_MAX_MESSAGE_LENGTH]))
