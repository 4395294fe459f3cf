"""Watch over the public socket's file: removed, renamed or replaced, nobody reaches the sidecar.

    IN PLACE ──look: another file, or none──► LOST ──bound again, or put back──► IN PLACE
                                               └──can't: an alarm, and again at the next look

One look a second costs two system calls. What is in the socket's place is never removed, unless it
is a socket that nobody answers on. Connections that are open go on in all of this.
"""

from __future__ import annotations

import logging
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyside.timestamps import format_timestamp
from keyside_sidecar.errors import StartupError
from keyside_sidecar.log import event
from keyside_sidecar.peer.listener import find_file_id
from keyside_sidecar.serving import Notice

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from keyside_sidecar.loop import Loop
    from keyside_sidecar.peer.listener import Listener

_log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
# Looks until something that stays in the way is asked again whether it is alive.
_PATIENCE: Final = 10
# How long status tells of what is over.
_TELL_S: Final = 600.0


class SocketWatch:
    """Notices that the socket can't be reached by its path, and mends it where that is safe.

    Args:
        loop: The supervisor's.
        listener: The public socket.
        on_bound: Called with the former socket when another one is in its place.
        on_notice: Called with what status is to say of it; None: nothing any more.
        record: Takes a record for the audit log.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        *,
        on_bound: Callable[[socket.socket], None],
        on_notice: Callable[[Notice | None], None],
        record: Callable[[dict[str, object]], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._on_bound = on_bound
        self._on_notice = on_notice
        self._record = record
        self._is_lost = False
        self._ended = False
        # Why it could not be bound, what stood in the way, and for how many looks it has.
        self._why = ""
        self._obstacle: tuple[int, int] | None = None
        self._looks = 0
        self._told = 0

    def begin(self) -> None:
        """Look once a second from now on."""
        self._loop.after(_LOOK_S, self._look)

    def end(self) -> None:
        """Look no more: the sidecar stops."""
        self._ended = True

    def _look(self) -> None:
        if self._ended:
            return
        self._loop.after(_LOOK_S, self._look)
        if not self._listener.is_in_place():
            if not self._is_lost:
                self._note_lost()
            if self._may_try():
                self._bind_again()
            return
        if self._is_lost:
            self._note_mended("put back")
        try:
            self._listener.keep_lock()
        except (StartupError, OSError) as error:
            event(_log, logging.WARNING, "the socket's lock can't be taken", error=str(error))

    def _may_try(self) -> bool:
        """Return whether something is different from when it failed, or enough time has passed."""
        obstacle = find_file_id(self._listener.path)
        self._looks += 1
        if obstacle is None or obstacle != self._obstacle or self._looks >= _PATIENCE:
            self._obstacle, self._looks = obstacle, 0
            return True
        return False

    def _bind_again(self) -> None:
        try:
            former = self._listener.bind_again()
        except StartupError as error:
            self._note_failed(str(error), error.remedy)
        except OSError as error:
            self._note_failed(str(error), "see what it is in the way of the socket")
        else:
            self._on_bound(former)
            self._note_mended("bound again")

    def _note_lost(self) -> None:
        self._is_lost = True
        found = _describe(self._listener.path)
        event(
            _log,
            logging.ERROR,
            "the socket's file is not in its place",
            socket=self._listener.path,
            found=found,
        )
        details = {"why": f"at its path there is {found}"}
        self._record({"event": "socket.lost", "outcome": "failed", "details": details})

    def _note_failed(self, why: str, remedy: str) -> None:
        if why == self._why:
            return
        self._why = why
        event(
            _log,
            logging.ERROR,
            "the socket can't be bound again; nobody new can connect",
            socket=self._listener.path,
            error=why,
            what_to_do=remedy,
        )
        summary = f"nobody new can connect: {self._listener.path} is not our socket any more; {why}"
        self._on_notice(Notice("SOCKET_LOST", summary, remedy, is_alarm=True))

    def _note_mended(self, how: str) -> None:
        self._is_lost, self._why, self._obstacle, self._looks = False, "", None, 0
        path = self._listener.path
        event(_log, logging.WARNING, "the socket is in its place", socket=path, how=how)
        self._record({"event": "socket.restored", "outcome": "ok", "details": {"why": how}})
        at = format_timestamp(datetime.now(UTC))
        summary = f"the socket's file was not in its place, and was {how} at {at}"
        place = Path(path).parent
        remedy = f"find out what removed it; keep cleaners of temporary files out of {place}"
        self._on_notice(Notice("SOCKET_WAS_LOST", summary, remedy))
        self._told += 1
        told = self._told
        self._loop.after(_TELL_S, lambda: self._forget(told))

    def _forget(self, told: int) -> None:
        if told == self._told and not self._is_lost:
            self._on_notice(None)


def _describe(path: str) -> str:
    try:
        mode = Path(path).lstat().st_mode
    except OSError:
        return "nothing"
    if stat.S_ISSOCK(mode):
        return "another socket"
    return "a directory" if stat.S_ISDIR(mode) else "a file that is no socket"
