"""The sizes and fixed bytes of format version 1, which every layer shares (docs/envelope.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside.errors import InvalidArgument

if TYPE_CHECKING:
    from keyside.names import KeyName, VersionNumber

MAGIC: Final = b"KSE"
FORMAT_VERSION: Final = 1
PREAMBLE: Final = MAGIC + bytes((FORMAT_VERSION,))

KEY_LENGTH: Final = 32
TAG_LENGTH: Final = 16
SALT_LENGTH: Final = 24
VERSION_ID_LENGTH: Final = 16
COMMITMENT_LENGTH: Final = 32
CONTEXT_DIGEST_LENGTH: Final = 32
WRAPPED_KEY_LENGTH: Final = KEY_LENGTH + TAG_LENGTH
MAX_VERSION_NUMBER: Final = 2**32 - 1


def encode_header_prefix(
    suite_code: int, key_name: KeyName, number: VersionNumber, version_id: bytes
) -> bytes:
    """Return a wrapping header from its magic to its version id: all that names a key version.

    Args:
        suite_code: The wrapping suite's byte.
        key_name: A key name, already checked.
        number: 1 to 2**32 - 1, already checked.
        version_id: 16 bytes.
    """
    name = key_name.encode("ascii")
    return PREAMBLE + bytes((suite_code, len(name))) + name + number.to_bytes(4) + version_id


def require_bytes(value: object, what: str) -> None:
    """Refuse anything but ``bytes``: text has no one encoding, and a buffer may change under us.

    Raises:
        InvalidArgument: ``value`` is not ``bytes``; ``what`` says which argument.
    """
    if not isinstance(value, bytes):
        raise InvalidArgument(f"{what} must be bytes", reason="INVALID_TYPE")
