"""Ends what is over: by time, by policy, by groups and accounts; then rolls over what was opened.

Every process of every sidecar does this once a second, and none is a leader: what is due is decided
again inside the transaction that does it, so of many that see it one does it, and records it. A use
of a grant does not wait for this: it looks for itself (access/grants.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar.access import elevation
from keyside_sidecar.access.facts import Facts
from keyside_sidecar.access.requests import AccessState
from keyside_sidecar.errors import AuthenticationFailed, Refused, RotationConflict, SidecarError
from keyside_sidecar.log import event

if TYPE_CHECKING:
    from keyside_sidecar.access.policy import Policy
    from keyside_sidecar.access.requests import AccessRequest, Moment
    from keyside_sidecar.elevation.office import AccessOffice
    from keyside_sidecar.elevation.standing import Standing
    from keyside_sidecar.keys import Keyring

_log = logging.getLogger(__name__)

_TURN_S: Final = 0.5
_LAST_TURN_S: Final = 0.5


class Sweep:
    """Looks after the requests and grants in one store.

    Args:
        office: Tells what ended.
        policy: What is allowed now.
        keyring: The way to the store, and what rolls keys over.
        standing: Knows people's groups and accounts.
        host: This host, as requests name it.
    """

    def __init__(
        self,
        *,
        office: AccessOffice,
        policy: Policy,
        keyring: Keyring,
        standing: Standing,
        host: str,
    ) -> None:
        self._office = office
        self._policy = policy
        self._keyring = keyring
        self._standing = standing
        self._host = host
        self._said: str | None = None

    async def run(self) -> None:
        """Take turns for ever; what fails is tried again in the next."""
        while True:
            try:
                await self._take_turn()
                self._said = None
            except SidecarError as error:
                self._say(str(error))
            except Exception:  # noqa: BLE001  (a mistake here must not end the sweep)
                _log.exception("looking after grants failed; it goes on")
            await asyncio.sleep(_TURN_S * random.uniform(0.75, 1.25))  # noqa: S311

    async def _take_turn(self) -> None:
        """Take a turn whole: what it has ended is recorded even if the sidecar ends meanwhile."""
        turn = asyncio.create_task(self.turn())
        try:
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            with suppress(SidecarError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(_LAST_TURN_S):
                    await turn
            raise

    async def turn(self) -> None:
        """End what is over, and roll over what is due.

        Raises:
            StoreError: The store is away, or fails its checks; what was not done is still due.
        """
        found = await self._office.list_open()
        if not found:
            return
        facts = await self._gather([request for request in found if self._is_mine(request)])
        await self._review(facts)
        for request in found:
            if request.state is AccessState.CLOSING:
                await self._close(request)

    def _is_mine(self, request: AccessRequest) -> bool:
        settings = self._policy.elevation
        shared = settings is not None and settings.shared_ids
        return shared or request.host == self._host

    async def _gather(self, requests: list[AccessRequest]) -> Facts:
        """Ask about those who hold a grant. Whom nobody can tell about is not judged."""
        holders = {one.requester.uid for one in requests if one.state is AccessState.ACTIVE}
        gids: dict[int, frozenset[int]] = {}
        fallen: set[int] = set()
        for uid in holders:
            try:
                gids |= await self._standing.read_groups([uid])
                fallen |= await self._standing.find_fallen([uid])
            except (Refused, AuthenticationFailed) as error:
                self._say(str(error))
        return Facts(self._policy, self._host, gids, frozenset(fallen))

    async def _review(self, facts: Facts) -> None:
        def decide(request: AccessRequest, moment: Moment) -> AccessRequest:
            return elevation.review(request, moment, facts)

        review = partial(self._keyring.store.access.review, decide)
        changes = await self._keyring.change(review, urgent=True)
        for change in changes:
            await self._office.tell(change.before, change.after)

    async def _close(self, request: AccessRequest) -> None:
        """Roll over what a grant that is over has opened, and close it."""
        if request.key in self._keyring.names:
            # The store's, not what is in memory: another sidecar may have rolled it over by now.
            number = int((await self._keyring.describe(request.key)).current_number)
            if any(one.includes(number) for one in request.opened):
                try:
                    version = await self._keyring.replace_current(request.key, number)
                except RotationConflict:
                    return  # someone else was first; the next turn sees what is current then
                event(
                    _log,
                    logging.INFO,
                    "key rolled over after a grant",
                    key=request.key,
                    access=request.id,
                    version=version,
                    previous=number,
                )
        changed = await self._keyring.change(
            partial(
                self._keyring.store.access.change,
                request.id,
                elevation.finish_rollover,
            )
        )
        await self._office.tell(request, changed.after)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            event(_log, logging.WARNING, "grants can't be looked after now", why=text)
