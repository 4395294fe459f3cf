"""Contexts and version references of EncryptionService's messages."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from keyside.envelope.context import MAX_CONTEXT_PAIRS
from keyside.v1 import encryption_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import VersionKey


def make_reference(version: VersionKey) -> pb.KeyVersionRef:
    """Return the message that names a version."""
    return pb.KeyVersionRef(key=version.key_name, number=version.number)


def copy_context(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return a message's context as a dict; ``dict(pairs)`` takes three times as long.

    Of one with more pairs than any context may have, as many are copied as it takes to be refused.
    """
    if len(pairs) > MAX_CONTEXT_PAIRS:
        return {name: pairs[name] for name in islice(pairs, MAX_CONTEXT_PAIRS + 1)}
    return {name: pairs[name] for name in pairs}
