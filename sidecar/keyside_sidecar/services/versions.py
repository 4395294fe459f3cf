"""Versions for the services: the one that seals, charged with what it seals, and those that open.

"Charge, or reserve and charge" stands here once; so does the limit on looks for versions that do
not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused, UnknownVersion
from keyside_sidecar.services.allowance import Allowance

if TYPE_CHECKING:
    from keyside.envelope import VersionKey, WrappingHeader
    from keyside.names import KeyName
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.errors import RequestError
    from keyside_sidecar.keys import Keyring
    from keyside_sidecar.peer.caller import Caller

# Of versions that do not exist, for one account.
_LOOKUPS: Final = 100
_LOOKUPS_PER_SECOND: Final = 10


class Versions:
    """The keyring, as far as sealing and opening need it.

    Args:
        keyring: The key versions.
        clock: For the limit on look-ups of unknown versions.
    """

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._lookups = Allowance(clock, burst=_LOOKUPS, per_second=_LOOKUPS_PER_SECOND)

    async def charge(self, key: KeyName, plaintext_bytes: int, messages: int = 1) -> VersionKey:
        """Return the version that seals, with messages counted; may wait for the store a little.

        Args:
            key: The key's name.
            plaintext_bytes: The messages' size, together.
            messages: How many.

        Raises:
            StoreUnavailable: The key is not configured, or could not be loaded yet.
            StoreTampered: It could not be loaded because it fails its checks.
        """
        version = self._keyring.charge(key, plaintext_bytes, messages)
        if version is None:
            version = await self._keyring.reserve_and_charge(key, plaintext_bytes, messages)
        return version

    async def find(self, header: WrappingHeader, caller: Caller) -> VersionKey:
        """Return the version that a wrapping header names.

        Args:
            header: The header.
            caller: Whose look it is, where the store has to be asked.

        Raises:
            UnknownVersion: There is none.
            VersionDisabled: It may not be used.
            Refused: The caller has had too many looked for that do not exist.
            StoreUnavailable: It is not in memory and the store is away.
        """
        name = header.key_name, header.version_number, header.version_id
        cached = self._keyring.cached(*name)
        if cached is not None:
            return cached
        if not self._keyring.needs_look(*name):
            return await self._keyring.version(*name)  # from memory too, if only to refuse it
        if not self._lookups.has_some(caller.uid):
            raise Refused(Reason.TOO_MANY_CALLS)
        try:
            return await self._keyring.version(*name)
        except UnknownVersion:
            self._lookups.charge(caller.uid)
            raise

    def note_opened(self, version: VersionKey) -> None:
        """Take note that something was opened under a version."""
        self._keyring.note_opened(version)

    def find_stop(self, version: VersionKey) -> RequestError | None:
        """Return what is known here that forbids to go on using a version found before, or None."""
        return self._keyring.find_stop(version)
