"""Finds the version that an envelope names, and keeps callers from having too many looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.errors import Refused, UnknownVersion
from keyside_sidecar.rpc.allowance import Allowance

if TYPE_CHECKING:
    from keyside.envelope import VersionKey, WrappingHeader
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.keys import Keyring

# Of versions that do not exist, for one account.
_LOOKUPS: Final = 100
_LOOKUPS_PER_SECOND: Final = 10


class Versions:
    """The keyring, as far as opening envelopes needs it.

    Args:
        keyring: The key versions.
        clock: For the limit on look-ups of unknown versions.
    """

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._lookups = Allowance(clock, burst=_LOOKUPS, per_second=_LOOKUPS_PER_SECOND)

    async def find(self, header: WrappingHeader, uid: int) -> VersionKey:
        """Return the version that a wrapping header names.

        Args:
            header: The header.
            uid: Whose look it is, where the store has to be asked.

        Raises:
            UnknownVersion: There is none.
            VersionDisabled: It may not be used.
            Refused: ``uid`` has had too many looked for that do not exist.
            StoreUnavailable: It is not in memory and the store is away.
        """
        name = header.key_name, header.version_number, header.version_id
        cached = self._keyring.cached(*name)
        if cached is not None:
            return cached
        if not self._keyring.needs_look(*name):
            return await self._keyring.version(*name)  # from memory too, if only to refuse it
        if not self._lookups.has_some(uid):
            raise Refused(Reason.TOO_MANY_CALLS)
        try:
            return await self._keyring.version(*name)
        except UnknownVersion:
            self._lookups.charge(uid)
            raise
