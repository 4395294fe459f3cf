"""An AsyncClient's way to the sidecar; ``keyside._connection`` is the same for threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeVar

from keyside import _fork
from keyside._attempts import (
    DEFAULT_TIMEOUT_S,
    LONG_TIMEOUT_S,
    Attempts,
    check_timeout,
    closed_error,
)
from keyside.address import choose_socket
from keyside.credential import as_credential, credential_metadata
from keyside.errors import ClosedClient, KeysideError, Unavailable
from keyside.socket_check import ExpectedOwner, check_socket, is_unchanged

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable

    from keyside._channel import AsyncLink
    from keyside.credential import Credential, Metadata

_Answer = TypeVar("_Answer")


class AsyncConnection:
    """Opens, checks and closes the connection, and makes calls on it; see ``AsyncClient``."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        expected_owner: int | str | None = None,
        retry: bool = True,
        credential: Credential | str | None = None,
    ) -> None:
        self._socket = choose_socket(socket)
        self._timeout_s = check_timeout(timeout_s)
        self._owner = ExpectedOwner(expected_owner)
        self._retry = retry
        self._credential = as_credential(credential)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: AsyncLink | None = None
        self._replaced: list[AsyncLink] = []
        self._suspect = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<keyside.{type(self).__name__} unix:{self._socket}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way in other tasks raise ``ClosedClient``."""
        self._closed = True
        links = [*self._replaced, self._link] if self._link else []
        for link in links:
            if link.generation == _fork.generation():
                await link.channel.close()
                _fork.note_closed(link.channel)

    async def _call(
        self,
        call: Callable[[AsyncLink, float], Awaitable[_Answer]],
        timeout_s: float | None,
        *,
        repeatable: bool = True,
    ) -> _Answer:
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        attempts = Attempts(limit_s, repeatable=repeatable and self._retry)
        while True:
            answer = await self._attempt(call, attempts)
            if not isinstance(answer, KeysideError):
                return answer
            await asyncio.sleep(attempts.pause_or_raise(answer))

    async def _attempt(
        self, call: Callable[[AsyncLink, float], Awaitable[_Answer]], attempts: Attempts
    ) -> _Answer | KeysideError:
        """Return the answer or what went wrong; see ``Connection._attempt``."""
        _fork.check_usable()
        self._bind_loop()
        try:
            link = await self._open()
        except Unavailable as error:
            return error
        import grpc.aio

        from keyside._translate import translate_status

        try:
            return await call(link, attempts.remaining_s())
        except grpc.aio.AioRpcError as error:
            if self._closed:
                return closed_error()
            problem = translate_status(
                error.code().name, error.details() or "", error.trailing_metadata(), self._socket
            )
            self._suspect = self._suspect or isinstance(problem, Unavailable)
            return problem
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # grpc.aio cancels the awaiting tasks of a channel that is closed; a task that somebody
            # else cancelled stays cancelled.
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                return closed_error()
            raise

    def _metadata(self, credential: Credential | str | None = None) -> Metadata:
        """Return what goes with an encryption call: the grant's credential, where there is one."""
        return credential_metadata(as_credential(credential) or self._credential)

    def _long_timeout_s(self, timeout_s: float | None, least_s: float = LONG_TIMEOUT_S) -> float:
        return max(self._timeout_s, least_s) if timeout_s is None else timeout_s

    def _bind_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ClosedClient(
                "this client belongs to another event loop",
                reason="OTHER_LOOP",
                remedy="make one AsyncClient per event loop",
            )

    async def _open(self) -> AsyncLink:
        if self._closed:
            raise closed_error()
        link = self._link
        if link is not None and not self._suspect and is_unchanged(link.trusted):
            return link
        trusted = await asyncio.to_thread(check_socket, self._socket, self._owner)
        from keyside import _channel

        if self._closed:
            raise closed_error()
        link = self._link
        if link is not None and link.trusted.path == trusted.path:
            link = link.with_trusted(trusted)
        else:
            if link is not None:
                self._replaced.append(link)  # other tasks' calls may be under way on it
            link = _channel.open_async_link(trusted)
        self._link = link
        self._suspect = False
        return link
