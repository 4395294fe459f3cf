"""A supervisor's part in authentication, and nothing else of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from keyside_sidecar.children import Children
from keyside_sidecar.loop import Loop
from keyside_sidecar.pam.desk import Desk
from keyside_sidecar.pam.errand import Errand
from keyside_sidecar.pam.helper import LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyside_sidecar.pam.errand import Purpose

PATIENCE_S = 20.0


class Waiting:
    """A worker's end, and what comes back through it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)
        self._answer = b""
        self.ended = False

    def poll(self) -> bool:
        """Take what has come; return whether the other end is closed."""
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                part = self._receive()
                self._answer += part
                self.ended = not part
        if self.ended:
            self.close()
        return self.ended

    def close(self) -> None:
        """Wait no longer."""
        self._end.close()

    def _receive(self) -> bytes:
        try:
            return self._end.recv(4096)
        except ConnectionResetError:  # the other end was closed with the password unread
            return b""

    @property
    def answer(self) -> dict[str, Any] | None:
        """What was answered; None where the other end closed without a word."""
        assert self.ended
        return json.loads(self._answer) if self._answer else None


class Scene:
    """A desk on a loop of its own, with the wall clock or another."""

    def __init__(
        self,
        service: str,
        *,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loop = Loop()
        self._begun: list[Waiting] = []
        self.children = Children()
        self.desk = Desk(
            self.loop, self.children, service=service, timeout_s=timeout_s, clock=clock
        )

    def begin(self, uid: int, password: bytes | None) -> Waiting:
        """Ask, as a worker does; None: about the account alone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        purpose: Purpose = "account"
        if password is not None:
            purpose = "authenticate"
            ours.send(LENGTH.pack(len(password)) + password)
        self.desk.take(Errand(uid, purpose), theirs)
        self._begun.append(Waiting(ours))
        return self._begun[-1]

    def ask(self, uid: int, password: bytes | None) -> str | None:
        """Ask, and wait until the supervisor knows too; return the outcome."""
        waiting = self.begin(uid, password)
        self.turn_until(waiting.poll)
        self.turn_until(lambda: not len(self.desk))
        return None if waiting.answer is None else waiting.answer["outcome"]

    def close(self) -> None:
        """End what is under way."""
        self.desk.close()
        for waiting in self._begun:
            waiting.close()
        self.turn_until(lambda: not len(self.desk))
        self.loop.close()

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop, which nothing but time wakes here."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.loop.after(0.005, lambda: None)
            self.loop.turn()
            self.children.reap()


@contextlib.contextmanager
def made_scene(
    service: str, *, timeout_s: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Scene]:
    """Give a scene; it leaves no process and no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    scene = Scene(service, timeout_s=timeout_s, clock=clock)
    try:
        yield scene
    finally:
        scene.close()
    assert len(os.listdir("/proc/self/fd")) == before
