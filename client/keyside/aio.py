"""The client for asyncio. ``keyside.client`` has the same for threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeVar

from keyside import _fork
from keyside._attempts import DEFAULT_TIMEOUT_S, Attempts, check_timeout, closed_error
from keyside.address import choose_socket
from keyside.errors import ClosedClient, KeysideError, Unavailable
from keyside.socket_check import ExpectedOwner, check_socket, is_unchanged

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from keyside._channel import AsyncLink
    from keyside.facts import Key, KeyVersion, Rotation, Status
    from keyside.v1 import keys_pb2

_Answer = TypeVar("_Answer")


class AsyncClient:
    """Calls the sidecar on this host, from one event loop.

    Guarantees and arguments are those of ``keyside.Client``; methods, arguments and errors are the
    same, awaited. Bound to the event loop of its first call: another loop's calls raise
    ``ClosedClient`` with reason ``OTHER_LOOP``. Looking at the path to the socket happens in a
    thread, off the loop.

    Forks: one that was made, but not used, before a fork works in every child. Forking while one
    is open spoils the child: every client there raises ``ClosedClient`` with reason ``FORKED``,
    and the child may hang as it exits, in grpcio's destructors. Close it before you fork.

    Args:
        socket: As for ``keyside.Client``.
        timeout_s: As for ``keyside.Client``.
        expected_owner: As for ``keyside.Client``.
        retry: As for ``keyside.Client``.

    Raises:
        InvalidArgument: ``socket`` or ``timeout_s`` is not valid.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        expected_owner: int | str | None = None,
        retry: bool = True,
    ) -> None:
        self._socket = choose_socket(socket)
        self._timeout_s = check_timeout(timeout_s)
        self._owner = ExpectedOwner(expected_owner)
        self._retry = retry
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: AsyncLink | None = None
        self._replaced: list[AsyncLink] = []
        self._suspect = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<keyside.AsyncClient unix:{self._socket}>"

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

    async def encrypt(
        self,
        key: str,
        plaintext: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """Seal a plaintext under the key's current version and a fresh data key.

        Args:
            key: The key's name.
            plaintext: At most the sidecar's ``max_plaintext_bytes`` (1 MiB unless configured).
            context: Pairs bound to the envelope, neither secret nor stored in it; the same must
                be given to ``decrypt``. At most 32; a name has 1 to 128 bytes, a value at most
                1,024, of UTF-8.
            timeout_s: For this call, instead of the client's.

        Returns:
            The envelope: keep it whole. It names key and version itself.

        Raises:
            InvalidArgument: A value is not valid or beyond its limit, which the message states.
            NotPermitted: Policy refuses, or there is no such key.
            LimitExceeded: Too many calls at once, or too large a message.
            Unavailable: The sidecar is away, also after repetitions.
            UntrustedSocket: Someone else may have made the socket; nothing was sent.
            KeysideError: Anything else; see ``keyside.errors``.
        """
        from keyside._messages import encrypt_request

        request = encrypt_request(key, plaintext, context)
        answer = await self._call(
            lambda link, limit_s: link.encryption.Encrypt(request, timeout=limit_s), timeout_s
        )
        return answer.envelope

    async def decrypt(
        self,
        envelope: bytes | bytearray | memoryview,
        context: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """Open an envelope made under any version that is not disabled or destroyed.

        Args:
            envelope: What ``encrypt`` or ``rewrap`` returned, whole.
            context: The pairs given to ``encrypt``.
            timeout_s: For this call, instead of the client's.

        Raises:
            EnvelopeRejected: It does not open; deliberately no more is said.
            VersionUnusable: Its key version is disabled or destroyed.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import decrypt_request

        request = decrypt_request(envelope, context)
        answer = await self._call(
            lambda link, limit_s: link.encryption.Decrypt(request, timeout=limit_s), timeout_s
        )
        return answer.plaintext

    async def rewrap(
        self, envelope: bytes | bytearray | memoryview, *, timeout_s: float | None = None
    ) -> bytes:
        """Move an envelope's data key under the key's current version.

        The payload is carried over unopened: this needs no context, says nothing about the
        payload's integrity, and does not cure a leaked version. Needs the permission to decrypt.

        Args:
            envelope: A whole envelope, or its wrapping header alone (docs/envelope.md).
            timeout_s: For this call, instead of the client's.

        Returns:
            What was given, with the wrapping header replaced.

        Raises:
            KeysideError: As for ``decrypt``.
        """
        from keyside._messages import rewrap_request

        request = rewrap_request(envelope)
        answer = await self._call(
            lambda link, limit_s: link.encryption.Rewrap(request, timeout=limit_s), timeout_s
        )
        return answer.envelope

    async def list_keys(self, *, timeout_s: float | None = None) -> list[Key]:
        """Return the keys that this caller may see, by name.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_key
        from keyside.v1 import keys_pb2

        request = keys_pb2.ListKeysRequest()
        answer = await self._call(
            lambda link, limit_s: link.keys.ListKeys(request, timeout=limit_s), timeout_s
        )
        return [read_key(key) for key in answer.keys]

    async def get_key(self, name: str, *, timeout_s: float | None = None) -> Key:
        """Return one key.

        Raises:
            NotPermitted: Policy refuses, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import get_key_request, read_key

        return read_key((await self._get_key(get_key_request(name, page_size=1), timeout_s)).key)

    def iter_versions(
        self, name: str, *, page_size: int = 100, timeout_s: float | None = None
    ) -> AsyncIterator[KeyVersion]:
        """Return an asynchronous iterator over all of a key's versions, newest first.

        It makes one call per page.

        Args:
            name: The key's name.
            page_size: Versions per call, 1 to 1,000.
            timeout_s: For each call, instead of the client's.

        Raises:
            KeysideError: As for ``get_key``; the iterator raises it as well.
        """
        from keyside._messages import get_key_request, read_version

        request = get_key_request(name, page_size)

        async def iterate() -> AsyncIterator[KeyVersion]:
            while True:
                answer = await self._get_key(request, timeout_s)
                for version in answer.versions:
                    yield read_version(version)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return iterate()

    async def rotate_key(
        self, name: str, expected_current: int | None = None, *, timeout_s: float | None = None
    ) -> Rotation:
        """Make a new current version and archive its predecessor. For operators.

        Args:
            name: The key's name.
            expected_current: Rotate only if this is the current version's number. With it the call
                is repeated while the sidecar is unavailable; without it, never.
            timeout_s: For this call, instead of the client's.

        Raises:
            Conflict: Another version is current.
            NotPermitted: The caller is no operator, or there is no such key.
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_rotation, rotate_request

        request = rotate_request(name, expected_current)
        return read_rotation(
            await self._call(
                lambda link, limit_s: link.keys.RotateKey(request, timeout=limit_s),
                timeout_s,
                repeatable=expected_current is not None,
            )
        )

    async def status(self, *, timeout_s: float | None = None) -> Status:
        """Return how the sidecar is, and who it thinks is asking. Any caller may ask.

        Raises:
            KeysideError: As for ``encrypt``.
        """
        from keyside._messages import read_status
        from keyside.v1 import status_pb2

        request = status_pb2.GetStatusRequest()
        return read_status(
            await self._call(
                lambda link, limit_s: link.status.GetStatus(request, timeout=limit_s), timeout_s
            )
        )

    async def _get_key(
        self, request: keys_pb2.GetKeyRequest, timeout_s: float | None
    ) -> keys_pb2.GetKeyResponse:
        return await self._call(
            lambda link, limit_s: link.keys.GetKey(request, timeout=limit_s), timeout_s
        )

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
        """Return the answer or what went wrong; see ``Client._attempt``."""
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
