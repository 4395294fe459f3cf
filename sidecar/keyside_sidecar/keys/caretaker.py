"""Has keys look after themselves: rolls them over when it is time, and destroys what is due.

Every process of every sidecar on a store does this, and none is a leader: what is decided here
(rollover.py) is done as one transaction that requires the key to be still as it was when that was
decided, so of many that decide at once one succeeds.

A turn, once a second, goes through these, and what fails is tried again in the next::

    move observed time on ─► for each key: make a successor | activate it | rotate at once
      ─► destroy what is due ─► tell the store what was used
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import RotationConflict, SidecarError, StoreUnavailable
from keyside_sidecar.keys.notices import Notice, describe_upkeep
from keyside_sidecar.keys.rollover import Moment, RolloverPolicy, Step, clock_is_behind, decide
from keyside_sidecar.log import event
from keyside_sidecar.severity import severity_of
from keyside_sidecar.store.changing import Expected
from keyside_sidecar.store.observed import Observation

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from datetime import datetime

    from keyside.names import KeyName
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.keys.health import StoreHealth
    from keyside_sidecar.keys.keyring import Keyring
    from keyside_sidecar.store import LoadedKey, VersionInfo

_log = logging.getLogger(__name__)

_TURN_S: Final = 1.0
_TICK_S: Final = 10.0
# A process that slept (a suspended machine) has observed nothing meanwhile.
_MOST_TICKS: Final = 3
_FLUSH_S: Final = 15.0
DAY_S: Final = 86_400.0
# A scheduled destruction is in the log when this much time is left, and at every start.
_WARN_AT_S: Final = (DAY_S, 3_600.0, 60.0)


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What the configuration says of a key's life.

    Args:
        rollover: When it rolls over.
        destroy_after_s: How much observed time ahead a destruction is scheduled.
    """

    rollover: RolloverPolicy
    destroy_after_s: float = 7 * DAY_S


class Caretaker:
    """Looks after a keyring's keys.

    Args:
        keyring: The keys.
        clock: Tells the time.
        health: Where to say what is wrong with the store.
        tick_s: How often observed time is moved on, in seconds.
    """

    def __init__(
        self, keyring: Keyring, clock: Clock, health: StoreHealth, *, tick_s: float = _TICK_S
    ) -> None:
        self._keyring = keyring
        self._clock = clock
        self._health = health
        self._tick_s = tick_s
        self._seen = Observation(0, b"")
        self._seen_s = clock.monotonic_s()
        self._flushed_s = self._seen_s
        self._warned: dict[tuple[KeyName, int], float] = {}
        self._clock_back_since: dict[KeyName, datetime] = {}
        self._failing: dict[KeyName, tuple[datetime, str]] = {}
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def observed_s(self) -> float:
        """The store's observed time, as last seen, in seconds."""
        return self._seen.observed_us / 1_000_000

    async def begin(self) -> None:
        """See how far observed time has come, and begin it in a store that has none yet.

        Raises:
            StoreError: The store is away, or does not fit.
        """
        observed = self._keyring.store.observed
        found = await self._keyring.look(observed.read)
        if not found.mac:
            found = await self._keyring.record(partial(observed.advance, found, 0))
        self._note_time(found)

    def start(self) -> None:
        """Begin to take turns."""
        self._task = asyncio.create_task(self._run_for_ever(), name="keyside-caretaker")

    def hurry(self) -> None:
        """Take a turn now: a count has changed."""
        self._hurry.set()

    async def stop(self) -> None:
        """Take no more turns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def turn(self) -> None:
        """Do once all that is due.

        Raises:
            StoreError: The store is away, or does not fit; what was not done is still due.
        """
        errors = [await self._attempt(self._move_time_on())]
        for name in sorted(self._keyring.names):
            loaded = self._keyring.loaded(name)
            if loaded is not None:
                errors.append(await self._attempt(self._look_after(name, loaded)))
        now_s = self._clock.monotonic_s()
        if now_s - self._flushed_s >= _FLUSH_S or self._keyring.has_uncounted():
            self._flushed_s = now_s
            errors.append(await self._attempt(self._keyring.flush_usage()))
        for error in filter(None, errors):
            raise error

    @staticmethod
    async def _attempt(step: Coroutine[object, object, None]) -> SidecarError | None:
        """Take a step, and return what went wrong: it keeps no other step from being taken."""
        try:
            await step
        except SidecarError as error:
            return error
        return None

    def list_notices(self) -> Iterator[Notice]:
        """Yield what a person should know of."""
        for name in sorted(self._keyring.names):
            loaded = self._keyring.loaded(name)
            if loaded is None:
                continue
            if name in self._clock_back_since:
                yield Notice(
                    "CLOCK_BEHIND",
                    f"this host's clock says that the current version of {name} is not yet in "
                    "use: it was set back, or was ahead when the key was rolled over",
                    "set the clock right; the key rolls over by the time that is really seen to "
                    "pass",
                    self._clock_back_since[name],
                    strangers="the clock was set back",
                )
            if name in self._failing:
                since, why = self._failing[name]
                yield Notice(
                    "ROLLOVER_FAILS",
                    f"{name} should roll over and can't: {why}",
                    "see the sidecar's log; the current version goes on being used meanwhile",
                    since,
                    strangers="a key can't roll over",
                )
            for version in loaded.scheduled:
                yield self._describe_schedule(version)

    async def _run_for_ever(self) -> None:
        while True:
            self._hurry.clear()
            try:
                await self.turn()
            except SidecarError as error:
                self._health.note(error)
            except Exception:  # noqa: BLE001  (a mistake here must not end the upkeep)
                _log.exception("looking after the keys failed; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN_S * random.uniform(0.75, 1.25)):  # noqa: S311
                    await self._hurry.wait()

    async def _move_time_on(self) -> None:
        elapsed_s = self._clock.monotonic_s() - self._seen_s
        if elapsed_s < self._tick_s:
            return
        by_us = round(min(elapsed_s, _MOST_TICKS * self._tick_s) * 1_000_000)
        advance = self._keyring.store.observed.advance
        self._note_time(await self._keyring.record(partial(advance, self._seen, by_us)))

    def _note_time(self, found: Observation) -> None:
        self._seen = found
        # Later than the moment when it was written: so never more is counted than went by.
        self._seen_s = self._clock.monotonic_s()

    async def _look_after(self, name: KeyName, loaded: LoadedKey) -> None:
        moment = Moment(self._clock.now(), self.observed_s)
        self._watch_clock(name, loaded, moment)
        rules = self._keyring.rules(name)
        step = decide(
            rules.rollover,
            current=loaded.current.info,
            pending=loaded.pending.info if loaded.pending else None,
            usage=self._keyring.current_usage(name),
            moment=moment,
        )
        try:
            if step is not None:
                await self._take(step, name, loaded, moment.now)
            for version in loaded.scheduled:
                await self._attend_schedule(version, moment)
        except RotationConflict:
            await self._keyring.refresh(name)  # another sidecar was first
        except SidecarError as error:
            if step is not None and not isinstance(error, StoreUnavailable):
                self._failing.setdefault(name, (moment.now, str(error)))
            raise
        self._failing.pop(name, None)

    async def _take(self, step: Step, name: KeyName, loaded: LoadedKey, now: datetime) -> None:
        store = self._keyring.store
        expected = Expected(
            loaded.current.info.number, loaded.pending.info.number if loaded.pending else None
        )
        if step is Step.MAKE_PENDING:
            await self._keyring.change(partial(store.make_pending, name, expected, now))
            event(_log, logging.INFO, "successor made", key=name, current=expected.current_number)
        else:
            done = await self._keyring.change(partial(store.roll_over, name, expected, now))
            self._keyring.install(done)
            event(
                _log,
                logging.INFO,
                "key rolled over",
                key=name,
                version=done.version.info.number,
                previous=done.previous.number,
            )
            facts = {"previous": int(done.previous.number)}
            told = describe_upkeep(name, int(done.version.info.number), facts)
            self._keyring.tell("key.rolled_over", told)
        await self._keyring.refresh(name)

    async def _attend_schedule(self, version: VersionInfo, moment: Moment) -> None:
        due_s = version.destroy_due_s
        if due_s is None:
            return
        place = version.key_name, int(version.number)
        left_s = due_s - moment.observed_s
        if left_s <= 0:
            destroy = partial(self._keyring.store.destroy_if_due, *place, moment.now)
            if await self._keyring.change(destroy):
                event(
                    _log,
                    logging.WARNING,
                    "version destroyed",
                    key=version.key_name,
                    version=version.number,
                    requested_at=version.destroy_requested_at,
                    requested_by_uid=version.destroy_requested_by_uid,
                )
                facts = {"requested_by_uid": version.destroy_requested_by_uid}
                self._keyring.tell("key.destroyed", describe_upkeep(*place, facts))
            self._warned.pop(place, None)
            await self._keyring.refresh(version.key_name)
            return
        warned_at_s = self._warned.get(place)
        if warned_at_s is None or any(left_s <= at_s < warned_at_s for at_s in _WARN_AT_S):
            self._warned[place] = left_s
            event(
                _log,
                severity_of("DESTRUCTION_SCHEDULED").log_level,
                "version will be destroyed",
                key=version.key_name,
                version=version.number,
                in_s=round(left_s),
                requested_at=version.destroy_requested_at,
                requested_by_uid=version.destroy_requested_by_uid,
                what_to_do="keyside keys cancel-destroy keeps it",
            )

    def _watch_clock(self, name: KeyName, loaded: LoadedKey, moment: Moment) -> None:
        if not clock_is_behind(loaded.current.info, moment):
            if self._clock_back_since.pop(name, None) is not None:
                event(_log, logging.WARNING, "clock has caught up", key=name)
        elif name not in self._clock_back_since:
            self._clock_back_since[name] = moment.now
            event(
                _log,
                severity_of("CLOCK_BEHIND").log_level,
                "clock is behind",
                key=name,
                activated_at=loaded.current.info.activated_at,
                now=moment.now,
            )

    def _describe_schedule(self, version: VersionInfo) -> Notice:
        left_s = max(0.0, (version.destroy_due_s or 0.0) - self.observed_s)
        days, hours = divmod(round(left_s / 3600), 24)
        requested_at = version.destroy_requested_at or version.created_at
        return Notice(
            "DESTRUCTION_SCHEDULED",
            f"version {version.number} of {version.key_name} will be destroyed for ever in "
            f"{days} d {hours} h of running time, as uid {version.destroy_requested_by_uid} asked",
            f"keyside keys cancel-destroy {version.key_name} {version.number} keeps it; re-encrypt "
            "what was sealed under it otherwise",
            requested_at,
            strangers="a version is going to be destroyed",
        )
