"""Encryption: one payload or envelope a call, sealed, opened, rewrapped and re-encrypted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyside.envelope import encode_context, open_envelope, rewrap, seal, suite_by_name
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.services.shapes import AboutEnvelope, AboutKey, digest, name_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyside.envelope import Suite, VersionKey
    from keyside_sidecar.config import Config
    from keyside_sidecar.peer.caller import Caller
    from keyside_sidecar.services.shapes import Facts
    from keyside_sidecar.services.versions import Versions


@dataclass(frozen=True, slots=True)
class Seal(AboutKey):
    """Seal a plaintext under a key's current version.

    Args:
        plaintext: What is sealed.
        context: The pairs that the envelope is bound to.
    """

    plaintext: bytes = field(repr=False)
    context: Mapping[str, str]

    def facts(self) -> Facts:
        """Return the context's names."""
        return name_context(self.context)


@dataclass(frozen=True, slots=True)
class Open(AboutEnvelope):
    """Open an envelope.

    Args:
        context: The pairs that it was sealed with.
    """

    context: Mapping[str, str]

    def facts(self) -> Facts:
        """Return the envelope's digest and version, and the context's names."""
        return {**AboutEnvelope.facts(self), **name_context(self.context)}


@dataclass(frozen=True, slots=True)
class Rewrap(AboutEnvelope):
    """Move an envelope's data key under the current version; it may be a wrapping header alone."""


@dataclass(frozen=True, slots=True)
class Reencrypt(Open):
    """Open an envelope, and seal its plaintext under the current version and a new data key."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A new envelope, and the version that wraps its data key."""

    envelope: bytes
    version: VersionKey

    def facts(self) -> Facts:
        """Return the envelope's digest and the version's number."""
        return {"digest": digest(self.envelope), "version": int(self.version.number)}


@dataclass(frozen=True, slots=True)
class Opened:
    """What was in an envelope, and the version that wrapped its data key."""

    plaintext: bytes = field(repr=False)
    version: VersionKey

    def facts(self) -> Facts:
        """Return nothing: the envelope named the version."""
        return {}


@dataclass(frozen=True, slots=True)
class Renewed:
    """An envelope in another's place, with the versions that wrapped, and wrap, the data key."""

    envelope: bytes
    previous: VersionKey
    version: VersionKey

    def facts(self) -> Facts:
        """Return the new envelope's digest and version; the record is the old one's."""
        return {
            "details": {
                "new_version": int(self.version.number),
                "new_digest": digest(self.envelope),
            }
        }


class EncryptionService:
    """Seals, opens, rewraps and re-encrypts for callers that policy, or a grant, has allowed.

    Args:
        config: For the size limit and each key's suite.
        versions: Has them in memory, and counts what they seal.
    """

    def __init__(self, config: Config, versions: Versions) -> None:
        self._max_plaintext_bytes = config.sidecar.max_plaintext_bytes
        self._suites: Mapping[str, Suite] = {
            name: suite_by_name(key.suite) for name, key in config.keys.items()
        }
        self._versions = versions

    async def encrypt(self, _caller: Caller, command: Seal) -> Sealed:
        """Seal a plaintext under the current version.

        Raises:
            BadRequest: The plaintext is over the limit.
            InvalidArgument: The context is not valid.
            StoreUnavailable: The key has not been loaded yet.
        """
        size_bytes = len(command.plaintext)
        if size_bytes > self._max_plaintext_bytes:
            raise BadRequest(
                "plaintext",
                f"has {size_bytes} bytes; at most {self._max_plaintext_bytes} are taken "
                "(max_plaintext_bytes)",
            )
        version = await self._versions.charge(command.key, size_bytes)
        suite = self._suites[command.key]
        return Sealed(seal(version, command.plaintext, command.context, suite), version)

    async def decrypt(self, caller: Caller, command: Open) -> Opened:
        """Open an envelope.

        Raises:
            InvalidArgument: The context is not valid.
            EnvelopeRejected: It does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        # First, so that what is wrong with the context is said whether the version is known or not.
        encode_context(command.context)
        version = await self._versions.find(command.header, caller)
        plaintext = open_envelope(version, command.envelope, command.context)
        self._versions.note_opened(version)
        return Opened(plaintext, version)

    async def rewrap(self, caller: Caller, command: Rewrap) -> Renewed:
        """Move an envelope's data key under the current version.

        Raises:
            EnvelopeRejected: Its wrapping header does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        old = await self._versions.find(command.header, caller)
        new = await self._versions.charge(command.key, 0)
        envelope = rewrap(old, new, command.envelope, self._suites[command.key])
        self._versions.note_opened(old)
        return Renewed(envelope, old, new)

    async def reencrypt(self, caller: Caller, command: Reencrypt) -> Renewed:
        """Open an envelope, and seal its plaintext under the current version and a new data key.

        Raises:
            InvalidArgument: The context is not valid.
            EnvelopeRejected: It does not open.
            VersionDisabled: Its version may not be used.
            StoreUnavailable: Its version is not in memory and the store is away.
        """
        opened = await self.decrypt(caller, command)
        new = await self._versions.charge(command.key, len(opened.plaintext))
        envelope = seal(new, opened.plaintext, command.context, self._suites[command.key])
        return Renewed(envelope, opened.version, new)
