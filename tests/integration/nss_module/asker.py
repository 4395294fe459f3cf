"""Asks the sidecar's name service what it is told to, one JSON object a line.

Run in a process of its own: libc reads its configuration once, and loads modules for good.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyside_sidecar.clock import SystemClock
from keyside_sidecar.errors import Refused
from keyside_sidecar.peer import libc
from keyside_sidecar.peer.accounts import Account, NameService, NameServiceUnavailable
from keyside_sidecar.peer.membership import Membership
from keyside_sidecar.peer.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Callable


class Asker:
    """Answers one request after the other."""

    def __init__(self, sssd_socket: str) -> None:
        self._names = NameService(Switch(sssd_socket=Path(sssd_socket)))
        self._membership: Membership | None = None
        self._runner = asyncio.Runner()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return ``{"answer": …}``, ``{"outage": …}`` or ``{"refused": …}``."""
        try:
            return {"answer": self._ask(**request)}
        except NameServiceUnavailable as outage:
            return {"outage": str(outage)}
        except Refused as refused:
            return {"refused": refused.reason.name}

    def _ask(self, what: str, **arguments: Any) -> Any:
        questions: dict[str, Callable[..., Any]] = {
            "libc account": self._ask_libc_account,
            "libc groups": lambda name, gid: sorted(libc.list_gids(name.encode(), gid)),
            "account": self._ask_account,
            "uid_of": self._names.uid_of,
            "gid_of": self._names.gid_of,
            "groups": self._ask_groups,
            "remember": self._remember,
            "identify": lambda uid: sorted(self._runner.run(self._identify(uid))),
        }
        return questions[what](**arguments)

    def _ask_libc_account(self, uid: int) -> str | int | None:
        try:
            entry = libc.find_passwd(uid)
        except OSError as error:
            return error.errno
        return None if entry is None else entry.name.decode()

    def _ask_account(self, uid: int) -> tuple[str, int, int] | None:
        account = self._names.account(uid)
        return None if account is None else (account.name, account.uid, account.gid)

    def _ask_groups(self, name: str, gid: int, relevant: list[int]) -> list[int]:
        return sorted(self._names.group_ids(Account(name, 0, gid), relevant))

    def _remember(self, **settings: Any) -> None:
        self._membership = Membership(self._names, clock=SystemClock(), **settings)

    async def _identify(self, uid: int) -> frozenset[int]:
        assert self._membership is not None
        return (await self._membership.identify(uid)).gids


def main() -> None:
    """Answer until there are no more requests."""
    asker = Asker(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(asker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
