"""One reload (SIGHUP), from the file to the moment when new workers serve.

    IDLE ──begin──► EXAMINING ──usable──► RECORDING ──on the disk──► STARTING ──finish──► IDLE
                        └──refused, late─────┴──no recorder, late───────┴──fail──► IDLE

EXAMINING happens in a process of its own (``candidate.py``). The new configuration's digest is on
the disk before any worker uses it (I13). Until workers under it serve, the running configuration
stays as it is; whatever goes wrong leaves it so, and is told: to the service manager, to the log,
to the audit log, and to whoever asks for ``status``, until a reload succeeds.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from keyside_sidecar import notify
from keyside_sidecar.candidate import CandidateRefused, examine, take_reply
from keyside_sidecar.log import event
from keyside_sidecar.serving import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.candidate import Candidate
    from keyside_sidecar.children import Children
    from keyside_sidecar.config import Config
    from keyside_sidecar.keeper import Keeper
    from keyside_sidecar.loop import Loop

_log = logging.getLogger(__name__)

_EXAMINE_S: Final = 30.0
_RECORD_S: Final = 10.0
_START_S: Final = 90.0
_READ_BYTES: Final = 1 << 16
# What of a refusal the audit log and the workers are told; the log has it whole.
_MAX_WHY: Final = 1_000


class Stage(enum.Enum):
    """Where a reload is."""

    IDLE = enum.auto()
    EXAMINING = enum.auto()
    RECORDING = enum.auto()
    STARTING = enum.auto()


class Reload:
    """Carries out one reload at a time.

    Args:
        loop: The supervisor's.
        children: What forks.
        keeper: The way to the audit log.
        running: Returns the configuration that is in use.
        close_in_child: Lets go of what is the supervisor's, in the child.
        on_accepted: Called with what is to be used: workers are to be started under it, and then
            ``finish`` or ``fail`` to be called.
        on_ended: Called when there is no reload any more, with what went wrong as workers are to
            say it, or None.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        keeper: Keeper,
        *,
        running: Callable[[], Config],
        close_in_child: Callable[[], None],
        on_accepted: Callable[[Candidate], None],
        on_ended: Callable[[Notice | None], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._keeper = keeper
        self._running = running
        self._close_in_child = close_in_child
        self._on_accepted = on_accepted
        self._on_ended = on_ended
        self._number = 0
        self._pid: int | None = None
        self._pipe: int | None = None
        self._reply = bytearray()
        self._details: dict[str, object] = {}
        self.stage = Stage.IDLE

    def begin(self) -> None:
        """Read the file again, and go on from there."""
        self._number += 1
        path = self._running().path
        self._details = {"config_path": str(path)}
        event(_log, logging.INFO, "reloading", configuration=str(path))
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        notify.sd_notify(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
        self._enter(Stage.EXAMINING, _EXAMINE_S, "CONFIG_NOT_READ", "see whether names resolve")
        self._reply.clear()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)

        def work() -> int:
            os.close(reading)
            self._close_in_child()
            with open(writing, "wb") as answer:  # noqa: PTH123  (a descriptor)
                answer.write(examine(path, self._running()))
            return 0

        try:
            note_ended = partial(self._note_ended, self._number)
            self._pid = self._children.fork("keysided-reload", work, note_ended)
        except OSError as error:
            os.close(reading)
            self.fail("CONFIG_NOT_READ", f"no process can be forked: {error}", "reload again")
            return
        finally:
            os.close(writing)
        self._pipe = reading
        self._loop.watch(reading, self._on_reply)

    def finish(self) -> None:
        """Note that workers serve under the new configuration."""
        self._note_outcome("ok")
        event(_log, logging.INFO, "reloaded", **self._details)
        self._end(None)

    def fail(self, reason: str, why: str, remedy: str) -> None:
        """Give up; the running configuration stays in use.

        Args:
            reason: A constant.
            why: What is wrong.
            remedy: What to do about it.
        """
        event(_log, logging.ERROR, "reload refused", reason=reason, why=why, what_to_do=remedy)
        self._note_outcome("refused", reason=reason, why=why[:_MAX_WHY])
        summary = f"the configuration could not be reloaded; the former one is in use: {why}"
        self._end(Notice(reason, summary[:_MAX_WHY], remedy))

    def cancel(self) -> None:
        """Forget what is under way: the sidecar stops."""
        self._drop_child()
        self.stage = Stage.IDLE

    def close_in_child(self) -> None:
        """Close what only the supervisor may have, in a process that was forked from it."""
        if self._pipe is not None:
            os.close(self._pipe)

    def _enter(self, stage: Stage, limit_s: float, reason: str, remedy: str) -> None:
        self.stage = stage
        why = f"it took longer than {limit_s:.0f} s ({stage.name.lower()})"
        give_up = partial(self._give_up, self._number, stage, (reason, why, remedy))
        self._loop.after(limit_s, give_up)

    def _give_up(self, number: int, stage: Stage, refusal: tuple[str, str, str]) -> None:
        if (number, stage) == (self._number, self.stage):
            self.fail(*refusal)

    def _on_reply(self) -> None:
        assert self._pipe is not None  # noqa: S101
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._reply += data
            return
        self._loop.unwatch(self._pipe)
        os.close(self._pipe)
        self._pipe = None
        self._take(bytes(self._reply))

    def _take(self, reply: bytes) -> None:
        try:
            candidate = take_reply(reply, self._running().path)
        except CandidateRefused as refused:
            self.fail(refused.reason, refused.why, refused.remedy)
            return
        self._details["config_digest"] = candidate.config.digest
        self._enter(Stage.RECORDING, _RECORD_S, "AUDIT_UNAVAILABLE", "see the audit log's problem")
        record = {"event": "run.reload", "phase": "intent", "details": self._details}
        number = self._number

        def go_on() -> None:
            if (number, Stage.RECORDING) == (self._number, self.stage):
                self._enter(Stage.STARTING, _START_S, "WORKERS_NOT_STARTED", "see keysided's log")
                self._on_accepted(candidate)

        if not self._keeper.record(record, go_on):
            self.fail("AUDIT_UNAVAILABLE", "no recorder runs", "see the audit log's problem")

    def _note_outcome(self, outcome: str, *, reason: str = "", why: str = "") -> None:
        record: dict[str, object] = {"event": "run.reload", "phase": "outcome", "outcome": outcome}
        details = dict(self._details)
        if reason:
            record["reason"] = reason
            details["why"] = why
        self._keeper.note({**record, "details": details})

    def _end(self, problem: Notice | None) -> None:
        self._drop_child()
        self.stage = Stage.IDLE
        notify.sd_notify("READY=1")
        self._on_ended(problem)

    def _drop_child(self) -> None:
        if self._pipe is not None:
            self._loop.unwatch(self._pipe)
            os.close(self._pipe)
            self._pipe = None
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _note_ended(self, number: int, _code: int) -> None:
        if number == self._number:
            self._pid = None
