"""The recorder at work: takes records from the workers, and tells them what is on the disk.

One plain loop (``loop.py``), which never touches the disk itself: the writer's thread does
(``writer.py``), so that a disk that hangs leaves the loop answering. What workers send is read only
as fast as it is written.

    OPENING ──the log is open──► READY ──"stop"──► ENDING ──► exit 0, the run is closed
        └──it can't be──► exit        └──the supervisor is gone──► ENDING ──► exit 0, it is sealed
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.audit import problem as problems
from keyside_sidecar.audit.generations import raise_generation, take_generation
from keyside_sidecar.audit.intake import Intake
from keyside_sidecar.audit.link import Link
from keyside_sidecar.audit.running import CommandRunner
from keyside_sidecar.audit.second import SecondPlace
from keyside_sidecar.audit.stamps import Stamps
from keyside_sidecar.audit.wire import BEHIND, DURABLE
from keyside_sidecar.audit.writer import Writer
from keyside_sidecar.clock import SystemClock
from keyside_sidecar.handover import HandoverError
from keyside_sidecar.log import event
from keyside_sidecar.loop import Loop

if TYPE_CHECKING:
    from keyside_sidecar.audit.generations import Generation
    from keyside_sidecar.config import Config
    from keyside_sidecar.handover import Channel

_log = logging.getLogger(__name__)

_PULSE_S: Final = 1.0
_LOOK_S: Final = 0.1
_MAX_QUEUED_BYTES: Final = 8 << 20
_ENOUGH_BYTES: Final = 2 << 20
_END_S: Final = 8.0
_ORPHAN_S: Final = 3.0
_COMMANDS_END_S: Final = 1.0
_NOTIFY_ROOM: Final = 256
_EXIT_FAILED: Final = 74


class Recording:
    """Serves the supervisor and the workers.

    Args:
        config: The configuration.
        control: The supervisor's channel.
    """

    def __init__(self, config: Config, control: Channel) -> None:
        self._config = config
        self._control = control
        self._loop = Loop()
        self._stamps = Stamps(SystemClock())
        self._intake: Intake | None = None
        self._links: set[Link] = set()
        self._paused = False
        self._ends: float | None = None
        self._told: tuple[str | None, bool] = (None, False)
        self._outbox: list[dict[str, Any]] = []
        self._wakeups = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._second = SecondPlace(
            config.audit.checkpoint_command, use_syslog=config.audit.checkpoint_syslog
        )
        notify = () if config.elevation is None else config.elevation.notify
        self._notify = CommandRunner("notify", notify, _NOTIFY_ROOM)
        opening: dict[str, object] = {
            "config_digest": config.digest,
            "config_path": str(config.path),
        }
        self._writer = Writer(config.audit, opening, self._wake)

    def run(self) -> int:
        """Record until told to stop; return the exit code.

        Raises:
            StartupError: The log can't be opened.
        """
        self._loop.watch(self._wakeups, self._on_news)
        self._loop.watch(self._control.fileno(), self._on_control)
        self._writer.start()
        self._pulse()
        self._look()
        while not self._writer.ended and (self._ends is None or time.monotonic() < self._ends):
            self._loop.turn()
        if self._writer.error is not None:
            raise self._writer.error
        self._on_news()
        self._second.finish(_COMMANDS_END_S)
        self._notify.finish(_COMMANDS_END_S)
        for link in tuple(self._links):
            self._drop(link)
        if not self._writer.ended:
            event(_log, logging.ERROR, "the run could not be closed: the log takes nothing")
            return _EXIT_FAILED
        return 0

    # -- the supervisor ---------------------------------------------------------------------

    def _pulse(self) -> None:
        self._loop.after(_PULSE_S, self._pulse)
        self._say({"alive": True})

    def _say(self, fields: dict[str, Any]) -> None:
        self._outbox.append(fields)
        if len(self._outbox) == 1:
            self._flush_control()

    def _flush_control(self) -> None:
        try:
            while self._outbox:
                self._control.send(self._outbox[0])
                self._outbox.pop(0)
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # the supervisor is gone; _on_control sees it too
        if self._ends is None:
            fd, waits = self._control.fileno(), bool(self._outbox)
            self._loop.watch(fd, self._on_control, writable=waits)

    def _on_control(self) -> None:
        if self._outbox:
            self._flush_control()
        try:
            packet = self._control.receive()
        except BlockingIOError:
            return
        except (HandoverError, OSError):
            packet = None
        if packet is None:
            event(_log, logging.ERROR, "the supervisor is gone; the log is sealed")
            self._end("interval", _ORPHAN_S)
            return
        match packet.fields:
            case {"worker": int(pid)} if len(packet.descriptors) == 1 and self._intake:
                self._introduce(pid, packet.descriptors[0])
                return
            case {"record": dict(record), **rest} if self._intake:
                self._take_own(record, rest.get("ack"))
            case {"stop": True}:
                self._end("stop", _END_S)
        for descriptor in packet.descriptors:
            os.close(descriptor)

    def _take_own(self, record: dict[str, Any], number: object) -> None:
        """Take a record of the supervisor's."""
        assert self._intake is not None  # noqa: S101
        lane = BEHIND if number is None else DURABLE
        body = self._stamps.stamp(record)
        self._writer.put(self._intake.take(lane, [body], None, number))

    def _end(self, kind: str, limit_s: float) -> None:
        if self._ends is not None:
            return
        self._ends = time.monotonic() + limit_s
        self._loop.unwatch(self._control.fileno())
        for link in tuple(self._links):
            while link in self._links and self._read(link):
                pass
        self._writer.stop(kind)

    # -- the workers ------------------------------------------------------------------------

    def _introduce(self, pid: int, descriptor: int) -> None:
        assert self._intake is not None  # noqa: S101
        link = Link(pid, descriptor)
        self._links.add(link)
        link.say({"hello": True, "anchor": self._intake.generation})
        if self._told[0] is not None:
            self._tell_failing(link)
        self._watch(link)

    def _watch(self, link: Link) -> None:
        if self._paused and not link.has_more_to_say:
            self._loop.unwatch(link.fileno())
            return
        self._loop.watch(link.fileno(), lambda: self._on_link(link), writable=link.has_more_to_say)

    def _on_link(self, link: Link) -> None:
        if link.has_more_to_say:
            link.flush()
        if not self._paused:
            self._read(link)
        if link in self._links:
            self._watch(link)

    def _read(self, link: Link) -> int:
        """Take what a worker has sent; return how many packets that was."""
        assert self._intake is not None  # noqa: S101
        count = 0
        for packet in link.receive():
            count += 1
            match packet:
                case (str(lane), bodies):
                    batch = self._intake.take(lane, bodies, link.pid, link)
                    self._writer.put(batch)
                    if batch.is_bad:
                        link.ended = True
                        break
                case {"generation": [store_id, generation]}:
                    if not self._note_generation(take_generation(store_id, generation)):
                        link.ended = True
                        break
                case {"sync": True}:
                    self._writer.sync()
        if link.ended:
            self._drop(link)
        elif self._writer.queued_bytes > _MAX_QUEUED_BYTES and not self._paused:
            self._paused = True
            for other in self._links:
                self._watch(other)
        return count

    def _note_generation(self, found: Generation | None) -> bool:
        """Have later checkpoints say how far the store has come; False where that is nonsense."""
        assert self._intake is not None  # noqa: S101
        if found is None:
            event(_log, logging.ERROR, "a worker sent what is no generation")
            return False
        known = self._intake.generation
        self._intake.generation = now = raise_generation(known, found)
        if now is not None and now != known:
            self._writer.set_generation(now)
        return True

    def _drop(self, link: Link) -> None:
        self._links.discard(link)
        self._loop.unwatch(link.fileno())
        link.close()

    # -- the writer -------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the loop look for news; called from the writer's thread."""
        os.eventfd_write(self._wakeups, 1)

    def _on_news(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeups)
        writer = self._writer
        if writer.opened and self._intake is None and writer.tail is not None:
            tail = writer.tail
            self._intake = Intake(self._stamps, tail.recent_ids, tail.generation)
            self._say({"ready": True})
        while writer.checkpoints:
            self._second.send(writer.checkpoints.popleft())
        while writer.done:
            batch = writer.done.popleft()
            if isinstance(batch.source, Link):
                batch.source.count(batch.lane, batch.count)
            elif isinstance(batch.source, int):
                self._say({"recorded": batch.source})
            for line in batch.lines:
                self._notify.give(line)
        self._tell_links()
        if self._paused and writer.queued_bytes < _ENOUGH_BYTES:
            self._paused = False
            for link in self._links:
                self._watch(link)

    def _look(self) -> None:
        """See whether the writer hangs: it can't say so itself."""
        self._loop.after(_LOOK_S, self._look)
        self._tell_links()

    def _tell_links(self) -> None:
        now = self._judge()
        changed, self._told = now != self._told, now
        for link in tuple(self._links):
            if changed:
                self._tell_failing(link)
            link.acknowledge()
            self._watch(link)

    def _tell_failing(self, link: Link) -> None:
        reason, low = self._told
        link.say({"failing": reason, "low": low})

    def _judge(self) -> tuple[str | None, bool]:
        """Return what is wrong with the log, and whether it takes refusals only."""
        since_s = self._writer.busy_since_s
        hangs = since_s is not None and time.monotonic() - since_s > self._config.audit.timeout_s
        if hangs and self._writer.opened:
            return problems.NOT_RESPONDING, False
        return self._writer.failing, self._writer.low
