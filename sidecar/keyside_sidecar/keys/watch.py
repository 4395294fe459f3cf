"""Notices what other processes did to the store, and what nobody should have done to it.

Two tasks. The first asks a few times a second, cheaply, whether anyone has written; if so, it
reads the store's generation and refreshes the keys that changed. The second goes through every
version's row once after the start, once an hour, and

* at once when the store was written to and yet has no new generation, which no Keyside does: then
  someone has changed rows by hand (SQLite says so now and then after a checkpoint as well; nothing
  is found then, and nothing is said);
* within a minute when it has one: more may have been written than that.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import CustodyError, SidecarError, StoreTampered, StoreUnavailable

if TYPE_CHECKING:
    from keyside.names import KeyName
    from keyside_sidecar.keys.health import StoreHealth
    from keyside_sidecar.keys.keyring import Keyring

_log = logging.getLogger(__name__)

_POLL_TIMEOUT_S: Final = 2.0
_LEAST_PAUSE_S: Final = 0.05
_PATROL_INTERVAL_S: Final = 3600.0
_AFTER_CHANGE_S: Final = 30.0
# How soon to look again at what failed its checks, though nobody seems to have written.
_DOUBT_INTERVAL_S: Final = 5.0
# Every process writes now and then what it has used: the pause after a patrol is so many times as
# long as it took, so that going through the store costs a twentieth of a processor at most.
_PATROL_PAUSES: Final = 20
_PAGE: Final = 256
_PAGE_PAUSE_S: Final = 0.02


class Watch:
    """Keeps a keyring in step with its store.

    Args:
        keyring: What to keep in step.
        health: Where to say what is wrong.
        interval_s: How often to ask for changes, in seconds.
    """

    def __init__(self, keyring: Keyring, health: StoreHealth, interval_s: float) -> None:
        self._keyring = keyring
        self._health = health
        self._interval_s = interval_s
        self._token: object = None
        self._generation = 0
        self._failed: set[KeyName] = set()
        self._patrol_wanted = asyncio.Event()
        self._patrol_due_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Remember the store as it is now, before anything is loaded from it.

        Raises:
            StoreError: The store is away, or fails its checks as a whole.
        """
        keyring = self._keyring
        self._token = await keyring.look(keyring.store.read_change_token)
        self._generation = (await keyring.look(partial(keyring.store.changed_since, 0))).generation

    def start(self) -> None:
        """Start both tasks, and go through the store once."""
        self._patrol_wanted.set()
        if not self._keyring.list_missing():
            self._keyring.acknowledge(self._generation)
        self._tasks = [
            asyncio.create_task(self._poll_for_ever(), name="keyside-store-poll"),
            asyncio.create_task(self._patrol_for_ever(), name="keyside-store-patrol"),
        ]

    async def stop(self) -> None:
        """End both tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _poll_for_ever(self) -> None:
        while True:
            # Whoever can announce changes could otherwise keep us asking without a pause.
            await asyncio.sleep(min(_LEAST_PAUSE_S, self._interval_s))
            try:
                await self._keyring.wait_for_change(self._interval_s)
            except SidecarError:
                await asyncio.sleep(self._interval_s)  # nobody will wake us: ask
            try:
                await self._poll()
            except SidecarError as error:
                self._health.note(error)
            except Exception:  # noqa: BLE001  (a mistake here must not end the watch)
                _log.exception("watching the store failed; it goes on")
                self._health.note(StoreUnavailable("watching the store failed; see the log"))

    async def _poll(self) -> None:
        keyring = self._keyring
        token = await keyring.look(keyring.store.read_change_token, timeout_s=_POLL_TIMEOUT_S)
        if token == self._token and self._health.problem is None:
            return
        changes = await keyring.look(
            partial(keyring.store.changed_since, self._generation), timeout_s=_POLL_TIMEOUT_S
        )
        self._health.clear_absence()
        if token != self._token and changes.generation == self._generation:
            self._patrol_wanted.set()
        elif token != self._token:
            soon_s = asyncio.get_running_loop().time() + _AFTER_CHANGE_S
            self._patrol_due_s = min(self._patrol_due_s, soon_s)
        self._failed.update(keyring.names.intersection(changes.keys))
        if token != self._token or changes.generation != self._generation:
            await self._refresh_failed()
        self._token = token
        self._generation = changes.generation
        if not self._failed:
            keyring.acknowledge(changes.generation)

    async def _refresh_failed(self) -> None:
        for name in sorted(self._failed | set(self._keyring.list_missing())):
            try:
                await self._keyring.refresh(name)
            except (StoreTampered, CustodyError) as error:
                self._health.note(error)
                self._failed.add(name)
            else:
                self._failed.discard(name)

    async def _patrol_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        earliest_s = 0.0
        while True:
            # Not wait_for: before Python 3.12 it can swallow a cancellation.
            with suppress(TimeoutError):
                async with asyncio.timeout(_DOUBT_INTERVAL_S):
                    await self._patrol_wanted.wait()
            due = self._patrol_wanted.is_set() or loop.time() >= self._patrol_due_s
            if not due and not self._health.is_doubtful:
                continue
            await asyncio.sleep(earliest_s - loop.time())
            self._patrol_wanted.clear()
            began_s = loop.time()
            self._patrol_due_s = began_s + _PATROL_INTERVAL_S
            try:
                await self._patrol()
            except SidecarError as error:
                self._health.note(error)
                self._patrol_due_s = 0.0
            except Exception:  # noqa: BLE001  (a mistake here must not end the watch)
                _log.exception("checking the store failed; it will be checked again")
                self._patrol_due_s = 0.0
            took_s = loop.time() - began_s
            floor_s = self._keyring.store.patrol_floor_s
            earliest_s = loop.time() + max(floor_s, took_s * _PATROL_PAUSES)

    async def _patrol(self) -> None:
        """Check every row of the store; when all of them fit, say that nothing is wrong."""
        keyring = self._keyring
        keyring.store.forget_checked()
        sound = True
        for name in sorted(keyring.names):
            try:
                await keyring.refresh(name)
                self._failed.discard(name)
                after: int | None = 0
                while after is not None:
                    page = partial(keyring.store.verify_page, name, after=after, limit=_PAGE)
                    after = await keyring.look(page)
                    await asyncio.sleep(_PAGE_PAUSE_S)
            except (StoreTampered, CustodyError) as error:
                self._health.note(error)
                sound = False
        for check in (
            partial(keyring.look, keyring.store.observed.read),
            partial(keyring.look, keyring.store.sidecars.require_sound),
            self._patrol_access,
        ):
            try:
                await check()
            except (StoreTampered, CustodyError) as error:
                self._health.note(error)
                sound = False
        if sound:
            self._health.clear_doubt()

    async def _patrol_access(self) -> None:
        """Check every row about people's access."""
        verify = self._keyring.store.access.verify_page
        place = await self._keyring.look(partial(verify, None, limit=_PAGE))
        while place is not None:
            await asyncio.sleep(_PAGE_PAUSE_S)
            place = await self._keyring.look(partial(verify, place, limit=_PAGE))
