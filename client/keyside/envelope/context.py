"""The context in its one canonical form, and the digest of it that a payload header carries."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from itertools import islice
from typing import Final

from keyside.errors import InvalidArgument

MAX_CONTEXT_PAIRS: Final = 32
MAX_CONTEXT_NAME_BYTES: Final = 128
MAX_CONTEXT_VALUE_BYTES: Final = 1024

EMPTY_CONTEXT: Final = b"\x00\x00"
DIGEST_LABEL: Final = b"keyside/v1/context\x00"
_LENGTHS: Final = tuple(n.to_bytes(4) for n in range(MAX_CONTEXT_VALUE_BYTES + 1))
# No name is empty, and none is longer.
_NAME_LENGTHS: Final = {n: _LENGTHS[n] for n in range(1, MAX_CONTEXT_NAME_BYTES + 1)}
# How a context of one pair begins, by its name. Names come from callers: only so many are kept.
_NAMES: Final[dict[str, bytes]] = {}
_MAX_NAMES: Final = 256


def encode_context(context: Mapping[str, str]) -> bytes:
    """Return the canonical encoding: equal for equal pairs, in whatever order they were given.

    A count (u16), then for each pair, sorted by the name's UTF-8 bytes, the length (u32) and
    UTF-8 bytes of name and value. No two contexts share an encoding, and no encoding is the
    beginning of another. Nothing is normalised: "é" as one code point and as two are different
    contexts.

    Args:
        context: At most 32 pairs; a name is 1 to 128 bytes and a value at most 1,024 bytes of
            UTF-8.

    Raises:
        InvalidArgument: ``context`` is outside those limits, is no mapping of text to text, or
            holds a lone surrogate, or gives a name twice; reason ``INVALID_CONTEXT``.
    """
    # One pair in a dict is what most contexts are; their names are few.
    if type(context) is dict and len(context) == 1:
        [(name, value)] = context.items()
        if type(name) is str and type(value) is str and (begun := _NAMES.get(name)) is not None:
            try:
                encoded_value = value.encode()
                return begun + _LENGTHS[len(encoded_value)] + encoded_value
            except (UnicodeEncodeError, IndexError):
                pass  # refused below, with its reason
    if type(context) is dict and 1 < len(context) <= MAX_CONTEXT_PAIRS:
        encoded = _encode_dict(context)
        if encoded is not None:
            return encoded
    return _encode_any(context)


def _encode_any(context: Mapping[str, str]) -> bytes:
    # A dict is told apart first: the abstract class costs as much as encoding a pair.
    if not isinstance(context, dict) and not isinstance(context, Mapping):
        raise _invalid("a context is a map of text to text")
    # What a mapping says of its length need not be what it gives; the pairs it gives are counted.
    given = [*islice(context.items(), MAX_CONTEXT_PAIRS + 1)]
    if not given:
        return EMPTY_CONTEXT
    if len(given) > MAX_CONTEXT_PAIRS:
        raise _invalid(f"a context has at most {MAX_CONTEXT_PAIRS} pairs")
    pairs = _encode_pairs(given)
    if len(pairs) != len(given):
        raise _invalid("a context's names are distinct")
    if len(pairs) == 1 and len(_NAMES) < _MAX_NAMES:
        _remember_name(*pairs)
    parts = [len(pairs).to_bytes(2)]
    for encoded_name, encoded_value in sorted(pairs.items()):
        parts += (
            _LENGTHS[len(encoded_name)],
            encoded_name,
            _LENGTHS[len(encoded_value)],
            encoded_value,
        )
    return b"".join(parts)


def _encode_dict(context: dict[str, str]) -> bytes | None:
    """Return the encoding of a dict's pairs, quickly; None for what the general way shall refuse.

    A dict's names are distinct, and so are their encodings.
    """
    encode = str.encode
    try:
        pairs = sorted([(encode(name), encode(value)) for name, value in context.items()])
        parts = [len(pairs).to_bytes(2)]
        for name, value in pairs:
            parts += _NAME_LENGTHS[len(name)], name, _LENGTHS[len(value)], value
        return b"".join(parts)
    except (TypeError, UnicodeEncodeError, LookupError, RuntimeError):
        return None


def _remember_name(encoded_name: bytes) -> None:
    begun = (1).to_bytes(2) + len(encoded_name).to_bytes(4) + encoded_name
    _NAMES[encoded_name.decode()] = begun


def _encode_pairs(given: list[tuple[str, str]]) -> dict[bytes, bytes]:
    pairs = {}
    for name, value in given:
        if not isinstance(name, str) or not isinstance(value, str):
            raise _invalid("a context is a map of text to text")
        try:
            encoded_name = str.encode(name)
            encoded_value = str.encode(value)
        except UnicodeEncodeError:
            raise _invalid("a context is valid Unicode, without lone surrogates") from None
        if not 1 <= len(encoded_name) <= MAX_CONTEXT_NAME_BYTES:
            raise _invalid(f"a context's name is 1 to {MAX_CONTEXT_NAME_BYTES} bytes of UTF-8")
        if len(encoded_value) > MAX_CONTEXT_VALUE_BYTES:
            raise _invalid(f"a context's value is at most {MAX_CONTEXT_VALUE_BYTES} bytes of UTF-8")
        pairs[encoded_name] = encoded_value
    return pairs


def digest_context(context_key: bytes, sequence: bytes, encoded_context: bytes) -> bytes:
    """Return what a payload header says about its context.

    It is keyed, so that whoever has only the envelope can't try contexts until one fits; and it
    is a collision-resistant hash of that key, so that a payload opens under one data key alone.
    Putting the key first is sound here, where HMAC would be the general answer: the key has a
    fixed length and no encoded context is the beginning of another (docs/envelope.md).

    Args:
        context_key: 32 bytes, the second half of the payload's derived pair.
        sequence: The payload's sequence as 8 bytes.
        encoded_context: From ``encode_context``.
    """
    return sha256(DIGEST_LABEL + context_key + sequence + encoded_context).digest()


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="INVALID_CONTEXT")
