"""The canonical context: what it accepts, how it is written, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat
from types import MappingProxyType
from typing import Any, cast

import pytest

from keyside.envelope import encode_context
from keyside.errors import InvalidArgument


class Given(Mapping[str, str]):
    """A mapping whose length and pairs are whatever the test says."""

    def __init__(self, length: int, pairs: Any) -> None:
        self._length = length
        self._pairs = pairs

    def __getitem__(self, name: str) -> str:
        return str(dict(self._pairs)[name])

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._pairs))

    def __len__(self) -> int:
        return self._length

    def items(self) -> Any:
        return self._pairs


class GivenDict(dict[str, str]):
    """The same for what is a dict by its type."""

    def items(self) -> Any:
        return [("a", "1"), ("a", "2")]


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


@pytest.mark.parametrize(
    "context",
    [
        Given(1, [("a", "1"), ("a", "2")]),
        Given(2, [("a", "1"), ("a", "1")]),
        Given(3, [("a", "1"), ("b", ""), ("a", "")]),
        GivenDict(a="1"),
    ],
)
def test_name_given_twice_is_refused(context: Mapping[str, str]) -> None:
    """What was sealed for it would open for no dict."""
    with pytest.raises(InvalidArgument, match="names are distinct") as caught:
        encode_context(context)
    assert caught.value.reason == "INVALID_CONTEXT"


@pytest.mark.parametrize("length", [0, 1, 32])
@pytest.mark.parametrize(
    "pairs",
    [
        [(str(index), "") for index in range(33)],
        [(str(index), "") for index in range(70_000)],
        repeat(("a", "")),
    ],
    ids=["33", "70000", "endless"],
)
def test_pairs_are_counted_and_not_believed(length: int, pairs: Any) -> None:
    """A mapping may say that it is shorter than it is."""
    with pytest.raises(InvalidArgument, match="at most 32 pairs") as caught:
        encode_context(Given(length, pairs))
    assert caught.value.reason == "INVALID_CONTEXT"


@pytest.mark.parametrize("length", [0, 33, 2**20])
def test_what_is_encoded_is_what_is_given(length: int) -> None:
    """Neither an empty nor a long mapping is made of one pair by what it says of its length."""
    assert encode_context(Given(length, [("a", "b")])) == encode_context({"a": "b"})
    assert encode_context(Given(length, [])) == encode_context({})
