"""Shapes of calls: what every command and every result can say of itself.

A *command* is what a caller asks for, in plain values. It is about a key, about an envelope (whose
wrapping header names the key), about many (a batch), or about nothing in particular. A *result* is
what came of it. Both say the facts that the audit log keeps: never a secret (I7).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from keyside.envelope.context import MAX_CONTEXT_NAME_BYTES, MAX_CONTEXT_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyside.envelope import WrappingHeader
    from keyside.names import KeyName

Facts: TypeAlias = "dict[str, object]"


class Command(Protocol):
    """What a caller asks for."""

    @property
    def key(self) -> KeyName | None:
        """The key that it is about; None for a batch, and for what is about no key."""

    def facts(self) -> Facts:
        """Return what the audit log says of it."""


class Result(Protocol):
    """What came of a command."""

    def facts(self) -> Facts:
        """Return what the audit log adds to the command's facts."""


@dataclass(frozen=True, slots=True)
class AboutNothing:
    """A command that is about no key."""

    @property
    def key(self) -> None:
        """None."""
        return None

    def facts(self) -> Facts:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class AboutKey:
    """A command that is about a key, and says no more to the audit log.

    Args:
        key: The key.
    """

    key: KeyName

    def facts(self) -> Facts:
        """Return nothing: every record of a call about a key has the key."""
        return {}


@dataclass(frozen=True, slots=True)
class AboutEnvelope:
    """A command that is about an envelope.

    Args:
        header: Its wrapping header.
        envelope: The whole of it.
    """

    header: WrappingHeader
    envelope: bytes

    @property
    def key(self) -> KeyName:
        """The key that the header names."""
        return self.header.key_name

    def facts(self) -> Facts:
        """Return the envelope's digest, and the number of the version that it names."""
        return {"digest": digest(self.envelope), "version": int(self.header.version_number)}


def digest(data: bytes) -> str:
    """Return the SHA-256 digest that stands for an envelope in the audit log, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def name_context(names: Iterable[str]) -> Facts:
    """Return the names of a context for the audit log; its values are never kept.

    What no context may have is refused, and not worth keeping.
    """
    kept = sorted(name for name in names if len(name) <= MAX_CONTEXT_NAME_BYTES)
    return {"context": kept[:MAX_CONTEXT_PAIRS]} if kept else {}


def merge(facts: Facts, more: Facts) -> Facts:
    """Return facts with more of them; of both, the details are put together."""
    both = {**facts, **more}
    details = {
        name: value
        for part in (facts.get("details"), more.get("details"))
        if isinstance(part, dict)
        for name, value in part.items()
    }
    if details:
        both["details"] = details
    return both
