"""Data keys that the sidecar hands out, for sealing and opening in the caller's own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyside.envelope import DataKey


@dataclass(frozen=True, slots=True)
class IssuedDataKey:
    """A new data key. Its bytes show nowhere, nor do they pickle.

    Args:
        data_key: The key itself; ``None`` where only the wrapped one was asked for.
        wrapped: The wrapping header that every envelope under it begins with. Not secret.
        key: The name of the key whose version wraps it.
        version: That version's number.
        suite: The suite to seal with.
        max_age_s: Seconds after which it must be forgotten: until then rollover, disabling or a
            withdrawn permission may not have reached whoever holds it.
        max_messages: Messages to seal under it at most; so many were charged to the version.
        max_bytes: Bytes of plaintext to seal under it at most.
    """

    data_key: DataKey | None
    wrapped: bytes
    key: str
    version: int
    suite: str
    max_age_s: float
    max_messages: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class OpenedDataKey:
    """A data key that was wrapped. Its bytes show nowhere, nor do they pickle.

    Args:
        data_key: The key itself.
        key: The name of the key whose version wrapped it.
        version: That version's number.
        max_age_s: Seconds after which it must be forgotten.
    """

    data_key: DataKey
    key: str
    version: int
    max_age_s: float
