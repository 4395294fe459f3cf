"""This process's place in the register of sidecars, and waiting for all that are in it.

A process registers before it reads a key; so whatever is changed afterwards, it is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import SidecarError, StoreError, StoreTampered
from keyside_sidecar.store.records import SidecarInfo
from keyside_sidecar.store.sidecars import (
    SILENT_AFTER,
    UNKNOWN_HOST,
    ProcessName,
    make_sidecar_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyside_sidecar.keys.health import StoreHealth
    from keyside_sidecar.store import Store
    from keyside_sidecar.store.sidecars import Roll

    Run = Callable[[Callable[[], Any]], Awaitable[Any]]

_log = logging.getLogger(__name__)

_BEAT_S: Final = 5.0
_RETRY_S: Final = 1.0
_FORGET_AFTER: Final = timedelta(days=7)
_WAIT_S: Final = 3.0
_WAIT_STEP_S: Final = 0.05
_MAX_HOST_LENGTH: Final = 255
_STAT_START_TICKS: Final = 19  # after "pid (name) state": proc(5) counts from 1, this is field 22


class Presence:
    """Keeps this process in the register.

    Args:
        store: The open store.
        run: Runs a call to the store on a thread.
        health: Where to say what is wrong.
    """

    def __init__(self, store: Store, run: Run, health: StoreHealth) -> None:
        self._store = store
        self._run = run
        self._health = health
        self._id = make_sidecar_id()
        self._process = describe_self()
        self._generation = 0
        self._root_keys: tuple[str, ...] = ()
        self._known: dict[bytes, SidecarInfo] = {}
        self._strangers: tuple[SidecarInfo, ...] = ()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def enter(self) -> None:
        """Register; nothing has been taken in yet.

        Raises:
            StoreError: The store is away, or does not fit.
        """
        await self._write()

    def start(self) -> None:
        """Begin to show now and then that this process is alive."""
        self._task = asyncio.create_task(self._beat_for_ever(), name="keyside-store-presence")

    def acknowledge(self, generation: int) -> None:
        """Have it written down that everything up to a generation of the store is taken in."""
        if generation != self._generation:
            self._generation = generation
            self._news.set()

    async def stop(self) -> None:
        """Stop, and withdraw from the register if the store allows it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        with suppress(SidecarError):
            await self._run(lambda: self._store.sidecars.withdraw(self._id))

    def count_live(self) -> int:
        """Return how many processes serve from the store, as far as is known; at least 1."""
        return max(1, sum(sidecar.ended_at is None for sidecar in self._known.values()))

    async def await_all(self, generation: int) -> tuple[SidecarInfo, ...]:
        """Wait until every live process has taken in a generation of the store.

        Returns:
            Those that have not within a few seconds, and those that are silent anyway. If the store
            stops answering meanwhile, all that are not known to have.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _WAIT_S
        while True:
            is_done = False
            try:
                roll = await self._run(self._store.sidecars.list_all)
                self._take_note(roll)
                behind = self._list_behind(generation)
                is_done = all(roll.now - late.seen_at >= SILENT_AFTER for late in behind)
            except SidecarError as error:
                self._health.note(error)
            if is_done or loop.time() >= deadline_s:
                return (*self._list_behind(generation), *self._strangers)
            await asyncio.sleep(_WAIT_STEP_S)

    def _list_behind(self, generation: int) -> tuple[SidecarInfo, ...]:
        return tuple(
            sidecar
            for sidecar in self._known.values()
            if sidecar.ended_at is None and sidecar.generation_seen < generation
        )

    def _take_note(self, roll: Roll) -> None:
        """Remember who is registered; who vanishes without having ended stays known for a week."""
        known = {
            sidecar_id: sidecar
            for sidecar_id, sidecar in self._known.items()
            if sidecar.ended_at is None and roll.now - sidecar.seen_at < _FORGET_AFTER
        }
        self._known = known | {sidecar.sidecar_id: sidecar for sidecar in roll.sidecars}
        self._strangers = (_describe_strange(roll),) if roll.strange else ()
        if roll.strange:
            self._health.note(StoreTampered("register of sidecars"))

    async def _beat_for_ever(self) -> None:
        while True:
            pause_s = _RETRY_S
            self._news.clear()
            try:
                await self._write()
                pause_s = _BEAT_S
            except StoreError as error:
                self._health.note(error)
            except SidecarError:
                pass  # the watch has noticed it, too
            except Exception:  # noqa: BLE001  (a mistake here must not end the register)
                _log.exception("writing to the register of sidecars failed; it goes on")
            with suppress(TimeoutError, SidecarError):
                async with asyncio.timeout(pause_s):
                    await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        """Wait for a generation to tell, or for a change of the root keys that are at hand."""
        while not self._news.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S):
                    await self._news.wait()
                    return
            if await self._run(self._store.list_root_keys) != self._root_keys:
                return

    async def _write(self) -> None:
        generation = self._generation
        self._root_keys = keys = await self._run(self._store.list_root_keys)
        register = self._store.sidecars
        enter = partial(register.enter, self._id, self._process, generation, keys, is_running)
        self._take_note(await self._run(enter))


def _describe_strange(roll: Roll) -> SidecarInfo:
    """Return what stands for rows of the register that nobody can read."""
    return SidecarInfo(bytes(16), UNKNOWN_HOST, 0, roll.now, roll.now, 0, ())


def describe_self() -> ProcessName:
    """Return what tells this process from all others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    return ProcessName(
        host=socket.gethostname()[:_MAX_HOST_LENGTH],
        boot=f"{boot} {namespace}",
        pid=os.getpid(),
        start_ticks=_read_start_ticks(os.getpid()) or 0,
    )


def is_running(process: ProcessName) -> bool:
    """Return whether a process of this boot and namespace is still there.

    Asked with a signal first: /proc may hide processes (hidepid), and then says that they are gone.
    """
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _read_start_ticks(process.pid) in (None, process.start_ticks)


def _read_start_ticks(pid: int) -> int | None:
    """Return when a process started; None where /proc does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[_STAT_START_TICKS])
