"""Segments: lengths, places, random access, and ends that were cut off."""

from __future__ import annotations

from typing import cast
from unittest import mock

import pytest

from keyside.envelope import (
    DEFAULT_SEGMENT_BYTES,
    MAX_STREAM_BYTES,
    SUITES,
    DataKey,
    PayloadSealer,
    SegmentOpener,
    SegmentSealer,
    Suite,
    generate_data_key,
    lay_out_body,
    lay_out_plaintext,
    segments,
)
from keyside.errors import EnvelopeRejected, InvalidArgument, LimitExceeded

SIZE = 4096
CONTEXT = {"file": "a"}


def seal_stream(
    data_key: DataKey, plaintext: bytes, suite: Suite = SUITES[0]
) -> tuple[bytes, list[bytes]]:
    """Return a stream's header and sealed segments."""
    sealer = SegmentSealer(data_key, CONTEXT, suite, segment_size=SIZE)
    layout = lay_out_plaintext(len(plaintext), SIZE)
    return sealer.header, [
        sealer.seal_segment(plaintext[n * SIZE : (n + 1) * SIZE], is_last=layout.is_last(n))
        for n in range(layout.count)
    ]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 3 * SIZE + 7])
def test_segments_open_in_any_order(suite: Suite, length: int) -> None:
    """Each segment opens by itself, from its index alone."""
    data_key = generate_data_key()
    plaintext = bytes(range(256)) * (length // 256) + bytes(length % 256)
    header, sealed = seal_stream(data_key, plaintext, suite)
    body = b"".join(sealed)
    opener = SegmentOpener(data_key, header + body, CONTEXT)
    layout = lay_out_body(len(body), opener.segment_size)
    assert (layout.count, layout.plaintext_length) == (len(sealed), length)
    assert layout == lay_out_plaintext(length, SIZE)
    assert layout.body_length == len(body)
    for index in reversed(range(layout.count)):
        offset, size = layout.locate_segment(index)
        opened = opener.open_segment(
            index, body[offset : offset + size], is_last=layout.is_last(index)
        )
        assert opened == plaintext[index * SIZE : (index + 1) * SIZE]


def test_cut_between_segments_is_found_at_the_new_end() -> None:
    """Opening the last segment as the last finds the cut before any plaintext is used (I11)."""
    data_key = generate_data_key()
    header, sealed = seal_stream(data_key, bytes(3 * SIZE))
    opener = SegmentOpener(data_key, header, CONTEXT)
    assert lay_out_body(2 * (SIZE + 16), SIZE).count == 2
    with pytest.raises(EnvelopeRejected):
        opener.open_segment(1, sealed[1], is_last=True)


def test_moved_and_relabelled_segments_are_refused() -> None:
    """A segment opens at its own place with its own mark, and nowhere else (I11)."""
    data_key = generate_data_key()
    header, sealed = seal_stream(data_key, bytes(3 * SIZE))
    opener = SegmentOpener(data_key, header, CONTEXT)
    for place in range(4):
        for origin, segment in enumerate(sealed):
            for is_last in (False, True):
                if (place, is_last) == (origin, origin == 2):
                    opener.open_segment(place, segment, is_last=is_last)
                else:
                    with pytest.raises(EnvelopeRejected):
                        opener.open_segment(place, segment, is_last=is_last)


def test_segment_of_another_stream_is_refused() -> None:
    """Streams of one data key and context have their own keys (I11)."""
    data_key = generate_data_key()
    header, _ = seal_stream(data_key, bytes(SIZE))
    _, others = seal_stream(data_key, bytes(SIZE))
    with pytest.raises(EnvelopeRejected):
        SegmentOpener(data_key, header, CONTEXT).open_segment(0, others[0], is_last=True)


@pytest.mark.parametrize("index", [-1, MAX_STREAM_BYTES // SIZE, 2**64, 2**70])
def test_index_beyond_a_stream_is_refused(index: int) -> None:
    """No index makes anything but the one error."""
    data_key = generate_data_key()
    header, sealed = seal_stream(data_key, b"x")
    with pytest.raises(EnvelopeRejected):
        SegmentOpener(data_key, header, CONTEXT).open_segment(index, sealed[0], is_last=True)


@pytest.mark.parametrize("is_last", [False, True])
def test_segment_beyond_the_bound_is_refused_though_its_tag_is_right(is_last: bool) -> None:  # noqa: FBT001
    """A stream's key opens no more than 16 TiB, even if whoever sealed it had the key."""
    data_key = generate_data_key()
    sealer = SegmentSealer(data_key, CONTEXT, segment_size=SIZE)
    opener = SegmentOpener(data_key, sealer.header, CONTEXT)
    bound = MAX_STREAM_BYTES // SIZE

    def seal_at(index: int) -> bytes:
        nonce = bytes(3) + index.to_bytes(8) + bytes((is_last,))
        return sealer._aead.encrypt(nonce, bytes(SIZE), sealer._aad)

    assert opener.open_segment(bound - 1, seal_at(bound - 1), is_last=is_last) == bytes(SIZE)
    for index in (bound, bound + 1, 2**64 - 1):
        with pytest.raises(EnvelopeRejected):
            opener.open_segment(index, seal_at(index), is_last=is_last)


@pytest.mark.parametrize(
    ("lengths", "is_last"),
    [([SIZE - 1], False), ([0], False), ([SIZE + 1], False), ([SIZE + 1], True), ([SIZE, 0], True)],
)
def test_impossible_lengths_are_not_sealed(lengths: list[int], is_last: bool) -> None:  # noqa: FBT001
    """Only a last segment is short, and only an only one is empty."""
    sealer = SegmentSealer(generate_data_key(), {}, segment_size=SIZE)
    for length in lengths[:-1]:
        sealer.seal_segment(bytes(length), is_last=False)
    with pytest.raises(InvalidArgument) as caught:
        sealer.seal_segment(bytes(lengths[-1]), is_last=is_last)
    assert caught.value.reason == "INVALID_SEGMENT_LENGTH"
    sealer.seal_segment(bytes(5), is_last=True)


def test_nothing_follows_the_last_segment() -> None:
    """A stream ends once."""
    sealer = SegmentSealer(generate_data_key(), {})
    sealer.seal_segment(b"", is_last=True)
    with pytest.raises(InvalidArgument) as caught:
        sealer.seal_segment(b"x", is_last=True)
    assert caught.value.reason == "STREAM_ENDED"


def test_stream_ends_at_its_bound() -> None:
    """A stream's key seals no more than 16 TiB."""
    with mock.patch.object(segments, "MAX_STREAM_BYTES", 2 * SIZE):
        sealer = SegmentSealer(generate_data_key(), {}, segment_size=SIZE)
    sealer.seal_segment(bytes(SIZE), is_last=False)
    sealer.seal_segment(bytes(SIZE), is_last=False)
    with pytest.raises(LimitExceeded):
        sealer.seal_segment(b"x", is_last=True)


@pytest.mark.parametrize("size", [0, -1, 1, 2048, 4095, 4097, 3 * 4096, 2**21, 2**32])
def test_impossible_segment_sizes_are_refused(size: int) -> None:
    """A power of two from 4 KiB to 1 MiB, and the message says so."""
    with pytest.raises(InvalidArgument, match="power of two from 4096 to 1048576"):
        SegmentSealer(generate_data_key(), {}, segment_size=size)
    with pytest.raises(InvalidArgument):
        lay_out_body(16, size)
    with pytest.raises(InvalidArgument):
        lay_out_plaintext(16, size)


@pytest.mark.parametrize("body", [-1, 0, 15, SIZE + 16 + 1, SIZE + 16 + 16, 2 * (SIZE + 16) + 15])
def test_impossible_body_lengths_are_refused(body: int) -> None:
    """A cut at a place where no stream ends is found without a key (I11)."""
    with pytest.raises(EnvelopeRejected):
        lay_out_body(body, SIZE)


def test_longest_stream_has_a_layout_and_a_longer_one_has_none() -> None:
    """16 TiB fits."""
    longest = lay_out_plaintext(MAX_STREAM_BYTES, SIZE)
    assert lay_out_body(longest.body_length, SIZE) == longest
    with pytest.raises(EnvelopeRejected):
        lay_out_body(longest.body_length + 17, SIZE)
    with pytest.raises(InvalidArgument):
        lay_out_plaintext(MAX_STREAM_BYTES + 1, SIZE)
    with pytest.raises(InvalidArgument):
        lay_out_plaintext(-1, SIZE)


@pytest.mark.parametrize("index", [-1, 2])
def test_segment_that_is_not_there_is_not_located(index: int) -> None:
    """A layout knows its segments only."""
    with pytest.raises(InvalidArgument):
        lay_out_plaintext(2 * SIZE, SIZE).locate_segment(index)


def test_whole_payload_is_no_stream() -> None:
    """The kinds have different keys, and are told apart before."""
    data_key = generate_data_key()
    with pytest.raises(EnvelopeRejected):
        SegmentOpener(data_key, PayloadSealer(data_key).seal(b"", {}), {})


def test_empty_last_segment_after_another_is_refused() -> None:
    """A plaintext has one division into segments, even if whoever sealed it had the key (I11)."""
    data_key = generate_data_key()
    sealer = SegmentSealer(data_key, CONTEXT, segment_size=SIZE)
    sealer.seal_segment(bytes(SIZE), is_last=False)
    empty = sealer._aead.encrypt(bytes(10) + b"\x01\x01", b"", sealer._aad)
    with pytest.raises(EnvelopeRejected):
        SegmentOpener(data_key, sealer.header, CONTEXT).open_segment(1, empty, is_last=True)


def test_segment_must_be_bytes() -> None:
    """A mistake of the caller's program is told apart from a bad segment."""
    data_key = generate_data_key()
    header, _ = seal_stream(data_key, b"")
    with pytest.raises(InvalidArgument):
        SegmentOpener(data_key, header, CONTEXT).open_segment(0, cast("bytes", ""), is_last=True)
    with pytest.raises(InvalidArgument):
        SegmentSealer(data_key, {}).seal_segment(cast("bytes", ""), is_last=True)


def test_default_segment_size_is_64_kib() -> None:
    """What a writer gets who doesn't choose."""
    assert SegmentSealer(generate_data_key(), {}).segment_size == DEFAULT_SEGMENT_BYTES == 65536
