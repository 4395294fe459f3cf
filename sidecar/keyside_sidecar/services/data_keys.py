"""Data keys, for callers that seal and open in their own process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyside.envelope import generate_data_key, suite_by_name, unwrap_data_key, wrap_data_key
from keyside_sidecar.services.shapes import AboutKey, digest

if TYPE_CHECKING:
    from keyside.envelope import Suite, VersionKey, WrappingHeader
    from keyside.names import KeyName
    from keyside_sidecar.config import Config, KeySettings
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.shapes import Facts
    from keyside_sidecar.services.versions import Versions

# What one data key may seal. Far below what its suite allows (docs/envelope.md), so that what is
# charged in advance is not far from what is used.
_MAX_MESSAGES: Final = 1 << 20
_MAX_BYTES: Final = 1 << 36
# A data key takes at most this part of what rolls its version over.
_PART_OF_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key's data keys may be used for.

    Args:
        suite: What seals with them.
        max_messages: How many messages one may seal.
        max_bytes: How many bytes of plaintext.
        max_age_s: How long one may be kept, in seconds.
    """

    suite: Suite
    max_messages: int
    max_bytes: int
    max_age_s: float


@dataclass(frozen=True, slots=True)
class GenerateDataKey(AboutKey):
    """Make a data key.

    Args:
        wrapped_only: Its plaintext is not wanted.
    """

    wrapped_only: bool

    def facts(self) -> Facts:
        """Return whether only the wrapped form is wanted."""
        return {"details": {"wrapped_only": True}} if self.wrapped_only else {}


@dataclass(frozen=True, slots=True)
class UnwrapDataKey:
    """Unwrap a data key.

    Args:
        header: The wrapping header that holds it.
    """

    header: WrappingHeader

    @property
    def key(self) -> KeyName:
        """The key that the header names."""
        return self.header.key_name

    def facts(self) -> Facts:
        """Return the header's digest, and the number of the version that it names."""
        return {"digest": digest(self.header.raw), "version": int(self.header.version_number)}


@dataclass(frozen=True, slots=True)
class GeneratedDataKey:
    """A new data key.

    Args:
        plaintext: 32 bytes; none where they were not wanted.
        wrapped: The wrapping header that holds it.
        version: The version that wraps it.
        terms: What it may be used for.
    """

    plaintext: bytes = field(repr=False)
    wrapped: bytes
    version: VersionKey
    terms: Terms

    def facts(self) -> Facts:
        """Return the wrapped form's digest, the version's number, and the terms."""
        return {
            "digest": digest(self.wrapped),
            "version": int(self.version.number),
            "details": {
                "max_age_s": int(self.terms.max_age_s),
                "max_messages": self.terms.max_messages,
                "max_bytes": self.terms.max_bytes,
            },
        }


@dataclass(frozen=True, slots=True)
class UnwrappedDataKey:
    """A data key that was wrapped.

    Args:
        plaintext: 32 bytes.
        version: The version that wraps it.
        suite: What seals with it.
        max_age_s: How long it may be kept, in seconds.
    """

    plaintext: bytes = field(repr=False)
    version: VersionKey
    suite: Suite
    max_age_s: float

    def facts(self) -> Facts:
        """Return how long it may be kept."""
        return {"details": {"max_age_s": int(self.max_age_s)}}


class DataKeyService:
    """Gives data keys to callers that policy has allowed.

    Args:
        config: For each key's suite and what its data keys may be used for.
        versions: Has the versions, and counts what they seal.
    """

    def __init__(self, config: Config, versions: Versions) -> None:
        self._terms = {name: _read_terms(key) for name, key in config.keys.items()}
        self._versions = versions

    async def generate_data_key(
        self, _caller: Caller, command: GenerateDataKey
    ) -> GeneratedDataKey:
        """Make a data key under the current version, and charge all that it may seal.

        Raises:
            StoreUnavailable: The key has not been loaded yet.
        """
        terms = self._terms[command.key]
        version = await self._versions.charge(command.key, terms.max_bytes, terms.max_messages)
        data_key = generate_data_key()
        return GeneratedDataKey(
            b"" if command.wrapped_only else data_key.material,
            wrap_data_key(version, data_key, terms.suite),
            version,
            terms,
        )

    async def decrypt_data_key(self, caller: Caller, command: UnwrapDataKey) -> UnwrappedDataKey:
        """Unwrap a data key.

        Raises:
            EnvelopeRejected: Its wrapping header does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        header = command.header
        version = await self._versions.find(header, caller)
        data_key = unwrap_data_key(version, header)
        self._versions.note_opened(version)
        terms = self._terms[header.key_name]
        return UnwrappedDataKey(data_key.material, version, header.suite, terms.max_age_s)


def _read_terms(key: KeySettings) -> Terms:
    return Terms(
        suite_by_name(key.suite),
        _bound(_MAX_MESSAGES, key.rotate_after_messages),
        _bound(_MAX_BYTES, key.rotate_after_bytes),
        key.data_key_max_age_s,
    )


def _bound(most: int, rotate_after: int | None) -> int:
    return most if rotate_after is None else min(most, max(1, rotate_after // _PART_OF_LIMIT))
