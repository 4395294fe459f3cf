"""Where workers have people's passwords checked: forks the helpers, and counts failures.

    asked ──the uid must wait──► "limited"
      └─► ──too many under way──► "busy"
            └─► helper forked ──exits──► counted by its exit code
                      └──pam_timeout──► killed, with all that it started ──► counted as a failure

Whoever waits for the answer reads it from the socket that came with the request: from the helper,
or from here where there is none. The end of that socket without an answer means "unavailable". The
password stays in the socket until the helper reads it; the supervisor never does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.log import event
from keyside_sidecar.pam.errand import REMEDIES, Errand, Outcome, read_exit_code
from keyside_sidecar.pam.family import kill_family
from keyside_sidecar.pam.helper import run_helper
from keyside_sidecar.pam.limits import FailureLimits
from keyside_sidecar.pam.transaction import load_pam

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.children import Children
    from keyside_sidecar.loop import Loop
    from keyside_sidecar.pam.errand import Verdict

_log = logging.getLogger(__name__)

MAX_HELPERS: Final = 8
"""Under way at once, for each purpose."""

_BUSY_RETRY_S: Final = 1.0
_REPORT_EVERY_S: Final = 30.0


@dataclass(slots=True, eq=False)
class _Helper:
    errand: Errand
    pid: int = 0
    overdue: bool = False


class Desk:
    """Has the helpers.

    Args:
        loop: The supervisor's.
        children: What forks.
        service: PAM's name for us.
        timeout_s: How long a helper may take.
        clock: Seconds that never go backwards.

    Raises:
        StartupError: The host has no PAM.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        *,
        service: str,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        load_pam()
        self._loop = loop
        self._children = children
        self._service = service
        self._timeout_s = timeout_s
        self._clock = clock
        self._limits = FailureLimits(clock)
        self._helpers: set[_Helper] = set()
        self._reported_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._helpers)

    def take(self, errand: Errand, end: socket.socket) -> None:
        """See to it that ``end`` gets an answer, or is closed; never waits.

        Args:
            errand: What to do. Only authentications are limited in rate, and one uid has one at a
                time.
            end: Owned from now on.
        """
        with end:
            if errand.purpose == "authenticate":
                wait_s = self._limits.wait_s(errand.uid)
                if wait_s > 0:
                    _answer(end, Outcome.LIMITED, wait_s)
                    return
            if not self._has_room(errand):
                _answer(end, Outcome.BUSY, _BUSY_RETRY_S)
                return
            self._fork(errand, end)

    def adopt(self, *, service: str, timeout_s: float) -> None:
        """Go on with other settings; helpers under way and failures counted stay."""
        self._service = service
        self._timeout_s = timeout_s

    def close(self) -> None:
        """End every helper, and whatever they have started, at once."""
        for helper in self._helpers:
            kill_family(helper.pid)

    def _has_room(self, errand: Errand) -> bool:
        alike = [each.errand for each in self._helpers if each.errand.purpose == errand.purpose]
        uids = [each.uid for each in alike]
        return len(uids) < MAX_HELPERS and (errand.purpose == "account" or errand.uid not in uids)

    def _fork(self, errand: Errand, end: socket.socket) -> None:
        helper = _Helper(errand)
        supervisor_pid = os.getpid()
        try:
            helper.pid = self._children.fork(
                "keysided-pam",
                lambda: run_helper(end, errand, self._service, supervisor_pid),
                lambda code: self._note_ended(helper, code),
            )
        except OSError as error:
            self._report(f"no helper can be forked: {error}", "see what the host lacks")
            return
        self._helpers.add(helper)
        self._loop.after(self._timeout_s, lambda: self._end_overdue(helper))

    def _end_overdue(self, helper: _Helper) -> None:
        if helper in self._helpers:
            helper.overdue = True
            kill_family(helper.pid)

    def _note_ended(self, helper: _Helper, code: int) -> None:
        self._helpers.discard(helper)
        verdict = read_exit_code(code)
        if verdict.fault is not None:
            self._report(verdict.fault.value, REMEDIES[verdict.fault])
        elif verdict.outcome is Outcome.UNAVAILABLE:
            why = "it took too long" if helper.overdue else f"its process ended with {code}"
            self._report(f"PAM's helper failed: {why}", "see the modules of the PAM service")
        if helper.errand.purpose == "authenticate":
            self._count(helper.errand.uid, verdict)

    def _count(self, uid: int, verdict: Verdict) -> None:
        if verdict.fault is not None:
            return  # nothing was tried
        event(_log, logging.INFO, "authentication", uid=uid, outcome=verdict.outcome.value)
        if verdict.outcome is Outcome.OK:
            self._limits.note_success(uid)
        elif verdict.outcome is not Outcome.UNKNOWN_ACCOUNT:  # there is no password to be guessed
            self._limits.note_failure(uid)

    def _report(self, why: str, remedy: str) -> None:
        now_s = self._clock()
        if now_s - self._reported_s.get(why, -_REPORT_EVERY_S) >= _REPORT_EVERY_S:
            self._reported_s[why] = now_s
            event(_log, logging.ERROR, "people can't be authenticated", why=why, what_to_do=remedy)


def _answer(end: socket.socket, outcome: Outcome, retry_s: float) -> None:
    fields: dict[str, Any] = {"outcome": outcome.value, "retry_s": round(retry_s, 3)}
    with contextlib.suppress(OSError):  # the worker has gone, or takes no answer
        end.send(json.dumps(fields).encode() + b"\n", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
