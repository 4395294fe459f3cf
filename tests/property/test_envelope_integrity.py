"""Whatever is done to an envelope, nothing of it opens and the error is one (I11)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyside.envelope import (
    MAX_CONTEXT_NAME_BYTES,
    SUITES,
    DataKey,
    PayloadOpener,
    PayloadSealer,
    SegmentOpener,
    SegmentSealer,
    Suite,
    VersionKey,
    encode_context,
    generate_data_key,
    lay_out_body,
    lay_out_plaintext,
    open_envelope,
    parse_payload_header,
    parse_wrapping_header,
    rewrap,
    seal,
    unwrap_data_key,
    wrap_data_key,
)
from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside.names import KeyName, VersionNumber

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 4096
VERSION = VersionKey(KeyName("mail"), VersionNumber(7), b"i" * 16, b"m" * 32)
CONTEXT = {"account": "42"}

few = settings(max_examples=60, deadline=None)
many = settings(max_examples=300, deadline=None)

suites = st.sampled_from(SUITES)
names = st.text(min_size=1, max_size=12).filter(
    lambda text: len(text.encode()) <= MAX_CONTEXT_NAME_BYTES
)
contexts = st.dictionaries(names, st.text(max_size=30), max_size=6)


def make_versions() -> st.SearchStrategy[VersionKey]:
    """Versions with any name, number, id and material."""
    return st.builds(
        VersionKey,
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True).map(KeyName),
        st.integers(1, 2**32 - 1).map(VersionNumber),
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=32, max_size=32),
    )


def seal_segmented(data_key: DataKey, plaintext: bytes, suite: Suite) -> tuple[bytes, list[bytes]]:
    """Return a stream's header and its sealed segments."""
    sealer = SegmentSealer(data_key, CONTEXT, suite, segment_size=SIZE)
    layout = lay_out_plaintext(len(plaintext), SIZE)
    return sealer.header, [
        sealer.seal_segment(plaintext[n * SIZE : (n + 1) * SIZE], is_last=layout.is_last(n))
        for n in range(layout.count)
    ]


def assert_rejected(envelope: bytes, version: VersionKey = VERSION) -> None:
    """The envelope is refused with the one error, word for word."""
    with pytest.raises(EnvelopeRejected) as caught:
        open_envelope(version, envelope, CONTEXT)
    assert vars(caught.value) == vars(EnvelopeRejected())
    assert str(caught.value) == str(EnvelopeRejected())


@few
@given(make_versions(), st.binary(max_size=5000), contexts, suites)
def test_sealing_and_opening_are_inverse(
    version: VersionKey, plaintext: bytes, context: dict[str, str], suite: Suite
) -> None:
    """Any plaintext, context, version and suite come back."""
    envelope = seal(version, plaintext, context, suite)
    header = parse_wrapping_header(envelope)
    assert (header.key_name, header.version_number) == (version.key_name, version.number)
    reordered = dict(reversed(context.items()))
    assert open_envelope(version, envelope, reordered) == plaintext


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_single_bit_counts(suite: Suite) -> None:
    """Every bit of a small envelope, flipped alone, refuses it."""
    envelope = seal(VERSION, b"secret", CONTEXT, suite)
    for bit in range(len(envelope) * 8):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        assert_rejected(bytes(changed))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_bit_of_a_segmented_envelope_counts(suite: Suite) -> None:
    """The same for segments, header included."""
    data_key = generate_data_key()
    header, sealed = seal_segmented(data_key, b"secret", suite)
    envelope = wrap_data_key(VERSION, data_key, suite) + header + sealed[0]
    assert open_envelope(VERSION, envelope, CONTEXT) == b"secret"
    for bit in range(len(envelope) * 8):
        changed = bytearray(envelope)
        changed[bit // 8] ^= 1 << bit % 8
        assert_rejected(bytes(changed))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_truncation_is_refused(suite: Suite) -> None:
    """Cut at any length, from either end."""
    envelope = seal(VERSION, b"secret", CONTEXT, suite)
    for length in range(len(envelope)):
        assert_rejected(envelope[:length])
        assert_rejected(envelope[len(envelope) - length :])


@many
@given(st.binary(min_size=1, max_size=300), suites, st.data())
def test_extension_anywhere_is_refused(extra: bytes, suite: Suite, data: st.DataObject) -> None:
    """Bytes added at the end, at the start or within."""
    envelope = seal(VERSION, b"secret", CONTEXT, suite)
    place = data.draw(st.integers(0, len(envelope)))
    changed = envelope[:place] + extra + envelope[place:]
    assert_rejected(changed)
    assert_rejected(envelope + extra)


@many
@given(st.data(), suites)
def test_splicing_two_envelopes_is_refused(data: st.DataObject, suite: Suite) -> None:
    """A header, or any other part, of another envelope of the same version and context."""
    first = seal(VERSION, b"first!", CONTEXT, suite)
    second = seal(VERSION, b"second", CONTEXT, data.draw(suites))
    start = data.draw(st.integers(0, len(first) - 1))
    end = data.draw(st.integers(start + 1, len(first)))
    spliced = first[:start] + second[start:end] + first[end:]
    if spliced not in {first, second}:
        assert_rejected(spliced)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_headers_of_other_envelopes_are_refused(suite: Suite) -> None:
    """Wrapping header alone, payload header alone, and both."""
    first, second = (seal(VERSION, text, CONTEXT, suite) for text in (b"first!", b"second"))
    wrapping = len(parse_wrapping_header(first).raw)
    payload = wrapping + 66
    assert_rejected(second[:wrapping] + first[wrapping:])
    assert_rejected(first[:wrapping] + second[wrapping:payload] + first[payload:])
    assert_rejected(second[:payload] + first[payload:])


@few
@given(make_versions(), suites)
def test_another_version_is_refused(version: VersionKey, suite: Suite) -> None:
    """Any other version key, and one that differs in its material alone."""
    envelope = seal(VERSION, b"secret", CONTEXT, suite)
    assert_rejected(envelope, version)
    twin = VersionKey(VERSION.key_name, VERSION.number, VERSION.version_id, version.material)
    assert_rejected(envelope, twin)


@many
@given(contexts, contexts, suites)
@example({"a": "bc"}, {"ab": "c"}, SUITES[0])
@example({"a": "", "b": ""}, {"a": "b"}, SUITES[0])
@example({}, {"a": ""}, SUITES[0])
def test_another_context_is_refused(
    sealed: dict[str, str], given_context: dict[str, str], suite: Suite
) -> None:
    """A context opens what was sealed with an equal one, and nothing else."""
    envelope = seal(VERSION, b"secret", sealed, suite)
    if sealed == given_context:
        assert open_envelope(VERSION, envelope, given_context) == b"secret"
    else:
        with pytest.raises(EnvelopeRejected):
            open_envelope(VERSION, envelope, given_context)


@many
@given(contexts, contexts)
def test_encoded_contexts_are_injective_and_prefix_free(
    first: dict[str, str], second: dict[str, str]
) -> None:
    """What docs/envelope.md builds on: no encoding begins another."""
    if first != second:
        assert not encode_context(second).startswith(encode_context(first))


@few
@given(st.permutations(range(4)), st.integers(0, 3), suites)
def test_segments_in_another_order_are_refused(
    order: list[int], dropped: int, suite: Suite
) -> None:
    """Exchanged, dropped or repeated segments refuse the whole."""
    data_key = generate_data_key()
    header, sealed = seal_segmented(data_key, bytes(range(256)) * 64, suite)
    opener = PayloadOpener(data_key)
    assert opener.open(header + b"".join(sealed), CONTEXT) == bytes(range(256)) * 64
    changes = [
        [sealed[place] for place in order],
        sealed[:dropped] + sealed[dropped + 1 :],
        [*sealed[: dropped + 1], *sealed[dropped:]],
    ]
    for change in changes:
        if change != sealed:
            with pytest.raises(EnvelopeRejected):
                opener.open(header + b"".join(change), CONTEXT)


def open_end(opener: SegmentOpener, body: bytes) -> bytes:
    """Open what the body's length says is the last segment, as the last."""
    layout = lay_out_body(len(body), opener.segment_size)
    offset, size = layout.locate_segment(layout.count - 1)
    return opener.open_segment(layout.count - 1, body[offset : offset + size], is_last=True)


@few
@given(st.integers(0, 3 * SIZE), st.integers(1, 3 * SIZE), suites)
def test_cut_streams_are_refused(length: int, cut: int, suite: Suite) -> None:
    """A stream cut anywhere: by its length alone, or by opening its end as the last."""
    data_key = generate_data_key()
    header, sealed = seal_segmented(data_key, bytes(length), suite)
    body = b"".join(sealed)
    body = body[: max(0, len(body) - cut)]
    opener = SegmentOpener(data_key, header, CONTEXT)
    with pytest.raises(EnvelopeRejected):
        PayloadOpener(data_key).open(header + body, CONTEXT)
    with pytest.raises(EnvelopeRejected):
        open_end(opener, body)


@few
@given(st.data(), suites)
def test_changed_segment_mark_is_refused(data: st.DataObject, suite: Suite) -> None:
    """The last segment is not a middle one, nor the other way round."""
    data_key = generate_data_key()
    count = data.draw(st.integers(1, 3))
    header, sealed = seal_segmented(data_key, bytes(count * SIZE), suite)
    opener = SegmentOpener(data_key, header, CONTEXT)
    for index, segment in enumerate(sealed):
        is_last = index == count - 1
        assert opener.open_segment(index, segment, is_last=is_last) == bytes(SIZE)
        with pytest.raises(EnvelopeRejected):
            opener.open_segment(index, segment, is_last=not is_last)


@few
@given(make_versions(), st.binary(max_size=100), suites, suites)
def test_rewrapping_keeps_every_payload(
    old: VersionKey, plaintext: bytes, before: Suite, after: Suite
) -> None:
    """Through any versions of a key and either suite, the plaintext opens."""
    new = VersionKey(old.key_name, VersionNumber(9), b"n" * 16, b"k" * 32)
    envelope = rewrap(old, new, seal(old, plaintext, CONTEXT, before), after)
    assert open_envelope(new, envelope, CONTEXT) == plaintext


def possible_beginnings() -> st.SearchStrategy[bytes]:
    """Bytes that reach deep into the parsers: true beginnings with anything after them."""
    data_key = DataKey(b"d" * 32)
    wrapped = wrap_data_key(VERSION, data_key, SUITES[0])
    whole = PayloadSealer(data_key).seal(b"x", CONTEXT)
    segmented = SegmentSealer(data_key, CONTEXT, segment_size=SIZE).header
    starts = st.sampled_from(
        [b"", b"KSE", b"KSE\x01\x01", wrapped, wrapped + whole, whole, segmented]
    )
    cut = st.builds(lambda start, length: start[:length], starts, st.integers(0, 300))
    return st.builds(bytes.__add__, cut | starts, st.binary(max_size=200))


PARSERS: list[Callable[[bytes], object]] = [
    parse_wrapping_header,
    parse_payload_header,
    lambda data: unwrap_data_key(VERSION, parse_wrapping_header(data)),
    lambda data: open_envelope(VERSION, data, CONTEXT),
    lambda data: rewrap(VERSION, VERSION, data),
    lambda data: PayloadOpener(DataKey(b"d" * 32)).open(data, CONTEXT),
    lambda data: SegmentOpener(DataKey(b"d" * 32), data, CONTEXT).open_segment(
        0, data, is_last=True
    ),
]


@pytest.mark.parametrize("parse", PARSERS)
@many
@given(data=possible_beginnings())
def test_parsers_raise_only_the_one_error(parse: Callable[[bytes], object], data: bytes) -> None:
    """Any bytes at all: an answer, or EnvelopeRejected."""
    with contextlib.suppress(EnvelopeRejected):
        parse(data)


@many
@given(st.integers(-(2**70), 2**70), st.integers(-(2**40), 2**40))
def test_layouts_raise_only_our_errors(length: int, size: int) -> None:
    """Any numbers at all: a layout that adds up, or one of our errors."""
    for lay_out in (lay_out_body, lay_out_plaintext):
        for segment_size in (size, SIZE):
            try:
                layout = lay_out(length, segment_size)
            except (EnvelopeRejected, InvalidArgument):
                continue
            offset, last = layout.locate_segment(layout.count - 1)
            assert offset + last == layout.body_length


@many
@given(st.dictionaries(st.text(max_size=140), st.text(max_size=20), max_size=40))
def test_contexts_raise_only_invalid_argument(context: dict[str, str]) -> None:
    """Any text at all: an encoding, or InvalidArgument."""
    with contextlib.suppress(InvalidArgument):
        assert len(encode_context(context)) <= 2 + 32 * (8 + 128 + 1024)
