"""Where one HTTP/2 frame ends and the next begins (RFC 9113, sections 4.1 and 6.8).

Only lengths are looked at, in what a server sends, and nothing is kept of it: enough to know when
the server is between two frames. There a GOAWAY may be put in, which tells a client to make its
next calls on another connection; those under way go on to their end. Unlike gRPC's own, which comes
with the server's refusal of new calls, it leaves no call between the two: the server goes on
serving what was sent before the client had read it.
"""

from __future__ import annotations

import struct
from typing import Final

_HEADER_BYTES: Final = 9
_END_HEADERS: Final = 0x4
# HEADERS, PUSH_PROMISE and CONTINUATION: with nothing in between until one has END_HEADERS.
_HEADER_BLOCKS: Final = frozenset({0x1, 0x5, 0x9})
_read_word = struct.Struct(">I").unpack_from

# On stream 0, with the greatest stream id (whatever has been sent is served) and NO_ERROR.
GOAWAY: Final = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")


class FrameFollower:
    """Follows one server's bytes, from the first of a connection on."""

    __slots__ = ("_began", "_in_block", "_partial", "_skip")

    def __init__(self) -> None:
        self._skip = 0
        self._partial = b""
        self._in_block = False
        self._began = False

    @property
    def is_between(self) -> bool:
        """Whether a frame may be put in here: not before the server's first, its SETTINGS."""
        return self._began and not (self._skip or self._partial or self._in_block)

    def follow(self, data: memoryview, count: int) -> None:
        """Take note of the next bytes.

        Args:
            data: A buffer that begins with them.
            count: How many they are.
        """
        at = self._skip
        if self._partial:
            missing = _HEADER_BYTES - len(self._partial)
            self._partial += bytes(data[: min(missing, count)])
            if count < missing:
                return
            header, self._partial = self._partial, b""
            self._note(header[3], header[4])
            at = missing + (_read_word(header)[0] >> 8)
        last = -1
        while at + _HEADER_BYTES <= count:
            last = at
            at += _HEADER_BYTES + (_read_word(data, at)[0] >> 8)  # 24 bits, and 8 of the type
        if last >= 0:
            self._note(data[last + 3], data[last + 4])
        if at < count:
            self._partial, self._skip = bytes(data[at:count]), 0
        else:
            self._skip = at - count

    def _note(self, kind: int, flags: int) -> None:
        self._began = True
        self._in_block = kind in _HEADER_BLOCKS and not flags & _END_HEADERS
