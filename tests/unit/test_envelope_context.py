"""The canonical context: what it accepts, how it is written, what it refuses."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyside.envelope import encode_context
from keyside.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_encoding_is_as_specified() -> None:
    """Count, then sorted, length-prefixed pairs."""
    assert encode_context({"b": "", "a": "xy"}) == (
        b"\x00\x02\x00\x00\x00\x01a\x00\x00\x00\x02xy\x00\x00\x00\x01b\x00\x00\x00\x00"
    )


def test_empty_context_is_a_count_of_zero() -> None:
    """No context and an empty one are the same."""
    assert encode_context({}) == b"\x00\x00"


def test_order_is_that_of_utf8_and_not_of_utf16() -> None:
    """U+FFFD comes before U+10348, whose UTF-16 begins with a surrogate."""
    encoded = encode_context({"\U00010348": "", "\ufffd": ""})
    assert encoded.index("\ufffd".encode()) < encoded.index("\U00010348".encode())


def test_normal_forms_are_different_contexts() -> None:
    """Nothing is normalised."""
    assert encode_context({"a": "é"}) != encode_context({"a": "e\u0301"})


def test_any_mapping_is_accepted() -> None:
    """A read-only view is as good as a dict."""
    assert encode_context(MappingProxyType({"a": "b"})) == encode_context({"a": "b"})


def test_limits_are_reached_inclusively() -> None:
    """32 pairs, 128 bytes of name and 1,024 of value are allowed."""
    context = {f"{index:0128}": "é" * 512 for index in range(32)}
    assert len(encode_context(context)) == 2 + 32 * (4 + 128 + 4 + 1024)


@pytest.mark.parametrize(
    ("context", "limit"),
    [
        ({str(index): "" for index in range(33)}, "at most 32 pairs"),
        ({"": "a"}, "name is 1 to 128 bytes"),
        ({"a" * 129: ""}, "name is 1 to 128 bytes"),
        ({"é" * 65: ""}, "name is 1 to 128 bytes"),
        ({"a": "a" * 1025}, "value is at most 1024 bytes"),
        ({"a": "é" * 513}, "value is at most 1024 bytes"),
        ({"a": "\ud800"}, "lone surrogates"),
        ({"\udfff": "a"}, "lone surrogates"),
        ({"a": 1}, "map of text to text"),
        ({b"a": "b"}, "map of text to text"),
        ({"a": None}, "map of text to text"),
        (None, "map of text to text"),
        ([("a", "b")], "map of text to text"),
        ("a", "map of text to text"),
    ],
)
def test_what_is_outside_the_limits_is_refused_with_the_limit(context: Any, limit: str) -> None:
    """The message states the limit and repeats nothing of the context."""
    with pytest.raises(InvalidArgument, match=limit) as caught:
        encode_context(cast("Mapping[str, str]", context))
    assert caught.value.reason == "INVALID_CONTEXT"
    assert caught.value.__cause__ is None
