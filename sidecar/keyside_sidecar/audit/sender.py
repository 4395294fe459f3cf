"""A worker's way to the audit log: what is recorded, and what may not be done while it can't be.

Used from the worker's event loop only. Records are made into text at once, sent in packets, and
kept until the recorder says that they are on the disk; a recorder that takes the place of another
one is sent what that one left (it drops what it finds in the log already). All of it is bounded.

    DETACHED ──attach──► ATTACHED ──the recorder ends──► DETACHED

Where the log fails (``problem``) people's actions are refused at once (I8), and services' calls as
the configuration says. What was refused or lost meanwhile is recorded afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.audit import problem as problems
from keyside_sidecar.audit.coalescing import Coalescer
from keyside_sidecar.audit.lanes import Item, Lane
from keyside_sidecar.audit.problem import AuditProblem
from keyside_sidecar.audit.records import SERVICE_EVENTS, build_body, format_time
from keyside_sidecar.audit.summary import Summary
from keyside_sidecar.audit.wire import (
    BEHIND,
    DURABLE,
    LANES,
    MAX_PACKET_BYTES,
    REFUSED,
    WireError,
    encode_message,
    encode_records,
    parse_packet,
)
from keyside_sidecar.errors import AuditUnavailable
from keyside_sidecar.log import event
from keyside_sidecar.severity import severity_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from datetime import datetime

    from keyside_sidecar.clock import Clock
    from keyside_sidecar.config import AuditSettings

_log = logging.getLogger(__name__)

# With the recorder's half second, what is written behind is on the disk within one second.
_BATCH_S: Final = 0.25
_BATCH_RECORDS: Final = 64
_SYNC_S: Final = 0.5
_TICK_S: Final = 0.25
_POLL_S: Final = 0.02
# A record has 1 KiB on average, at most: one that is longer takes the room of several.
_BYTES_PER_RECORD: Final = 1024
_MAX_DURABLE: Final = 10_000
_MAX_REFUSED: Final = 4_096
_MAX_IN_FLIGHT: Final = 65_536
_REFUSED_REASON: Final = "AUDIT_UNAVAILABLE"


class AuditSender:
    """Sends one worker's records.

    Args:
        settings: ``[audit]``.
        clock: For records' times, and for how long something waits.
    """

    def __init__(self, settings: AuditSettings, clock: Clock) -> None:
        self._settings = settings
        # Whether services' calls are recorded one by one.
        self.takes_each = settings.service_calls == "each"
        self._clock = clock
        self._pid = os.getpid()
        self._prefix = f"{secrets.token_hex(6)}-"
        self._number = 0
        self._lanes = {name: Lane() for name in LANES}
        self._behind = self._lanes[BEHIND]
        self._coalescer = Coalescer()
        self._summary = Summary()
        self._end: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._batch: asyncio.TimerHandle | None = None
        self._batch_delay_s = 0.0
        self._hello = asyncio.Event()
        self._blocked = False
        self._messages: list[dict[str, object]] = []
        self._anchor: tuple[str, int] | None = None
        self._generation: tuple[str, int] | None = None
        self._detached_s: float | None = clock.monotonic_s()
        self._failing: str | None = None
        self._low = False
        self._since: datetime | None = None
        self._since_s = 0.0
        self._refusing = False
        self._refused_calls = self._refused_actions = self._lost = 0

    # -- the recorder -----------------------------------------------------------------------

    def attach(self, end: socket.socket) -> None:
        """Talk to a recorder, in place of the former one; what is not on the disk is sent again.

        Args:
            end: Our end of a SOCK_SEQPACKET pair; it is ours from here on.
        """
        self._detach()
        end.setblocking(False)
        self._end = end
        self._detached_s = None
        self._failing, self._low, self._blocked = None, False, False
        for lane in self._lanes.values():
            lane.restart()
        if self._generation is not None:
            self._messages = [{"generation": list(self._generation)}]
        self._start().add_reader(end.fileno(), self._on_readable)
        self._send()

    async def wait_attached(self, timeout_s: float) -> None:
        """Wait until the recorder has said what it knows; ``anchor`` is true from then on.

        Raises:
            AuditUnavailable: There is none in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._hello.wait()
        except TimeoutError:
            raise AuditUnavailable from None

    @property
    def anchor(self) -> tuple[str, int] | None:
        """The store that the log has seen last, in hex, and how far that had come at least."""
        return self._anchor

    def report_generation(self, store_id: bytes, generation: int) -> None:
        """Have later checkpoints say how far the store has come."""
        found = (store_id.hex(), generation)
        if found == self._generation:
            return
        self._generation = found
        self._messages = [it for it in self._messages if "generation" not in it]
        self._messages.append({"generation": list(found)})
        if self._end is not None:
            self._send()

    # -- records ----------------------------------------------------------------------------

    async def record(self, record: Mapping[str, object]) -> None:
        """Record what somebody does; on return it is on the disk (I8).

        An outcome is kept and written later where it can't be written now: what it tells of has
        happened. An intent that can't be is taken back, and leaves a refused outcome instead.

        Raises:
            AuditUnavailable: It is not on the disk: after the time limit, or at once where that is
                known.
        """
        is_outcome = record.get("phase") == "outcome"
        lane = self._lanes[DURABLE]
        failing = self.problem is not None or _is_full(lane, _MAX_DURABLE)
        if failing and not is_outcome:
            self._note_refused_action(record)
            raise AuditUnavailable
        loop = self._start()
        item = Item(self._build(record), self._clock.monotonic_s(), loop.create_future())
        lane.put(item)
        self._send_soon(0.0)
        if failing:
            raise AuditUnavailable
        assert item.waiter is not None  # noqa: S101
        done, _ = await asyncio.wait({item.waiter}, timeout=self._settings.timeout_s)
        if done:
            return
        if not is_outcome:
            was_sent = not lane.withdraw(item)
            self._note_refused_action(record, intent=item.body if was_sent else "")
        raise AuditUnavailable

    def note(self, record: Mapping[str, object]) -> None:
        """Record a service's call or the like, within a second. Never blocks; bounded."""
        if not self.takes_each and record.get("event") in SERVICE_EVENTS:
            self._start()
            self._summary.add(record, self._clock.monotonic_s(), self._now())
            return
        if self._has_room_behind():
            self._put_behind(self._build(record))

    def note_text(self, fields: str) -> None:
        """Record a service's call, as :meth:`note` does; only where ``takes_each``.

        Args:
            fields: The record's fields, as JSON that ``build_body`` would make of them, without
                braces, and without id, time and worker.
        """
        if self._has_room_behind():
            self._number += 1
            name = f"{self._prefix}{self._number:x}"
            self._put_behind(f'"id":"{name}","time":"{self._now()}",{fields},"worker":{self._pid}')

    def _has_room_behind(self) -> bool:
        if _is_full(self._behind, self._settings.buffer_records + _MAX_IN_FLIGHT):
            self._lost += 1
            return False
        return True

    def _put_behind(self, body: str) -> None:
        lane = self._behind
        lane.put(Item(body, self._clock.monotonic_s()))
        if self._batch is None or lane.waiting_count >= _BATCH_RECORDS:
            self._send_soon(0.0 if lane.waiting_count >= _BATCH_RECORDS else _BATCH_S)

    def note_refusal(self, record: Mapping[str, object]) -> None:
        """Record that a caller was refused: the first time at once, then as counts."""
        self._start()
        caller = record.get("caller")
        uid = caller.get("uid") if isinstance(caller, dict) else None
        key = (uid if isinstance(uid, int) else -1, f"{record.get('event')} {record.get('reason')}")
        now_s = self._clock.monotonic_s()
        if self._coalescer.note(key, record, now_s, self._now()):
            self._put_refused(record)

    def require_service_calls(self) -> None:
        """Return where services' calls may be served now.

        Raises:
            AuditUnavailable: They are not, because they could not be recorded.
        """
        if self._refusing or self._has_full_buffer():
            self._refused_calls += 1
            raise AuditUnavailable

    # -- what is wrong ----------------------------------------------------------------------

    @property
    def problem(self) -> AuditProblem | None:
        """Why nothing can be recorded now; None where all is well."""
        reason = self._find_reason()
        self._refusing = reason is not None and self._refuses_calls()
        if reason is None:
            if self._since is not None:
                self._note_restored(self._since)
            return None
        summary, remedy = problems.TEXTS[reason]
        if self._since is None:
            self._since, self._since_s = self._clock.now(), self._clock.monotonic_s()
            event(
                _log,
                severity_of(reason).log_level,
                "audit log fails",
                reason=reason,
                what_to_do=remedy,
            )
        return AuditProblem(reason, summary, remedy, self._since, self._refusing)

    def _find_reason(self) -> str | None:
        now_s = self._clock.monotonic_s()
        timeout_s = self._settings.timeout_s
        if self._detached_s is not None:
            return problems.NO_RECORDER if now_s - self._detached_s > timeout_s else None
        if self._failing is not None:
            return self._failing
        for name, lane in self._lanes.items():
            slack_s = 0.0 if name == DURABLE else _BATCH_S + _SYNC_S
            if lane.oldest_s is not None and now_s - lane.oldest_s > timeout_s + slack_s:
                return problems.NOT_RESPONDING
        return problems.BUFFER_FULL if self._has_full_buffer() else None

    def _has_full_buffer(self) -> bool:
        return _is_full(self._behind, self._settings.buffer_records)

    def _refuses_calls(self) -> bool:
        return self._settings.on_failure == "refuse" or self._has_full_buffer()

    def _note_restored(self, since: datetime) -> None:
        lasted_s = int(self._clock.monotonic_s() - self._since_s)
        details = {
            "since": format_time(since),
            "lasted_s": lasted_s,
            "lost": self._lost,
            "refused_calls": self._refused_calls,
            "refused_actions": self._refused_actions,
        }
        event(_log, logging.WARNING, "audit log works again", lasted_s=lasted_s, lost=self._lost)
        self._since = None
        self._lost = self._refused_calls = self._refused_actions = 0
        self.note({"event": "audit.restored", "outcome": "ok", "details": details})

    def _note_refused_action(self, record: Mapping[str, object], *, intent: str = "") -> None:
        """Record that an action was refused because it could not be recorded.

        Args:
            record: Its intent.
            intent: The intent's body, if that may be in the log by now.
        """
        if record.get("phase") != "intent":
            return  # it tells of what has happened by itself
        self._refused_actions += 1
        known = ("event", "caller", "key", "version", "request_id", "access")
        refused = {name: record[name] for name in known if name in record}
        refused |= {"outcome": "refused", "reason": _REFUSED_REASON}
        if not intent:
            self.note_refusal(refused)
            return
        identity = intent.split('"', 4)[3]
        self._put_refused({**refused, "phase": "outcome", "details": {"intent": identity}})

    # -- sending ----------------------------------------------------------------------------

    def _build(self, record: Mapping[str, object]) -> str:
        self._number += 1
        return build_body(record, f"{self._prefix}{self._number:x}", self._now(), self._pid)

    def _now(self) -> str:
        return format_time(self._clock.now())

    def _put_refused(self, record: Mapping[str, object]) -> None:
        lane = self._lanes[REFUSED]
        if _is_full(lane, _MAX_REFUSED):
            self._lost += 1
            return
        lane.put(Item(self._build(record), self._clock.monotonic_s()))
        self._send_soon(_BATCH_S)

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._tick = self._loop.call_later(_TICK_S, self._on_tick)
        return self._loop

    def _on_tick(self) -> None:
        loop = self._start()
        self._tick = loop.call_later(_TICK_S, self._on_tick)
        self._take_counts(everything=False)
        _ = self.problem  # its beginning and its end are taken note of

    def _take_counts(self, *, everything: bool) -> None:
        now_s = self._clock.monotonic_s()
        for record in self._coalescer.take_due(now_s, everything=everything):
            self._put_refused(record)
        for record in self._summary.take_due(now_s, everything=everything):
            self.note(record)

    def _send_soon(self, delay_s: float) -> None:
        loop = self._start()
        if self._batch is not None:
            if delay_s >= self._batch_delay_s:
                return
            self._batch.cancel()
        self._batch, self._batch_delay_s = loop.call_later(delay_s, self._send), delay_s

    def _send(self) -> None:
        if self._batch is not None:
            self._batch.cancel()
            self._batch = None
        if self._end is None or self._blocked:
            return
        try:
            while self._messages:
                self._end.send(encode_message(self._messages[0]))
                self._messages.pop(0)
            for name, lane in self._lanes.items():
                while lane.has_waiting and (not self._low or name == REFUSED):
                    items = lane.peek()
                    self._end.send(encode_records(name, (item.body for item in items)))
                    lane.mark_sent(len(items))
        except BlockingIOError:
            self._blocked = True
            self._start().add_writer(self._end.fileno(), self._on_writable)
        except OSError:
            self._detach()

    def _on_writable(self) -> None:
        if self._end is not None:
            self._start().remove_writer(self._end.fileno())
        self._blocked = False
        self._send()

    def _on_readable(self) -> None:
        try:
            while self._end is not None:
                data = self._end.recv(MAX_PACKET_BYTES)
                if not data:
                    self._detach()
                    return
                self._take(parse_packet(data))
        except BlockingIOError:
            return
        except (OSError, WireError):
            self._detach()

    def _take(self, packet: tuple[str, list[bytes]] | dict[str, Any]) -> None:
        match packet:
            case {"ack": dict(totals)}:
                for name, lane in self._lanes.items():
                    lane.acknowledge(int(totals.get(name, 0)))
            case {"failing": None | str() as reason, "low": bool(low)}:
                self._failing, was_low, self._low = reason, self._low, low
                if was_low and not low:
                    self._send()
            case {"hello": True, "anchor": anchor}:
                self._anchor = None if anchor is None else (str(anchor[0]), int(anchor[1]))
                self._hello.set()
            case _:
                raise WireError("the recorder said something unknown")
        if self._since is not None or self._failing is not None:
            _ = self.problem

    def _detach(self) -> None:
        if self._end is None:
            return
        loop = self._start()
        loop.remove_reader(self._end.fileno())
        loop.remove_writer(self._end.fileno())
        self._end.close()
        self._end = None
        self._detached_s = self._clock.monotonic_s()
        self._hello.clear()

    # -- the end ----------------------------------------------------------------------------

    async def flush(self, timeout_s: float | None = None) -> bool:
        """Have everything written; return whether all of it is on the disk within the time.

        Args:
            timeout_s: ``[audit] timeout`` unless given.
        """
        self._take_counts(everything=True)
        limit_s = self._settings.timeout_s if timeout_s is None else timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while any(self._lanes.values()):
                    self._send()
                    self._sync()
                    await asyncio.sleep(_POLL_S)
        return not any(self._lanes.values())

    def _sync(self) -> None:
        """Ask for what was sent to be put on the disk now."""
        if self._end is not None and not self._blocked:
            with contextlib.suppress(OSError):
                self._end.send(encode_message({"sync": True}))

    async def close(self) -> None:
        """Have everything written, as far as that can be done in time, and let the recorder go."""
        await self.flush()
        left = sum(map(len, self._lanes.values()))
        if left:
            event(_log, logging.ERROR, "records are lost: the audit log took no more", count=left)
        self._detach()
        for handle in (self._tick, self._batch):
            if handle is not None:
                handle.cancel()
        self._tick = self._batch = None


def _is_full(lane: Lane, most: int) -> bool:
    """Return whether so many records wait already, or as many bytes as so many may have."""
    return len(lane) >= most or lane.size_bytes >= most * _BYTES_PER_RECORD
