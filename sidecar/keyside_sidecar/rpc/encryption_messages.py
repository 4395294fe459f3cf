"""Between EncryptionService's messages and the envelope code's types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyside.envelope.context import MAX_CONTEXT_PAIRS, encode_context
from keyside.v1 import encryption_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import VersionKey


def make_reference(version: VersionKey) -> pb.KeyVersionRef:
    """Return the message that names a version."""
    return pb.KeyVersionRef(key=version.key_name, number=version.number)


def copy_context(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return a message's context as a dict; ``dict(pairs)`` takes three times as long."""
    if len(pairs) > MAX_CONTEXT_PAIRS:  # nobody gets as far as copying what is refused anyway
        encode_context(pairs)
    return {name: pairs[name] for name in pairs}
