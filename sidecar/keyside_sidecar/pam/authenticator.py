"""A worker's side: has the supervisor check people's passwords and accounts.

For each a pair of sockets is made. One end goes to the supervisor, which passes it on to PAM's
helper; through the other the password goes out and the outcome comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from typing import TYPE_CHECKING, Any, Final

from keyside_sidecar.errors import AuthenticationFailed
from keyside_sidecar.pam.errand import Outcome
from keyside_sidecar.pam.helper import LENGTH, MAX_PASSWORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyside_sidecar.pam.errand import Purpose

_GRACE_S: Final = 2.0
"""Beyond the helper's own time: the supervisor ends it, and says so by closing the socket."""

_MAX_ANSWER_BYTES: Final = 4096
_BUSY_PAUSE_S: Final = 0.1
_BUSY_PATIENCE_S: Final = 1.0
"""The supervisor learns a little later than we do that a helper has ended."""


class Authenticator:
    """Asks the supervisor. For one event loop.

    Args:
        post: Sends a packet to the supervisor, and a socket along, which it owns from then on.
        timeout_s: How long PAM's helper may take (``pam_timeout``).
    """

    def __init__(
        self, post: Callable[[dict[str, Any], socket.socket], None], *, timeout_s: float
    ) -> None:
        self._post = post
        self._timeout_s = timeout_s + _GRACE_S
        self._numbers = itertools.count(1)
        self._checks: dict[int, asyncio.Task[tuple[Outcome, float]]] = {}

    async def authenticate(self, uid: int, password: bytes) -> None:
        """Have PAM check a person's password and account.

        Args:
            uid: The account's.
            password: 1 to 1024 bytes without NUL; anything else is denied without asking. The copy
                that is made here is wiped, best effort; the argument is the caller's.

        Raises:
            AuthenticationFailed: It was not accepted, or could not be checked.
        """
        if not 0 < len(password) <= MAX_PASSWORD_BYTES or b"\0" in password:
            raise AuthenticationFailed(Outcome.DENIED.value)
        message = bytearray(LENGTH.size + len(password))
        LENGTH.pack_into(message, 0, len(password))
        message[LENGTH.size :] = password
        try:
            outcome, retry_s = await self._ask_until(_BUSY_PATIENCE_S, uid, "authenticate", message)
        finally:
            message[:] = bytes(len(message))
        _raise_unless_ok(outcome, retry_s)

    async def check_account(self, uid: int, *, afresh: bool = False) -> None:
        """Have PAM look at an account without a password: may its owner still use it?

        Checks of one uid at the same time are one. ``"busy"`` is tried again for as long as an
        answer may take.

        Args:
            uid: The account's.
            afresh: Whether one that is under way already won't do.

        Raises:
            AuthenticationFailed: It may not (``"locked"``, ``"expired"``, ``"password_expired"``,
                ``"denied"``, ``"unknown_account"``), or that can't be known now (``"busy"``,
                ``"unavailable"``).
        """
        task = self._checks.get(uid)
        if task is not None and afresh:
            await asyncio.wait((task,))
            task = self._checks.get(uid)  # one that has begun meanwhile, if any
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(
                self._ask_until(self._timeout_s, uid, "account", b"")
            )
            self._checks[uid] = task
            task.add_done_callback(lambda done: self._forget(uid, done))
        # Shielded: one who stops waiting must not end it for the others.
        _raise_unless_ok(*await asyncio.shield(task))

    def _forget(self, uid: int, done: asyncio.Task[tuple[Outcome, float]]) -> None:
        if self._checks.get(uid) is done:
            del self._checks[uid]

    async def _ask_until(
        self, patience_s: float, uid: int, purpose: Purpose, message: bytes | bytearray
    ) -> tuple[Outcome, float]:
        """Ask, and for so long ask again where the answer is "busy"."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        while True:
            outcome, retry_s = await self._ask(uid, purpose, message)
            if outcome is not Outcome.BUSY or loop.time() >= until_s:
                return outcome, retry_s
            await asyncio.sleep(_BUSY_PAUSE_S)

    async def _ask(
        self, uid: int, purpose: Purpose, message: bytes | bytearray
    ) -> tuple[Outcome, float]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            ours.setblocking(False)
            ours.send(message)  # there is room for it: the pair is new
            self._post({"pam": next(self._numbers), "uid": uid, "what": purpose}, theirs)
            answer = b""
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(self._timeout_s):
                    answer = await _read_line(ours)
        return _parse(answer)


async def _read_line(end: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_ANSWER_BYTES:
        part = await loop.sock_recv(end, _MAX_ANSWER_BYTES)
        if not part:
            break
        line += part
    return line


def _parse(line: bytes) -> tuple[Outcome, float]:
    """Return what an answer says; UNAVAILABLE where it is none of ours, or none came."""
    try:
        fields = json.loads(line) if line.endswith(b"\n") else {}
        outcome = Outcome(fields["outcome"])
        retry_s = float(fields.get("retry_s", 0.0))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Outcome.UNAVAILABLE, 0.0
    return outcome, retry_s


def _raise_unless_ok(outcome: Outcome, retry_s: float) -> None:
    if outcome is not Outcome.OK:
        raise AuthenticationFailed(outcome.value, retry_s)
