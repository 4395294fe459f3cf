"""The key versions of this process: current ones always in memory, others as they are needed.

What a key's versions in memory go through::

    (absent) ──look-up──► in the cache ──rotation elsewhere──► refreshed ──► DISABLED: no material

**The store is away** (I12): what is in memory goes on sealing and opening; what isn't raises
StoreUnavailable, and so does every change. The watch (watch.py) keeps trying and heals by itself.

**The store does not fit its authentication** (I6): nothing that fails a check is ever used, and
nothing is built upon it: looking up a version that fails, or one of a key whose set of versions
fails, raises StoreTampered, and so does rotating it. What is in memory was checked when it was
read, and goes on being served: otherwise a single changed byte would stop every service at once,
and the sidecars that still hold the keys are what data can be rescued with. Only an authentic row
takes a version out of memory. A process that starts on a store whose key fails serves the other
keys, and refuses that one. All of it is loud: the log, ``store_problem``, health.

**A rotation elsewhere** is noticed within a second; an envelope under a version that this process
hasn't heard of triggers one look before it fails. A successor is in memory before it is current.

Beside it: ``caretaker.py`` rolls keys over and destroys what is due, ``usage.py`` counts what is
sealed, ``presence.py`` tells other processes what this one has taken in.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar.errors import (
    RESTORE_STORE,
    CustodyError,
    RequestError,
    RotationConflict,
    SidecarError,
    StoreTampered,
    StoreUnavailable,
    UnknownVersion,
    VersionDisabled,
)
from keyside_sidecar.keys.cache import VersionCache
from keyside_sidecar.keys.caretaker import DAY_S, Caretaker, KeyRules
from keyside_sidecar.keys.health import STORE_UNAVAILABLE, StoreHealth, StoreProblem
from keyside_sidecar.keys.lookups import Lookups
from keyside_sidecar.keys.notices import Notice, Tell, describe_upkeep, tell_nobody
from keyside_sidecar.keys.presence import Presence
from keyside_sidecar.keys.rollover import RolloverPolicy, is_used_up
from keyside_sidecar.keys.states import may_follow, may_open
from keyside_sidecar.keys.threads import StoreThreads
from keyside_sidecar.keys.usage import Meter, UsageLimits
from keyside_sidecar.keys.watch import Watch
from keyside_sidecar.log import event
from keyside_sidecar.store import KeyInfo, OpenedVersion, Store, VersionInfo, VersionUsage
from keyside_sidecar.store.changing import Expected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
    from typing import TypeVar

    from keyside.envelope import VersionKey
    from keyside.names import KeyName
    from keyside_sidecar.clock import Clock
    from keyside_sidecar.store import ChangedVersion, LoadedKey, SidecarInfo, StoredRotation

    T = TypeVar("T")

_log = logging.getLogger(__name__)


_CALL_TIMEOUT_S: Final = 10.0
_FAREWELL_S: Final = 0.75
_CLOSE_TIMEOUT_S: Final = 2.0
_READERS: Final = 2

_DEFAULT_RULES: Final = KeyRules(RolloverPolicy(90 * DAY_S, None, None, 60.0))

_UNCOUNTED: Final = (
    "the store is away or slow, so what is encrypted meanwhile is not counted there yet",
    "restore the store; the counts follow, unless this process is killed before",
)
_KEY_MADE: Final = (
    "nothing, where the key is new in the configuration; if the store should have had it, this is "
    "an older copy or another store, and what was sealed under that key does not open: stop "
    f"keysided before anything is sealed under the new key, and {RESTORE_STORE}"
)
_FIRST_START: Final = timedelta(minutes=1)  # in which several workers and hosts may make keys


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did: the key as it is now, its new version, and the one it replaced.

    ``unacknowledged`` names the processes that may still use what a compromised rotation disabled.
    """

    version: VersionInfo
    previous: VersionInfo
    key: KeyInfo
    unacknowledged: tuple[SidecarInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A version as an operator has left it, and the processes that have not taken that in."""

    version: VersionInfo
    unacknowledged: tuple[SidecarInfo, ...] = ()


class Keyring:
    """Key versions for one event loop. Make it after forking.

    Args:
        store: The open store; the keyring closes it.
        key_names: The keys of the configuration.
        clock: Tells the time.
        poll_interval_s: How often to look for changes made elsewhere, in seconds.
        cached_versions: How many versions that are not current to keep in memory, for all keys
            together.
        rules: What the configuration says of each key's life; the defaults for one that it lacks.
        tell: Told, for the audit log, what the sidecar has done to a key by itself and what is
            wrong with the store: an event's name, and its facts. Must not block.
    """

    def __init__(
        self,
        store: Store,
        key_names: Iterable[KeyName],
        *,
        clock: Clock,
        poll_interval_s: float = 0.25,
        cached_versions: int = 16_384,
        rules: Mapping[KeyName, KeyRules] | None = None,
        tell: Tell = tell_nobody,
    ) -> None:
        self.store = store
        self.names = frozenset(key_names)
        self._rules = dict(rules or {})
        self.tell = tell
        self._clock = clock
        self._current: dict[KeyName, OpenedVersion] = {}
        self._loaded: dict[KeyName, LoadedKey] = {}
        self._usage: dict[KeyName, tuple[int, VersionUsage]] = {}
        self._cache = VersionCache(cached_versions)
        self._lookups = Lookups(self._load, self._cache, clock)
        self._health = StoreHealth(clock, tell)
        # One at a time: of two, the one that read first may end last.
        self._refreshing = asyncio.Lock()
        self._watch = Watch(self, self._health, poll_interval_s)
        self._readers = StoreThreads("keyside-store-read", _READERS)
        # Apart, so that a change that waits for another process's lock holds up no look-up, and a
        # record of what was used holds up no change.
        self._writer = StoreThreads("keyside-store-write", 1)
        self._urgent_writer = StoreThreads("keyside-store-urgent", 1)
        self._recorder = StoreThreads("keyside-store-record", 1)
        self._listener = StoreThreads("keyside-store-listen", 1)
        # Its own too: who records much is not late with acknowledging.
        self._announcer = StoreThreads("keyside-store-presence", 1)
        self._presence = Presence(store, self._announce, self._health)
        self._meter = Meter(
            lambda entries: self.record(partial(store.usage.record, entries)),
            clock,
            limits={name: _limits(rules) for name, rules in self._rules.items()},
            on_usage=self._on_usage,
            is_away=self._is_away,
            count_sharers=self._presence.count_live,
        )
        self._caretaker = Caretaker(self, clock, self._health)

    def __repr__(self) -> str:
        return f"Keyring(keys={len(self.names)}, cached={len(self._cache)})"

    @property
    def store_problem(self) -> StoreProblem | None:
        """What is wrong with the store, or None; the worst, where there are several."""
        return self._health.problem

    def read_generation(self) -> tuple[str, int]:
        """Return the store's id, in hex, and the newest generation that this process has seen."""
        session = self.store.session
        return session.trust.store_id.hex(), session.memory.mark().generation

    def all_current_ready(self) -> bool:
        """Return whether every key's current version is in memory."""
        return self.names <= self._current.keys()

    async def start(self, *, upkeep: bool = True) -> None:
        """Make the keys that don't exist yet, load every current version, and begin to watch.

        A key that is made beside older ones is logged as a warning: a store that was put back as it
        was before the key existed fits in itself, and here alone it shows that nothing sealed since
        will open. Where the store has no older key, its audit log tells (rollback.py).

        A key that fails its checks is left out, refuses, and shows in ``store_problem``; the
        others are served. Workers that start at once make each key once.

        Args:
            upkeep: Whether to look after the keys from now on; ``begin_upkeep`` does it later.

        Raises:
            StoreError: The store is away, has another schema, or fails its checks as a whole.
        """
        try:
            # What lies beside the keys keeps nobody from serving, whatever was done to it.
            await self._presence.enter()
            await self._watch.begin()
            await self._noting_tampering(self._caretaker.begin())
            is_new = await self._is_store_new()
            for name in sorted(self.names):
                if await self.change(partial(self.store.create_key, name, self._clock.now())):
                    if is_new:
                        event(_log, logging.INFO, "key made", key=name)
                    else:
                        event(_log, logging.WARNING, "key made", key=name, what_to_do=_KEY_MADE)
                try:
                    await self.refresh(name)
                except (StoreTampered, CustodyError) as error:
                    self._health.note(error)
        except BaseException:
            await self.stop()
            raise
        self._watch.start()
        self._presence.start()
        if upkeep:
            self.begin_upkeep()

    async def _is_store_new(self) -> bool:
        """Return whether no key in the store is older than a first start takes."""
        since = self._clock.now() - _FIRST_START
        made_at = await self.look(self.store.list_creation_times)
        return all(moment >= since for moment in made_at)

    def begin_upkeep(self) -> None:
        """Roll keys over and destroy what is due, by the rules, from now on."""
        self._caretaker.start()

    async def end_upkeep(self) -> None:
        """Leave that to others; keys that are here go on being used."""
        await self._caretaker.stop()

    async def stop(self) -> None:
        """Stop watching, tell the store what was used, and close it; one that hangs is left."""
        await self._caretaker.stop()
        await self._watch.stop()
        self._lookups.cancel()
        # Without this, some uses are counted that were none, and others take a while to see that
        # this process is gone.
        with suppress(SidecarError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await asyncio.gather(self._meter.flush(final=True), self._presence.stop())
        try:
            await self._writer.run(self.store.close, timeout_s=_CLOSE_TIMEOUT_S)
        except StoreUnavailable as error:
            self._health.note(error)
        for threads in (
            *(self._readers, self._writer, self._urgent_writer),
            *(self._recorder, self._listener, self._announcer),
        ):
            threads.close()

    def rules(self, key: KeyName) -> KeyRules:
        """Return what the configuration says of a key's life."""
        return self._rules.get(key, _DEFAULT_RULES)

    def observed_s(self) -> float:
        """Return the store's observed time as last seen, in seconds."""
        return self._caretaker.observed_s

    def problems(self) -> tuple[Notice, ...]:
        """Return what a person should know of, beside ``store_problem``."""
        notices = list(self._caretaker.list_notices())
        since = self._meter.problem_since
        if since is not None:
            notices.append(Notice("MESSAGES_UNCOUNTED", *_UNCOUNTED, since, "uses are not counted"))
        return tuple(notices)

    def charge(self, key: KeyName, plaintext_bytes: int, messages: int = 1) -> VersionKey | None:
        """Return the version that seals, with messages counted; None if too few are reserved.

        In that case :meth:`reserve_and_charge` does.

        Args:
            key: The key's name.
            plaintext_bytes: The messages' size, together.
            messages: How many.
        """
        found = self._current.get(key)
        if found is None or found.material is None:
            return None
        version = found.material
        return version if self._meter.charge(version, plaintext_bytes, messages) else None

    async def reserve_and_charge(
        self, key: KeyName, plaintext_bytes: int, messages: int = 1
    ) -> VersionKey:
        """Return the version that seals, with messages counted; may wait for the store a little.

        With the store away they are counted later.

        Args:
            key: The key's name.
            plaintext_bytes: The messages' size, together.
            messages: How many.

        Raises:
            StoreUnavailable: The key is not configured, or could not be loaded yet.
            StoreTampered: It could not be loaded because it fails its checks.
        """
        again = False
        while True:
            version = self.current(key)
            if self._meter.charge(version, plaintext_bytes, messages):
                return version
            if not await self._meter.reserve(version, plaintext_bytes, messages, again=again):
                return version
            again = True

    def note_opened(self, version: VersionKey) -> None:
        """Take note that something was opened under a version."""
        self._meter.note_opened(version)

    async def read_usage(self, key: KeyName, numbers: Collection[int]) -> dict[int, VersionUsage]:
        """Return how much those versions of a key were used that were used at all.

        Raises:
            StoreError: The store is away, or fails its checks.
        """
        return await self.look(partial(self.store.usage.read, key, numbers))

    def current(self, key: KeyName) -> VersionKey:
        """Return the version that seals, from memory.

        Raises:
            StoreUnavailable: The key is not configured, or could not be loaded yet.
            StoreTampered: It could not be loaded because it fails its checks.
        """
        found = self._current.get(key)
        if found is not None and found.material is not None:
            return found.material
        if self._health.is_doubtful:
            raise StoreTampered(f"key {key}")
        raise StoreUnavailable(f"key {key} has not been loaded yet")

    def current_number(self, key: KeyName) -> int | None:
        """Return the current version's number, or None where it is not in memory."""
        found = self._current.get(key)
        return None if found is None else found.info.number

    def cached(self, key: KeyName, number: int, version_id: bytes) -> VersionKey | None:
        """Return a version that may open envelopes, if it is in memory; never looks further."""
        found = self._recall(key, number)
        if found is None or found.info.version_id != version_id or not may_open(found.info.state):
            return None
        return found.material

    def find_stop(self, version: VersionKey) -> RequestError | None:
        """Return what is known here that forbids to go on using a version found before, or None."""
        found = self._recall(version.key_name, version.number)
        if found is not None:
            try:
                _require_usable(found, version.version_id)
            except RequestError as error:
                return error
        return None

    def needs_look(self, key: KeyName, number: int, version_id: bytes) -> bool:
        """Return whether :meth:`version` would have to ask the store, if it were called now.

        False where memory decides, be it to refuse: the number is in memory in whatever state and
        under whatever id, its absence is remembered, or the key is not of the configuration.
        """
        if key not in self.names or self._recall(key, number) is not None:
            return False
        return self._lookups.would_ask(key, number, version_id)

    async def version(self, key: KeyName, number: int, version_id: bytes) -> VersionKey:
        """Return the version that an envelope names, to open it with.

        From memory; otherwise the store is asked once, by however many callers at the same time.

        Args:
            key: The key's name.
            number: The version's number.
            version_id: The version's id, 16 bytes.

        Raises:
            UnknownVersion: The key has no version of that number and id.
            VersionDisabled: It is disabled or destroyed.
            StoreUnavailable: It is not in memory, and the store is away.
            StoreTampered: It is not in memory, and fails its checks in the store.
            CustodyError: It does not unwrap.
        """
        found = self._recall(key, number)
        if found is not None:
            return _require_usable(found, version_id)
        if key not in self.names:
            raise UnknownVersion(key, number)
        return _require_usable(await self._lookups.find(key, number, version_id), version_id)

    async def rotate(
        self, key: KeyName, *, actor_uid: int, expected_current: int, compromised: bool = False
    ) -> Rotation:
        """Make another version current, archive its predecessor, and use the new one at once.

        Args:
            key: The key's name.
            actor_uid: The operator's uid.
            expected_current: The number that must be current; 0 for whichever is.
            compromised: Disable the predecessor everywhere instead, and wait until that is done.

        Raises:
            KeyError: There is no such key.
            RotationConflict: Another version is current; nothing was changed.
            StoreUnavailable: The store is away; nothing was changed, or the rotation is whole
                (where the store stopped answering meanwhile) and will be noticed.
            StoreTampered: The key fails its checks; nothing was changed.
        """
        rotate = partial(
            self.store.rotate,
            key,
            actor_uid=actor_uid,
            expected_current=expected_current,
            now=self._clock.now(),
            compromised=compromised,
        )
        done = await self.change(rotate)
        self.install(done)
        await self._take_in(key)
        late = await self._presence.await_all(done.generation) if compromised else ()
        return Rotation(done.version.info, done.previous, done.key, late)

    async def replace_current(self, key: KeyName, number: int) -> int:
        """Roll a key over because its current version is to be used no longer; return the new one.

        Args:
            key: The key's name.
            number: Must be the current version.

        Raises:
            RotationConflict: It is not, or a successor was made meanwhile; nothing was changed.
            StoreError: As for :meth:`rotate`.
        """
        loaded = self._loaded.get(key)
        pending = loaded.pending.info.number if loaded is not None and loaded.pending else None
        roll_over = partial(self.store.roll_over, key, Expected(number, pending), self._clock.now())
        try:
            done = await self.change(roll_over)
        except RotationConflict:
            await self._take_in(key)
            raise
        self.install(done)
        await self._take_in(key)
        new = int(done.version.info.number)
        self.tell("key.rolled_over", describe_upkeep(key, new, {"previous": number}))
        return new

    async def disable(self, key: KeyName, number: int, *, actor_uid: int) -> Change:
        """Refuse a version in every process until it is enabled again.

        Raises:
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreError: As for :meth:`rotate`.
        """
        call = partial(self.store.disable, key, number, actor_uid=actor_uid, now=self._clock.now())
        return await self._change_version(key, call)

    async def enable(self, key: KeyName, number: int, *, actor_uid: int) -> Change:
        """Let a disabled version open envelopes again, in every process.

        Raises:
            NoSuchVersion: The key has no such version.
            WrongState: It is destroyed, or going to be.
            StoreError: As for :meth:`rotate`.
        """
        del actor_uid  # for the audit log
        return await self._change_version(key, partial(self.store.enable, key, number))

    async def schedule_destruction(self, key: KeyName, number: int, *, actor_uid: int) -> Change:
        """Disable a version and have it destroyed later, as the key's configuration says.

        Raises:
            NoSuchVersion: The key has no such version.
            VersionInUse: It is the current one.
            WrongState: It is destroyed.
            StoreError: As for :meth:`rotate`.
        """
        call = partial(
            self.store.schedule_destruction,
            key,
            number,
            actor_uid=actor_uid,
            now=self._clock.now(),
            after_s=self.rules(key).destroy_after_s,
        )
        return await self._change_version(key, call)

    async def cancel_destruction(self, key: KeyName, number: int, *, actor_uid: int) -> Change:
        """Call a scheduled destruction off; the version stays disabled.

        Raises:
            NoSuchVersion: The key has no such version.
            WrongState: Nothing is scheduled.
            StoreError: As for :meth:`rotate`.
        """
        del actor_uid  # for the audit log
        return await self._change_version(key, partial(self.store.cancel_destruction, key, number))

    async def describe(self, key: KeyName) -> KeyInfo:
        """Return what there is to say of a key, from the store.

        Raises:
            KeyError: There is no such key.
            StoreError: The store is away, or fails its checks.
        """
        return await self.look(partial(self.store.describe_key, key))

    async def versions(self, key: KeyName, *, before: int | None, limit: int) -> list[VersionInfo]:
        """Return a page of a key's versions, newest first, from the store.

        Args:
            key: The key's name.
            before: Only versions with smaller numbers; None begins with the newest.
            limit: At most so many.

        Raises:
            KeyError: There is no such key.
            StoreError: The store is away, or fails its checks.
        """
        list_versions = self.store.list_versions
        return await self.look(partial(list_versions, key, before=before, limit=limit))

    def list_missing(self) -> list[KeyName]:
        """Return the keys whose current version is not in memory."""
        return sorted(self.names - self._current.keys())

    def loaded(self, key: KeyName) -> LoadedKey | None:
        """Return a key as it was last read from the store; for the caretaker."""
        return self._loaded.get(key)

    def current_usage(self, key: KeyName) -> VersionUsage:
        """Return how much the current version was used, as far as is known; for the caretaker."""
        number, usage = self._usage.get(key, (0, VersionUsage()))
        return usage if number == self.current_number(key) else VersionUsage()

    def has_uncounted(self) -> bool:
        """Return whether something was sealed that the store doesn't know of."""
        return self._meter.has_uncounted() and not self._is_away()

    async def flush_usage(self) -> None:
        """Tell the store what was used.

        Raises:
            StoreError: The store is away, or does not fit.
        """
        await self._meter.flush()

    def acknowledge(self, generation: int) -> None:
        """Tell other processes that this one has taken in a generation; for the watch."""
        self._presence.acknowledge(generation)

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until another process has announced a change, or for a while; for the watch.

        Raises:
            StoreUnavailable: The store is away.
        """
        if not self.store.announces_changes:
            await asyncio.sleep(timeout_s)
            return
        wait = partial(self.store.wait_for_change, timeout_s)
        await self._listener.run(wait, timeout_s=timeout_s + _CALL_TIMEOUT_S)

    async def look(self, call: Callable[[], T], *, timeout_s: float = _CALL_TIMEOUT_S) -> T:
        """Run a reading call to the store on a thread; for the watch.

        Raises:
            StoreUnavailable: It did not end in time.
            SidecarError: Whatever ``call`` raises; what fails its checks is noted.
        """
        return await self._run(self._readers, call, timeout_s)

    async def refresh(self, key: KeyName) -> None:
        """Bring what is in memory of a key to what the store holds, and what was counted.

        Counts that don't fit their authentication keep no key from being used.

        Raises:
            StoreError: The store is away, or fails its checks; nothing was changed in memory.
            CustodyError: The current version does not unwrap.
        """
        async with self._refreshing:
            await self._refresh(key)
        number = int(self._loaded[key].current.info.number)
        with suppress(StoreTampered):  # noted where it was raised
            usage = await self.look(partial(self.store.usage.read, key, [number]))
            self._usage[key] = number, usage.get(number, VersionUsage())

    async def _refresh(self, key: KeyName) -> None:
        self._lookups.overtake(key)
        held = {version.info.number: version for version in self._cache.list_versions(key)}
        if (known := self._loaded.get(key)) is not None and known.pending is not None:
            held[known.pending.info.number] = known.pending
        if (current := self._current.get(key)) is not None:
            held[current.info.number] = current
        loaded = await self.look(partial(self.store.load_key, key))
        infos = await self.look(partial(self.store.describe_versions, key, held.keys()))
        if max(held, default=0) > loaded.info.version_count:
            raise StoreTampered(f"history of key {key}")
        for info in infos:
            old = held[info.number].info
            if info.version_id != old.version_id or not may_follow(old.state, info.state):
                raise StoreTampered(f"history of version {info.number} of key {key}")
        self._install(loaded.current)
        self._loaded[key] = loaded
        for info in infos:
            if held[info.number].material is None and may_open(info.state):
                self._cache.drop(key, info.number)  # enabled again: unwrapped when next needed
            else:
                material = held[info.number].material if may_open(info.state) else None
                self._cache.replace(OpenedVersion(info, material))

    async def change(self, call: Callable[[], T], *, urgent: bool = False) -> T:
        """Run a changing call to the store on a thread; for whoever else changes something there.

        Args:
            call: What to run.
            urgent: It stands in no line behind this process's other changes: it takes something
                away from somebody.
        """
        threads = self._urgent_writer if urgent else self._writer
        return await self._run(threads, call, _CALL_TIMEOUT_S)

    async def record(self, call: Callable[[], T]) -> T:
        """Run a call on a thread that writes what is beside the keys; for the caretaker."""
        return await self._run(self._recorder, call, _CALL_TIMEOUT_S)

    async def _announce(self, call: Callable[[], T]) -> T:
        return await self._run(self._announcer, call, _CALL_TIMEOUT_S)

    def install(self, done: StoredRotation) -> None:
        """Use what a rotation has made."""
        self._install(done.version)
        if replaced := self._cache.get(done.key.name, done.previous.number):
            material = replaced.material if may_open(done.previous.state) else None
            self._cache.replace(OpenedVersion(done.previous, material))

    async def _change_version(self, key: KeyName, call: Callable[[], ChangedVersion]) -> Change:
        done = await self.change(call)
        await self._take_in(key)
        return Change(done.version, await self._presence.await_all(done.generation))

    async def _noting_tampering(self, step: Awaitable[None]) -> None:
        try:
            await step
        except StoreTampered as error:
            self._health.note(error)

    async def _take_in(self, key: KeyName) -> None:
        """Refresh a key after a change that is made: what fails here is the watch's to mend."""
        try:
            await self.refresh(key)
        except SidecarError as error:
            self._health.note(error)

    def _on_usage(self, key: KeyName, number: int, usage: VersionUsage) -> None:
        if number == self.current_number(key):
            self._usage[key] = number, usage
            if is_used_up(self.rules(key).rollover, usage):
                self._caretaker.hurry()

    def _is_away(self) -> bool:
        return self._health.has(STORE_UNAVAILABLE)

    async def _load(self, key: KeyName, number: int) -> OpenedVersion:
        return await self.look(partial(self.store.find_version, key, number))

    async def _run(self, threads: StoreThreads, call: Callable[[], T], timeout_s: float) -> T:
        try:
            return await threads.run(call, timeout_s=timeout_s)
        except (StoreTampered, CustodyError) as error:
            self._health.note(error)
            raise

    def _install(self, version: OpenedVersion) -> None:
        """Make a version current in memory; its predecessor goes to the cache.

        Current numbers only grow: an answer that another one overtook changes nothing.
        """
        key = version.info.key_name
        old = self._current.get(key)
        if old is None or old.info.number < version.info.number:
            self._current[key] = version
            if old is not None:
                self._cache.put(old)
        elif old.info.number == version.info.number:
            self._current[key] = OpenedVersion(version.info, old.material)

    def _recall(self, key: KeyName, number: int) -> OpenedVersion | None:
        current = self._current.get(key)
        if current is not None and current.info.number == number:
            return current
        loaded = self._loaded.get(key)
        if loaded is not None and loaded.pending and loaded.pending.info.number == number:
            return loaded.pending
        return self._cache.get(key, number)


def _limits(rules: KeyRules) -> UsageLimits:
    policy = rules.rollover
    return UsageLimits(policy.rotate_after_messages, policy.rotate_after_bytes)


def _require_usable(found: OpenedVersion, version_id: bytes) -> VersionKey:
    info = found.info
    if info.version_id != version_id:
        raise UnknownVersion(info.key_name, info.number)
    if not may_open(info.state) or found.material is None:
        raise VersionDisabled(info.key_name, info.number, str(info.state))
    return found.material
