"""Where settings stand in the file, and how durations and sizes are read."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside_sidecar.config.places import find_places
from keyside_sidecar.config.units import (
    WrongValueError,
    format_duration,
    format_size,
    parse_duration_s,
    parse_size_bytes,
)

TRICKY = '''\
# [not.a.table] # "
top = """
[no] = 1
\\""" still"""   # two
"quoted key" . 'b.c' = 1
[ "keys" . "a.b" ]  # header
lit = \'\'\'
x = 1\'\'\'\'
arr = [ # [
  "]", \'#\',
  [1, 2],
  { inner = """
"""  , other = 5 },
]
after = 2020-01-01T00:00:00Z
in.line.key = { a = 1, "b" = [3] }
[[list]]
v = 1
[[list]]
v = 2
[list.sub]
w = 3
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quoted key", "b.c"), 5),
        (("keys",), 6),
        (("keys", "a.b"), 6),
        (("keys", "a.b", "lit"), 7),
        (("keys", "a.b", "arr"), 9),
        (("keys", "a.b", "arr", 0), 10),
        (("keys", "a.b", "arr", 2, 1), 11),
        (("keys", "a.b", "arr", 3, "inner"), 12),
        (("keys", "a.b", "arr", 3, "other"), 13),
        (("keys", "a.b", "after"), 15),
        (("keys", "a.b", "in", "line"), 16),
        (("keys", "a.b", "in", "line", "key", "b", 0), 16),
        (("list",), 17),
        (("list", 0, "v"), 18),
        (("list", 1), 19),
        (("list", 1, "v"), 20),
        (("list", 1, "sub", "w"), 22),
        (("keys", "a.b", "absent"), 6),
        (("nowhere",), None),
    ],
)
def test_lines_are_found_in_all_of_toml_s_spellings(
    path: tuple[str | int, ...], line: int | None
) -> None:
    tomllib.loads(TRICKY)
    assert find_places("k.toml", TRICKY).line(path) == line


def test_every_key_that_tomllib_finds_has_its_own_line() -> None:
    def walk(value: object, path: tuple[str | int, ...]) -> None:
        items: Any = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        for key, inner in items:
            assert (*path, key) in places._lines
            walk(inner, (*path, key))

    places = find_places("k.toml", TRICKY)
    walk(tomllib.loads(TRICKY), ())


@given(st.text(max_size=100))
def test_scanner_raises_on_no_text(text: str) -> None:
    find_places("k.toml", text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("250ms", 0.25),
        ("5s", 5.0),
        ("1h30m", 5400.0),
        ("90d", 7776000.0),
        ("1d2h3m4s5ms", 93784.005),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds
    assert parse_duration_s(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "5 s", "-5s", "1.5s", "5S", "30m1h", "5s5s", "\u0665s", "1234567890s", 5, None],
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(WrongValueError):
        parse_duration_s(text)


@given(st.integers(min_value=0, max_value=1 << 34))
def test_sizes_are_written_as_they_are_read(size_bytes: int) -> None:
    text = format_size(size_bytes)
    assert parse_size_bytes(int(text) if text.isdigit() else text) == size_bytes
