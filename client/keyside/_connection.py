"""A Client's way to the sidecar: a checked socket, a channel, and calls made again."""

from __future__ import annotations

import time
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
from keyside.errors import KeysideError, Unavailable
from keyside.socket_check import ExpectedOwner, check_socket, is_unchanged

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from keyside._channel import Link
    from keyside.credential import Credential, Metadata

_Answer = TypeVar("_Answer")


class Connection:
    """Opens, checks and closes the connection, and makes calls on it; see ``Client``."""

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
        self._link: Link | None = None
        self._suspect = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<keyside.{type(self).__name__} unix:{self._socket}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calls under way in other threads raise ``ClosedClient``."""
        self._closed = True
        link = self._link
        if link is not None and link.generation == _fork.generation():
            with _fork.calling():
                link.channel.close()

    def _call(
        self,
        call: Callable[[Link, float], _Answer],
        timeout_s: float | None,
        *,
        repeatable: bool = True,
    ) -> _Answer:
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        attempts = Attempts(limit_s, repeatable=repeatable and self._retry)
        while True:
            answer = self._attempt(call, attempts)
            if not isinstance(answer, KeysideError):
                return answer
            time.sleep(attempts.pause_or_raise(answer))

    def _attempt(
        self, call: Callable[[Link, float], _Answer], attempts: Attempts
    ) -> _Answer | KeysideError:
        """Return the answer or what went wrong.

        ``_call`` raises it, outside this ``except``: so no gRPC error hangs on to it as context.
        """
        _fork.check_usable()
        try:
            link = self._open()
        except Unavailable as error:
            return error
        import grpc

        from keyside._translate import translate_status

        try:
            with _fork.calling():
                return call(link, attempts.remaining_s())
        except grpc.RpcError as error:
            if self._closed:
                return closed_error()
            if not isinstance(error, grpc.Call):
                raise
            code, text, metadata = error.code(), error.details(), error.trailing_metadata()
            problem = translate_status(code.name, text or "", metadata or (), self._socket)
            self._suspect = self._suspect or isinstance(problem, Unavailable)
            return problem
        except ValueError:  # gRPC's word for a closed channel
            if self._closed:
                return closed_error()
            raise

    def _metadata(self, credential: Credential | str | None = None) -> Metadata:
        """Return what goes with an encryption call: the grant's credential, where there is one."""
        return credential_metadata(as_credential(credential) or self._credential)

    def _long_timeout_s(self, timeout_s: float | None, least_s: float = LONG_TIMEOUT_S) -> float:
        return max(self._timeout_s, least_s) if timeout_s is None else timeout_s

    def _open(self) -> Link:
        if self._closed:
            raise closed_error()
        link = self._link
        if (
            link is not None
            and not self._suspect
            and link.generation == _fork.generation()
            and is_unchanged(link.trusted)
        ):
            return link
        with _fork.opening():
            return self._check_and_open()

    def _check_and_open(self) -> Link:
        trusted = check_socket(self._socket, self._owner)
        with _fork.calling():
            from keyside import _channel

            if self._closed:
                raise closed_error()
            link = self._link
            if link is not None and link.generation != _fork.generation():
                _fork.keep_inherited(link)
                link = None
            if link is not None and link.trusted.path == trusted.path:
                link = link.with_trusted(trusted)
            else:
                link = _channel.open_link(trusted)
            self._link = link
            self._suspect = False
            return link
