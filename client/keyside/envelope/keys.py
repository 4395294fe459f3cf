"""Key material in memory: a key version, and the data key of one call.

Neither prints, pickles, copies or compares its bytes. Python can't wipe memory: material stays
until the interpreter reuses it, which is why the processes that hold it can't be dumped.
"""

from __future__ import annotations

from os import urandom
from typing import NoReturn

from keyside.envelope.framing import (
    KEY_LENGTH,
    MAX_VERSION_NUMBER,
    VERSION_ID_LENGTH,
    encode_header_prefix,
)
from keyside.envelope.suites import SUITES
from keyside.errors import InvalidArgument
from keyside.names import KeyName, VersionNumber, parse_key_name


def _require_length(value: object, length: int, what: str) -> None:
    if not isinstance(value, bytes) or len(value) != length:
        raise InvalidArgument(f"{what} is {length} bytes", reason="INVALID_KEY_MATERIAL")


class Unshareable:
    """Something that must not be pickled or copied: it holds key material, or counts nonces."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be pickled or copied")


class DataKey(Unshareable):
    """The random key that seals the payloads of one call; travels only wrapped.

    Args:
        material: 32 uniformly random bytes.

    Raises:
        InvalidArgument: ``material`` is something else.
    """

    __slots__ = ("material",)

    def __init__(self, material: bytes) -> None:
        _require_length(material, KEY_LENGTH, "a data key")
        self.material = material

    def __repr__(self) -> str:
        return "DataKey(<redacted>)"


class VersionKey(Unshareable):
    """One version of a key: wraps data keys, and never encrypts anything itself.

    Equal only to itself.

    Args:
        key_name: The key's name.
        number: 1 to 2**32 - 1.
        version_id: 16 random bytes; a number never names two materials, because this differs.
        material: 32 uniformly random bytes.

    Raises:
        InvalidArgument: An argument is out of its bounds.
    """

    __slots__ = ("header_prefixes", "key_name", "material", "number", "version_id")

    def __init__(
        self, key_name: KeyName, number: VersionNumber, version_id: bytes, material: bytes
    ) -> None:
        parse_key_name(key_name)
        if not isinstance(number, int) or not 1 <= number <= MAX_VERSION_NUMBER:
            raise InvalidArgument(
                f"a version number is 1 to {MAX_VERSION_NUMBER}", reason="INVALID_VERSION"
            )
        _require_length(version_id, VERSION_ID_LENGTH, "a version id")
        _require_length(material, KEY_LENGTH, "a version's key material")
        self.key_name = key_name
        self.number = number
        self.version_id = version_id
        self.material = material
        # What a header wrapped by this version begins with, by suite code: whether a header is
        # this version's is then one comparison.
        self.header_prefixes = {
            suite.code: encode_header_prefix(suite.code, key_name, number, version_id)
            for suite in SUITES
        }

    def __repr__(self) -> str:
        return f"VersionKey({self.key_name!r}, number={self.number}, material=<redacted>)"


def generate_data_key() -> DataKey:
    """Return a new data key from the kernel's random generator."""
    return DataKey(urandom(KEY_LENGTH))
