"""Text from others can't act on a terminal or mislead its reader."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.cli.text import escape


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain grüße 漢字 é", "plain grüße 漢字 é"),
        ("a\x1b[2Jb\r\n", "a\\x1b[2Jb\\x0d\\x0a"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\u2028\x7f\x9b", "\\u2028\\x7f\\x9b"),
        ("\U000e0041", "\\U000e0041"),
        ("\\x1b", "\\\\x1b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_not_visible_is_spelt_out(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_any_text_becomes_one_visible_line_and_can_be_read_back(text: str) -> None:
    shown = escape(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    visible = shown.encode("unicode_escape").replace(rb"\\", b"\\").decode("unicode_escape")
    assert visible == text
