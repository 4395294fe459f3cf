"""Counts what is sealed under each current version, without asking the store each time.

Messages and bytes are reserved from the store in blocks, and charged from memory. A block that is
half used is topped up in the background, so that sealing waits for the store only where the first
block is not there yet, or use grows faster than blocks do::

    charge ──enough left──► done
       └──not enough──► reserve ──► charge again
                          └──the store is away, or slow──► seal, and count it later

What could not be counted (I12: encryption goes on) is kept and told to the store as soon as it
answers; only a process that is killed before forgets it, and ``problem_since`` says so meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyside.names import KeyName
from keyside_sidecar.errors import SidecarError, StoreTampered
from keyside_sidecar.store.usage import UsageEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime

    from keyside.envelope import VersionKey
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.store import VersionUsage

    Record = Callable[[list[UsageEntry]], Awaitable[Mapping[tuple[str, int], VersionUsage]]]

# How long sealing may wait for a reservation.
_PATIENCE_S: Final = 0.5
_LEAST_MESSAGES: Final = 64
_LEAST_BYTES: Final = 256 << 10
_MOST_MESSAGES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 30
# All processes' blocks are at most this part of what rolls the key over: so much may be counted and
# not used.
_PART_OF_LIMIT: Final = 64
# A block that lasts less than this is doubled, one that lasts longer than the second is halved.
_SHORT_S: Final = 2.0
_LONG_S: Final = 60.0
_ENTRIES_AT_ONCE: Final = 256
# The time of a version's last opening is written down this often, at most.
_OPENED_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """What rolls a key over; None for however much."""

    messages: int | None = None
    plaintext_bytes: int | None = None


@dataclass(slots=True)
class _Account:
    """What is reserved for one version, and not used yet."""

    number: int
    messages: int = 0
    plaintext_bytes: int = 0
    block_messages: int = _LEAST_MESSAGES
    block_bytes: int = _LEAST_BYTES
    uncounted_messages: int = 0
    uncounted_bytes: int = 0
    wanted_messages: int = 0
    wanted_bytes: int = 0
    filled_s: float | None = None
    is_used: bool = False
    is_stalled: bool = False
    flight: asyncio.Task[bool] | None = None


class Meter:
    """Counts for one event loop.

    Args:
        record: Tells the store.
        clock: For how fast blocks are used, and when versions were.
        limits: Of each key.
        on_usage: Called with what the store says was used of a key's version.
        is_away: Whether asking the store is in vain at the moment.
        count_sharers: How many processes reserve from the same limits.
    """

    def __init__(
        self,
        record: Record,
        clock: Clock,
        *,
        limits: Mapping[KeyName, UsageLimits],
        on_usage: Callable[[KeyName, int, VersionUsage], None],
        is_away: Callable[[], bool],
        count_sharers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._count_sharers = count_sharers
        self._record = record
        self._clock = clock
        self._limits = limits
        self._on_usage = on_usage
        self._is_away = is_away
        self._accounts: dict[KeyName, _Account] = {}
        self._closed: list[UsageEntry] = []
        self._opened: set[tuple[KeyName, int]] = set()
        self._opened_told: dict[tuple[KeyName, int], float] = {}
        self._uncounted_since: datetime | None = None

    @property
    def problem_since(self) -> datetime | None:
        """Since when something is sealed that the store doesn't know of; None where nothing is."""
        return self._uncounted_since

    def charge(self, version: VersionKey, plaintext_bytes: int, messages: int = 1) -> bool:
        """Count messages, if enough is reserved; return whether they were."""
        account = self._accounts.get(version.key_name)
        if (
            account is None
            or account.number != version.number
            or account.messages < messages
            or account.plaintext_bytes < plaintext_bytes
        ):
            return False
        account.messages -= messages
        account.plaintext_bytes -= plaintext_bytes
        account.is_used = True
        if (
            account.messages * 2 < account.block_messages
            or account.plaintext_bytes * 2 < account.block_bytes
        ) and account.flight is None:
            self._fill(version.key_name, account)
        return True

    async def reserve(
        self, version: VersionKey, plaintext_bytes: int, messages: int = 1, *, again: bool = False
    ) -> bool:
        """Reserve enough for messages, for all others that wait, and for what will follow them.

        Args:
            version: What seals them.
            plaintext_bytes: Their size, together.
            messages: How many.
            again: It was asked for already.

        Returns:
            Whether the store has answered: charge again. Otherwise the messages are counted later
            and may be sealed.
        """
        account = self._find(version)
        if again:
            account.wanted_messages = max(account.wanted_messages, messages)
            account.wanted_bytes = max(account.wanted_bytes, plaintext_bytes)
        else:
            account.wanted_messages += messages
            account.wanted_bytes += plaintext_bytes
        if not self._is_away():
            flight = account.flight or self._fill(version.key_name, account)
            # Once the store was slow, nobody waits until it has answered again.
            if not account.is_stalled:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE_S):
                        if await asyncio.shield(flight):
                            return True
                account.is_stalled = not flight.done()
        account.uncounted_messages += messages
        account.uncounted_bytes += plaintext_bytes
        account.is_used = True
        if self._uncounted_since is None:
            self._uncounted_since = self._clock.now()
        return False

    def note_opened(self, version: VersionKey) -> None:
        """Take note that something was opened under a version."""
        self._opened.add((version.key_name, version.number))

    async def flush(self, *, final: bool = False) -> None:
        """Tell the store what it does not know yet.

        Args:
            final: Return what is reserved and not used, too: this process ends.

        Raises:
            StoreError: The store is away or does not fit; what was not told is kept.
        """
        if final:
            await self._end_flights()
            for name, account in self._accounts.items():
                self._close(name, account)
            self._accounts.clear()
        opened = self._take_opened(all_of_them=final)
        closed, self._closed = self._closed, []
        now = self._clock.now()
        entries = [*closed, *(UsageEntry(*place, opened_at=now) for place in opened)]
        errors = [
            await self._tell_or_keep(entries[start : start + _ENTRIES_AT_ONCE])
            for start in range(0, len(entries), _ENTRIES_AT_ONCE)
        ]
        for name, account in list(self._accounts.items()):
            if account.uncounted_messages or (account.is_used and account.flight is None):
                errors.append(await self._top_up(name, account, now))
        untold = [account.uncounted_messages for account in self._accounts.values()]
        if not any(untold) and not any(entry.messages > 0 for entry in self._closed):
            self._uncounted_since = None
        for error in filter(None, errors):
            raise error

    async def _tell_or_keep(self, entries: list[UsageEntry]) -> SidecarError | None:
        """Tell the store; what could not be told is kept, and why is returned.

        An answer that did not come says nothing about what the store did. So what would lower a
        count is not told again: the count may then be too high, but not too low.
        """
        try:
            await self._tell(entries)
        except StoreTampered as error:
            if len(entries) == 1:  # a row that does not fit keeps the others from nothing
                self._keep(entries)
                return error
            for entry in entries:
                await self._tell_or_keep([entry])
            return error
        except SidecarError as error:
            self._keep(entries)
            return error
        except BaseException:
            self._keep(entries)
            raise
        return None

    def _keep(self, entries: list[UsageEntry]) -> None:
        for entry in entries:
            if entry.opened_at is not None:
                self._opened.add((entry.key_name, entry.number))
                self._opened_told.pop((entry.key_name, entry.number), None)
            else:
                positive = replace(
                    entry,
                    messages=max(0, entry.messages),
                    plaintext_bytes=max(0, entry.plaintext_bytes),
                )
                self._closed.append(positive)

    def has_uncounted(self) -> bool:
        """Return whether something was sealed that the store doesn't know of."""
        return self._uncounted_since is not None

    def _find(self, version: VersionKey) -> _Account:
        account = self._accounts.get(version.key_name)
        if account is None or account.number != version.number:
            if account is not None:
                self._close(version.key_name, account)
            account = _Account(version.number)
            account.block_messages, account.block_bytes = self._bound(
                version.key_name, _LEAST_MESSAGES, _LEAST_BYTES
            )
            self._accounts[version.key_name] = account
        return account

    def _close(self, name: KeyName, account: _Account) -> None:
        """Have what a version's account holds returned, and what it lacks told."""
        self._closed.append(
            UsageEntry(
                name,
                account.number,
                messages=account.uncounted_messages - account.messages,
                plaintext_bytes=account.uncounted_bytes - account.plaintext_bytes,
                sealed_at=self._clock.now() if account.is_used else None,
            )
        )
        account.messages = account.plaintext_bytes = 0
        account.uncounted_messages = account.uncounted_bytes = 0

    def _fill(self, name: KeyName, account: _Account) -> asyncio.Task[bool]:
        account.flight = asyncio.create_task(self._fly(name, account))
        return account.flight

    async def _fly(self, name: KeyName, account: _Account) -> bool:
        self._adapt(name, account)
        messages = max(
            1, _enough(account.block_messages, account.wanted_messages) - account.messages
        )
        plaintext_bytes = max(
            0, _enough(account.block_bytes, account.wanted_bytes) - account.plaintext_bytes
        )
        account.wanted_messages = account.wanted_bytes = 0
        try:
            await self._reserve(name, account, messages, plaintext_bytes)
        except SidecarError:
            return False
        finally:
            account.flight = None
        account.is_stalled = False
        return True

    async def _top_up(self, name: KeyName, account: _Account, now: datetime) -> SidecarError | None:
        """Tell what is not counted yet and when the version was used last; reserve nothing."""
        account.is_used = False
        try:
            await self._reserve(name, account, 0, 0, sealed_at=now)
        except SidecarError as error:
            account.is_used = True
            return error
        return None

    async def _reserve(
        self,
        name: KeyName,
        account: _Account,
        messages: int,
        plaintext_bytes: int,
        sealed_at: datetime | None = None,
    ) -> None:
        late = account.uncounted_messages, account.uncounted_bytes
        account.uncounted_messages = account.uncounted_bytes = 0
        entry = UsageEntry(
            name,
            account.number,
            messages=messages + late[0],
            plaintext_bytes=plaintext_bytes + late[1],
            sealed_at=sealed_at,
        )
        try:
            await self._tell([entry])
        except BaseException:
            account.uncounted_messages += late[0]
            account.uncounted_bytes += late[1]
            if self._accounts.get(name) is not account:
                self._close(name, account)
            raise
        account.messages += messages
        account.plaintext_bytes += plaintext_bytes
        if self._accounts.get(name) is not account:
            self._close(name, account)  # another version is current meanwhile

    async def _tell(self, entries: list[UsageEntry]) -> None:
        for (name, number), usage in (await self._record(entries)).items():
            self._on_usage(KeyName(name), number, usage)

    def _adapt(self, name: KeyName, account: _Account) -> None:
        now_s = self._clock.monotonic_s()
        before_s, account.filled_s = account.filled_s, now_s
        if before_s is None:
            return
        lasted_s = now_s - before_s
        account.block_messages, account.block_bytes = self._bound(
            name,
            _resize(account.block_messages, account.messages, lasted_s),
            _resize(account.block_bytes, account.plaintext_bytes, lasted_s),
        )

    def _bound(self, name: KeyName, messages: int, plaintext_bytes: int) -> tuple[int, int]:
        limits = self._limits.get(name, UsageLimits())
        parts = _PART_OF_LIMIT * self._count_sharers()
        most_messages, most_bytes = _MOST_MESSAGES, _MOST_BYTES
        if limits.messages is not None:
            most_messages = min(most_messages, max(1, limits.messages // parts))
        if limits.plaintext_bytes is not None:
            most_bytes = min(most_bytes, max(1, limits.plaintext_bytes // parts))
        return (
            min(max(messages, _LEAST_MESSAGES), most_messages),
            min(max(plaintext_bytes, _LEAST_BYTES), most_bytes),
        )

    def _take_opened(self, *, all_of_them: bool) -> list[tuple[KeyName, int]]:
        now_s = self._clock.monotonic_s()
        told = self._opened_told
        taken = [
            place
            for place in self._opened
            if all_of_them or place not in told or now_s - told[place] >= _OPENED_EVERY_S
        ]
        self._opened.difference_update(taken)
        told.update(dict.fromkeys(taken, now_s))
        for place in [place for place, at_s in told.items() if now_s - at_s >= _OPENED_EVERY_S]:
            del told[place]
        return taken

    async def _end_flights(self) -> None:
        flights = [account.flight for account in self._accounts.values() if account.flight]
        await asyncio.gather(*flights, return_exceptions=True)


def _enough(block: int, wanted: int) -> int:
    """Return how much serves all who wait, and leaves at least half a block."""
    return block if wanted * 2 <= block else block + wanted


def _resize(block: int, left: int, lasted_s: float) -> int:
    if left * 2 < block and lasted_s < _SHORT_S:
        return block * 2
    return block // 2 if lasted_s > _LONG_S else block
