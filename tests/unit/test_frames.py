"""Following HTTP/2 frames: where a GOAWAY may be put between two of a server's."""

from __future__ import annotations

import random

import pytest

from keyside_sidecar.peer.frames import GOAWAY, FrameFollower

SETTINGS, HEADERS, CONTINUATION, DATA = 0x4, 0x1, 0x9, 0x0
END_HEADERS = 0x4


def frame(kind: int, length: int, flags: int = 0) -> bytes:
    return length.to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + bytes(length)


# Settings, an answer, one whose headers go on in another frame, and much data.
FRAMES = (
    frame(SETTINGS, 12),
    frame(HEADERS, 30, END_HEADERS),
    frame(DATA, 405),
    frame(HEADERS, 9),
    frame(CONTINUATION, 100, END_HEADERS),
    frame(DATA, 16_384),
    frame(SETTINGS, 0, 1),
    GOAWAY,
)


def follow(follower: FrameFollower, data: bytes) -> None:
    follower.follow(memoryview(bytearray(data)), len(data))


def find_gaps() -> dict[int, bool]:
    """Return where each frame ends, and whether another may be put in there."""
    gaps, end = {}, 0
    for one in FRAMES:
        end += len(one)
        gaps[end] = one[3] != HEADERS or bool(one[4] & END_HEADERS)
    return gaps


def test_nothing_comes_before_the_servers_first_frame() -> None:
    assert not FrameFollower().is_between


def test_byte_by_byte_the_gaps_are_where_frames_end_and_no_block_of_headers_is_open() -> None:
    gaps, follower = find_gaps(), FrameFollower()
    for place, byte in enumerate(b"".join(FRAMES), 1):
        follow(follower, bytes([byte]))
        assert follower.is_between == gaps.get(place, False), place


@pytest.mark.parametrize("seed", range(40))
def test_in_pieces_of_any_size_the_gaps_are_the_same(seed: int) -> None:
    """However the kernel cuts what the server has written."""
    chance = random.Random(seed)
    data, gaps, follower = b"".join(FRAMES) * 5, find_gaps(), FrameFollower()
    whole, place = sum(map(len, FRAMES)), 0
    while place < len(data):
        size = chance.choice((1, 2, 8, 9, 10, 500, 5_000, 40_000))
        follow(follower, data[place : place + size])
        place = min(len(data), place + size)
        assert follower.is_between == gaps.get(place % whole or whole, False), place


def test_what_is_put_in_is_one_whole_frame() -> None:
    """GOAWAY, on no stream, with the greatest stream id and no error."""
    assert GOAWAY[:9] == frame(0x7, 8)[:9]
    assert (GOAWAY[9:13], GOAWAY[13:]) == (b"\x7f\xff\xff\xff", bytes(4))
