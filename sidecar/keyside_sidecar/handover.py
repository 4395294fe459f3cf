"""What supervisor and worker say to each other.

A SOCK_SEQPACKET pair carries one JSON object a packet, and descriptors with some: a connection's
socket, then its pidfd where there is one; an end of a pair whose other end the recorder has; an end
of a pair over which a person's password goes to PAM's helper and the outcome comes back::

    supervisor ──► worker    {"connection": N, "caller": "..."}  + descriptors
                             {"audit": true}  + descriptor           the recorder was replaced
                             {"notices": [[REASON, SUMMARY, REMEDY, ALARM, SINCE], …]}
                             {"drain": seconds, "succeeded": whether others serve in its place}
    worker ──► supervisor    {"ready": true}
                             {"alive": true}     each second
                             {"closed": N}
                             {"pam": N, "uid": UID, "what": PURPOSE}  + descriptor  (pam/errand.py)

The recorder has a channel of its own (``audit/recorder.py``). A packet that is not of this form
ends the worker, whichever side sees it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from keyside_sidecar.errors import SidecarError

_MAX_PACKET_BYTES: Final = 128 * 1024
_MAX_DESCRIPTORS: Final = 2
_INT: Final = array.array("i")


def discard(descriptor: int) -> None:
    """Close a descriptor that somebody else has sent, whatever it is, without waiting.

    Closing a TCP socket that has something to send and lingers waits for as long as its owner has
    said.
    """
    try:
        end = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)  # no socket
        return
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class HandoverError(SidecarError):
    """What came through the channel is not a packet of ours."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One message and the descriptors that came with it; the receiver owns them."""

    fields: dict[str, Any]
    descriptors: tuple[int, ...]


class Channel:
    """One end of the pair. Non-blocking; raises BlockingIOError where a call would wait."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._end.fileno()

    def send(self, fields: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send one packet.

        Raises:
            BlockingIOError: The other end does not keep up.
            OSError: The other end is gone.
        """
        data = json.dumps(fields, separators=(",", ":")).encode()
        if descriptors:
            socket.send_fds(self._end, [data], list(descriptors))
        else:
            self._end.send(data)

    def receive(self) -> Packet | None:
        """Return the next packet, or None at the end.

        Raises:
            BlockingIOError: There is none now.
            HandoverError: It is not a whole packet of ours; its descriptors have been closed.
        """
        # socket.recv_fds ignores its flags argument, so the descriptors would be inheritable.
        data, ancillary, flags, _address = self._end.recvmsg(
            _MAX_PACKET_BYTES,
            socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT.itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
        descriptors = array.array(_INT.typecode)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _INT.itemsize
                descriptors.frombytes(content[:whole])
        if not data:
            return None
        try:
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise HandoverError("a packet or its descriptors were cut short")  # noqa: TRY301
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise HandoverError("a packet is no JSON object")  # noqa: TRY301
        except (ValueError, RecursionError, HandoverError) as error:
            for descriptor in descriptors:
                discard(descriptor)
            raise HandoverError(f"a packet can't be used: {error}") from None
        return Packet(fields, tuple(descriptors))

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def make_channels() -> tuple[Channel, Channel]:
    """Return two connected channels."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)
