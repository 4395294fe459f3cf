"""The service manager's side of starting and stopping: sd_notify(3) and sd_listen_fds(3).

Without libsystemd: both are a few environment variables and a datagram.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from typing import Final

from keyside_sidecar.errors import StartupError

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START
_MAX_DESCRIPTORS: Final = 1024
_SEND_TIMEOUT_S: Final = 2.0
_LISTEN_VARIABLES: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_log: Final = logging.getLogger(__name__)


def sd_notify(state: str) -> bool:
    """Tell the service manager something, such as ``"READY=1"`` or ``"STOPPING=1"``.

    Silently nothing without ``NOTIFY_SOCKET``; a failure is logged and changes nothing else.

    Args:
        state: Assignments, one a line.

    Returns:
        Whether the message was handed over.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        _log.warning("NOTIFY_SOCKET names no Unix socket; the service manager was not told")
        return False
    target = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_SEND_TIMEOUT_S)  # a manager that doesn't read must not stop us
            channel.connect(target)
            channel.send(state.encode(), socket.MSG_NOSIGNAL)
    except OSError as error:
        _log.warning("the service manager could not be told: %s", error)
        return False
    return True


def listen_fds() -> tuple[socket.socket, ...]:
    """Take the listening sockets that the service manager bound (socket activation).

    They are non-inheritable from now on, and the variables are gone from the environment, so that
    neither a child nor a second call takes them again.

    Returns:
        The sockets; empty where none were passed, or they were meant for another process.

    Raises:
        StartupError: What was passed is not listening Unix stream sockets.
    """
    given = {name: os.environ.pop(name, "") for name in _LISTEN_VARIABLES}
    if given["LISTEN_PID"] != str(os.getpid()):
        return ()
    text = given["LISTEN_FDS"]
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= _MAX_DESCRIPTORS:
        raise StartupError("the service manager set LISTEN_FDS to something that is no count")
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(text))
    for descriptor in descriptors:
        _check_listening(descriptor)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)


def _check_listening(descriptor: int) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        right = is_socket and _is_listening_unix_stream(descriptor)
    except OSError as error:
        raise StartupError(
            f"descriptor {descriptor} from the service manager can't be used: {error.strerror}"
        ) from None
    if not right:
        raise StartupError(
            f"descriptor {descriptor} from the service manager is not a listening Unix stream "
            "socket",
            remedy="in the systemd .socket unit, give ListenStream= with a path, and Accept=no",
        )


def _is_listening_unix_stream(descriptor: int) -> bool:
    probe = socket.socket(fileno=os.dup(descriptor))  # a wrong one stays open for its owner
    with probe:
        return (
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_UNIX
            and probe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            and probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        )
