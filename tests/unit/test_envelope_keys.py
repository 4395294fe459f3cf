"""Key objects don't give their bytes away (I7), and refuse what is no key."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyside.envelope import (
    DataKey,
    PayloadOpener,
    PayloadSealer,
    SegmentOpener,
    SegmentSealer,
    VersionKey,
    generate_data_key,
)
from keyside.errors import InvalidArgument
from keyside.names import KeyName, VersionNumber

if TYPE_CHECKING:
    from collections.abc import Callable

MATERIAL = b"\xa5" * 32


def make_version(**changes: Any) -> VersionKey:
    """Return a version with some arguments replaced."""
    arguments: dict[str, Any] = {
        "key_name": KeyName("mail"),
        "number": VersionNumber(7),
        "version_id": bytes(16),
        "material": MATERIAL,
        **changes,
    }
    return VersionKey(**arguments)


def make_opener() -> SegmentOpener:
    """Return an opener of an empty stream."""
    data_key = DataKey(MATERIAL)
    return SegmentOpener(data_key, SegmentSealer(data_key, {}).header, {})


UNSHAREABLE: list[Callable[[], object]] = [
    make_version,
    lambda: DataKey(MATERIAL),
    lambda: PayloadSealer(DataKey(MATERIAL)),
    lambda: PayloadOpener(DataKey(MATERIAL)),
    lambda: SegmentSealer(DataKey(MATERIAL), {}),
    make_opener,
]


@pytest.mark.parametrize("make", UNSHAREABLE)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_keys_and_sealers_are_not_copied(
    make: Callable[[], object], duplicate: Callable[[object], object]
) -> None:
    """A pickle is a key at rest, and a copied sealer would repeat its nonces (I7)."""
    with pytest.raises(TypeError, match="can't be pickled or copied"):
        duplicate(make())


@pytest.mark.parametrize("make", UNSHAREABLE)
def test_nothing_printable_holds_the_material(make: Callable[[], object]) -> None:
    """No way of formatting shows a key (I7)."""
    value = make()
    for text in (repr(value), str(value), f"{value}", "%r" % (value,)):  # noqa: UP031
        assert MATERIAL.hex() not in text
        assert repr(MATERIAL)[2:-1] not in text
        assert "\\xa5" not in text
    assert not hasattr(value, "__dict__")


def test_version_says_which_it_is() -> None:
    """A version can be told apart in a log without its key."""
    assert repr(make_version()) == "VersionKey('mail', number=7, material=<redacted>)"


def test_keys_equal_only_themselves() -> None:
    """No comparison by value, which would not take constant time."""
    assert DataKey(MATERIAL) != DataKey(MATERIAL)
    assert make_version() != make_version()


def test_generated_data_keys_differ() -> None:
    """A data key is fresh, and 32 bytes."""
    first, second = generate_data_key(), generate_data_key()
    assert first.material != second.material
    assert len(first.material) == 32


@pytest.mark.parametrize("material", [b"", bytes(31), bytes(33), bytearray(32), "a" * 32, None])
def test_data_key_of_another_size_is_refused(material: object) -> None:
    """Exactly 32 bytes."""
    with pytest.raises(InvalidArgument, match="32 bytes"):
        DataKey(cast("bytes", material))


@pytest.mark.parametrize(
    "changes",
    [
        {"key_name": "Mail"},
        {"key_name": ""},
        {"key_name": "a" * 64},
        {"number": 0},
        {"number": 2**32},
        {"number": "1"},
        {"version_id": bytes(15)},
        {"material": bytes(16)},
    ],
)
def test_version_outside_its_bounds_is_refused(changes: dict[str, Any]) -> None:
    """A version that a header could not name does not come into being."""
    with pytest.raises(InvalidArgument):
        make_version(**changes)
