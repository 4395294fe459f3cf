"""Validator of docs/audit-record.schema.json: as much of JSON Schema as that page uses, no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).parents[2] / "docs" / "audit-record.schema.json"
SCHEMA: Final[dict[str, Any]] = json.loads(PATH.read_text("ascii"))
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_SAID: Final = {"$schema", "$defs", "title", "description", "examples", "then", "else"}


def is_valid(value: Any, schema: Any = SCHEMA) -> bool:
    """Return whether ``value`` meets a schema.

    Stricter in one thing, which docs/audit.md says: 1.0 is no integer.
    """
    if isinstance(schema, bool):
        return schema
    return all(_meets(value, word, said, schema) for word, said in schema.items())


def _meets(  # noqa: C901, PLR0911  (one line for each word of JSON Schema)
    value: Any, word: str, said: Any, schema: dict[str, Any]
) -> bool:
    match word:
        case "$ref":
            return is_valid(value, SCHEMA["$defs"][said.removeprefix("#/$defs/")])
        case "type":
            return any(_is_of(value, name) for name in ([said] if isinstance(said, str) else said))
        case "const":
            return bool(type(value) is type(said) and value == said)
        case "enum":
            return value in said
        case "anyOf":
            return any(is_valid(value, one) for one in said)
        case "if":
            return is_valid(value, schema["then" if is_valid(value, said) else "else"])
        case "pattern" | "minLength" | "maxLength":
            return not isinstance(value, str) or _fits_text(value, word, said)
        case "minimum" | "maximum":
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return not is_number or (value >= said if word == "minimum" else value <= said)
        case "items":
            return not isinstance(value, list) or all(is_valid(item, said) for item in value)
        case "required" | "properties" | "additionalProperties":
            return not isinstance(value, dict) or _fits_object(value, word, said, schema)
        case _ if word in _SAID:
            return True
    raise AssertionError(f"this validator does not know {word!r}")


def _is_of(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _fits_text(value: str, word: str, said: Any) -> bool:
    if word == "pattern":
        # JSON Schema's $ is the end of the text; Python's is before a last line feed as well.
        assert said.startswith("^")
        assert said.endswith("$")
        return re.fullmatch(said[1:-1], value, re.ASCII) is not None
    return bool(len(value) >= said if word == "minLength" else len(value) <= said)


def _fits_object(value: dict[str, Any], word: str, said: Any, schema: dict[str, Any]) -> bool:
    if word == "required":
        return set(said) <= value.keys()
    known = schema.get("properties", {})
    if word == "properties":
        return all(is_valid(value[name], said[name]) for name in said if name in value)
    return all(is_valid(item, said) for name, item in value.items() if name not in known)
