"""The recorder, as the supervisor keeps it: the one process that owns the audit log.

    FORKED ──"ready"──► READY ──silent for 20 s──► killed ─┐
       ├──silent for 60 s──► killed ───────────────────────┤
       └──exit──► ended ◄──────────────────────────────────┘
                    └──after a pause that grows──► FORKED             "stop" ──► exit ──► reaped

``replace`` tells it to stop, too, and starts another one at once: with other settings.

The recorder keeps the log; the supervisor only introduces workers to it, and nothing here ever
waits for it. Silence is counted in checks, as with workers (``crew.py``). It runs as the sidecar's
account and is trusted no more than they are: what isn't one of its few packets ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.handover import Channel, HandoverError, discard, make_channels
from keyside_sidecar.log import event

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from keyside_sidecar.children import Children
    from keyside_sidecar.loop import Loop

_log = logging.getLogger(__name__)

_CHECK_S: Final = 1.0
_KILL_AFTER: Final = 20
_START_CHECKS: Final = 60
_STEADY_AFTER_CHECKS: Final = 30
_RESTART_PAUSE_S: Final = 0.25
_MAX_RESTART_PAUSE_S: Final = 10.0
_STOP_S: Final = 10.0
_MAX_RECORDS: Final = 256


class Keeper:
    """Forks the recorder, talks to it, and notices when it ends.

    Args:
        loop: The supervisor's.
        children: What forks.
        work: Runs in the forked child with its end of the channel; returns the exit code.
        on_ready: Called when a recorder has its log open: every worker is to be introduced.
        on_ended: Called with the exit code of one that has ended (negative: a signal).
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        *,
        work: Callable[[Channel], int],
        on_ready: Callable[[], None],
        on_ended: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._work = work
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._pid: int | None = None
        self._channel: Channel | None = None
        self._stopping = False
        self._replacing = False
        self._silent_checks = 0
        self._checks = 0
        self._restart_pause_s = _RESTART_PAUSE_S
        # What the channel has no room for yet, oldest first, with the descriptor that goes along.
        self._outbox: deque[tuple[dict[str, Any], socket.socket | None]] = deque()
        self._records: deque[dict[str, Any]] = deque(maxlen=_MAX_RECORDS)
        self._awaited: dict[int, Callable[[], None]] = {}
        self._number = 0
        self.ready = False
        self._loop.after(_CHECK_S, self._check)

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._pid is not None

    def start(self) -> None:
        """Fork a recorder.

        Raises:
            OSError: The host has no room for it; nothing is left behind.
        """
        ours, theirs = make_channels()

        def work() -> int:
            ours.close()
            return self._work(theirs)

        try:
            pid = self._children.fork("keysided-audit", work, self._note_ended)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._pid, self._channel = pid, ours
        self.ready = False
        self._silent_checks = self._checks = 0
        self._loop.watch(ours.fileno(), self._on_channel)

    def start_later(self) -> None:
        """Fork another recorder after a pause, which grows while they keep ending."""
        if self._checks > _STEADY_AFTER_CHECKS:
            self._restart_pause_s = _RESTART_PAUSE_S
        self._loop.after(self._restart_pause_s, self._start_again)
        self._restart_pause_s = min(self._restart_pause_s * 2, _MAX_RESTART_PAUSE_S)

    def introduce(self, worker_pid: int, end: socket.socket) -> None:
        """Give the recorder its end of a pair whose other end a worker has; ours is closed."""
        if self.ready:
            self._post({"worker": worker_pid}, end)
        else:
            end.close()  # the worker sees that, and is introduced again when one is ready

    def note(self, record: Mapping[str, object]) -> None:
        """Have a record written, behind; while there is no recorder the latest 256 are kept."""
        self._records.append(dict(record))
        self._pass_records()

    def record(self, record: Mapping[str, object], on_recorded: Callable[[], None]) -> bool:
        """Have a record written now.

        Args:
            record: The record.
            on_recorded: Called when it is on the disk; never, where this recorder ends before.

        Returns:
            Whether there is a recorder to write it.
        """
        if not self.ready:
            return False
        self._number += 1
        self._awaited[self._number] = on_recorded
        self._post({"record": dict(record), "ack": self._number}, None)
        return True

    def replace(self) -> None:
        """Have the recorder close its run and end, and start another one in its place.

        Workers keep what is not on the disk, and send it to the next one.
        """
        if self.ready and not self._replacing:
            self._replacing, self.ready = True, False
            self._post({"stop": True}, None)
            self._loop.after(_STOP_S, partial(self._kill, "it does not end", self._pid))

    def stop(self) -> None:
        """Tell the recorder that no more is to come; kill it where it does not end in time."""
        if self.running and not self._stopping:
            self._stopping = True
            self._post({"stop": True}, None)
            self._loop.after(_STOP_S, partial(self._kill, "it does not end", self._pid))

    def close(self) -> None:
        """Let go of the recorder as the supervisor ends: it sees that, and ends by itself."""
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close what only the supervisor may have, in a process that was forked from it."""
        if self._channel is not None:
            self._channel.close()
        for _fields, end in self._outbox:
            if end is not None:
                end.close()

    def _start_again(self) -> None:
        if self.running or self._stopping:
            return
        try:
            self.start()
        except OSError as error:
            event(_log, logging.ERROR, "can't start the recorder", error=str(error))
            self.start_later()

    def _note_ended(self, code: int) -> None:
        self.close()
        self._outbox.clear()
        self._pid = self._channel = None
        self.ready = False
        self._awaited.clear()
        replaced, self._replacing = self._replacing, False
        if replaced and code == 0 and not self._stopping:
            self._start_again()
        else:
            self._on_ended(code)

    def _kill(self, why: str, only_pid: int | None = None) -> None:
        if self._pid is not None and only_pid in {None, self._pid}:
            event(_log, logging.ERROR, "killing the recorder", pid=self._pid, why=why)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    # -- packets ----------------------------------------------------------------------------

    def _pass_records(self) -> None:
        while self.ready and self._records and len(self._outbox) < _MAX_RECORDS:
            self._post({"record": self._records.popleft()}, None)

    def _post(self, fields: dict[str, Any], end: socket.socket | None) -> None:
        self._outbox.append((fields, end))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        assert self._channel is not None  # noqa: S101
        try:
            while self._outbox:
                fields, end = self._outbox[0]
                self._channel.send(fields, () if end is None else (end.fileno(),))
                self._outbox.popleft()
                if end is not None:
                    end.close()
        except BlockingIOError:
            pass
        except OSError as error:  # it has just died, and SIGCHLD says the rest
            event(_log, logging.WARNING, "recorder took no packet", error=str(error))
            self._empty_outbox()
        self._loop.watch(self._channel.fileno(), self._on_channel, writable=bool(self._outbox))

    def _empty_outbox(self) -> None:
        while self._outbox:
            _fields, end = self._outbox.popleft()
            if end is not None:
                end.close()

    def _on_channel(self) -> None:
        if self._outbox:
            self._flush()
            self._pass_records()
        self._receive()

    def _receive(self) -> None:
        assert self._channel is not None  # noqa: S101
        try:
            packet = self._channel.receive()
        except BlockingIOError:
            return
        except (HandoverError, OSError) as error:
            self._kill(str(error))
            packet = None
        if packet is None:
            self._loop.unwatch(self._channel.fileno())  # SIGCHLD says the rest
            return
        for descriptor in packet.descriptors:  # it has none to give
            discard(descriptor)
        self._silent_checks = 0
        match packet.fields:
            case {"alive": True}:
                pass
            case {"recorded": int(number)}:
                self._awaited.pop(number, _do_nothing)()
            case {"ready": True} if not self.ready and not self._replacing:
                self.ready = True
                event(_log, logging.INFO, "recorder ready", pid=self._pid)
                self._on_ready()
                self._pass_records()
            case _:
                self._kill("it said something unknown")
                self._loop.unwatch(self._channel.fileno())

    def _check(self) -> None:
        self._loop.after(_CHECK_S, self._check)
        if not self.running:
            return
        self._checks += 1
        self._silent_checks += 1
        if self._silent_checks == (_KILL_AFTER if self.ready else _START_CHECKS):
            self._kill("it does not respond")


def _do_nothing() -> None:
    """Stand in for whoever waited for a record that nobody waits for."""
