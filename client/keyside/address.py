"""How the sidecar's socket is spelt, and which one is meant when nobody says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from keyside.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SOCKET: Final = "/run/keyside/keyside.sock"
SOCKET_VARIABLE: Final = "KEYSIDE_SOCKET"
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path is 108 bytes with its NUL, unix(7)


def choose_socket(
    given: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ
) -> str:
    """Return the absolute path of the socket to use.

    Args:
        given: A path, ``unix:PATH`` or ``unix://PATH``; ``None`` takes ``KEYSIDE_SOCKET`` from
            ``environ`` and, where that is unset or empty, /run/keyside/keyside.sock.
        environ: The environment.

    Raises:
        InvalidArgument: It is spelt otherwise, or longer than the kernel allows. Reason
            ``INVALID_SOCKET``.
    """
    if given is not None:
        return parse_socket(os.fspath(given))
    return parse_socket(environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


def parse_socket(text: str) -> str:
    """Return the absolute path that ``text`` spells, taken from the current directory.

    Raises:
        InvalidArgument: As for ``choose_socket``.
    """
    path = text
    if text.startswith("unix://"):
        path = text.removeprefix("unix://")
        if not path.startswith("/"):
            raise _wrong("after unix:// comes an absolute path")
    elif text.startswith("unix:"):
        path = text.removeprefix("unix:")
    elif text.startswith(("unix-abstract:", "@")) or "://" in text:
        raise _wrong("only Unix sockets in the file system are supported")
    if not path or "\0" in path:
        raise _wrong("it is empty or holds a NUL character")
    # Not os.path.abspath: it takes "a/../b" for "b", which a symbolic link makes untrue.
    if not path.startswith("/"):
        try:
            path = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118
        except FileNotFoundError:
            raise _wrong(
                f"{path} is relative, and the working directory does not exist any more",
                "give an absolute path",
            ) from None
    check_length(path)
    return path


def check_length(path: str) -> None:
    """Raise where the kernel could not bind or connect to a path of this length.

    Raises:
        InvalidArgument: Longer than 107 bytes.
    """
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH_BYTES:
        raise _wrong(f"its path has {length} bytes; Linux allows {MAX_SOCKET_PATH_BYTES}")


def grpc_target(path: str) -> str:
    """Return gRPC's name for the socket at ``path``; gRPC reads it as a URI."""
    return "unix:" + quote(os.fsencode(path), safe="/")


def _wrong(why: str, remedy: str = "give a path, unix:PATH or unix:///PATH") -> InvalidArgument:
    return InvalidArgument(
        f"the socket is not spelt right: {why}",
        reason="INVALID_SOCKET",
        remedy=remedy,
    )
