"""A supervisor with one worker, which authenticates with the password on its standard input.

Run as a program, so that its memory has nothing of the test's.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from keyside_sidecar.admission import Ledger
from keyside_sidecar.children import Children
from keyside_sidecar.crew import Crew
from keyside_sidecar.loop import Loop
from keyside_sidecar.pam.authenticator import Authenticator
from keyside_sidecar.pam.desk import Desk

if TYPE_CHECKING:
    import socket

    from keyside_sidecar.handover import Channel


def main(service: str, uid: int) -> None:
    loop, children, ledger = Loop(), Children(), Ledger(1, 1)
    ended: list[int] = []
    desk = Desk(loop, children, service=service, timeout_s=60)
    crew = Crew(
        loop,
        children,
        ledger,
        on_ready=lambda _member: None,
        on_room=lambda: None,
        on_ended=lambda _member, code: ended.append(code),
        on_pam=desk.take,
    )
    ledger.add(uid, crew.fork(lambda channel: work(channel, uid)).index)
    while not ended:
        loop.after(0.01, lambda: None)
        loop.turn()
        children.reap()


def work(channel: Channel, uid: int) -> int:
    def post(fields: dict[str, Any], end: socket.socket) -> None:
        channel.send(fields, (end.fileno(),))
        end.close()

    password = sys.stdin.buffer.readline().rstrip(b"\n")
    asyncio.run(Authenticator(post, timeout_s=60).authenticate(uid, password))
    return 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
