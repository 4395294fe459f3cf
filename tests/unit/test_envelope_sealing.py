"""Whole envelopes: made, opened, shared data keys, rewrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import pytest

from keyside.envelope import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    KIND_WHOLE,
    MAX_OVERHEAD_BYTES,
    SUITES,
    PayloadOpener,
    PayloadSealer,
    SegmentSealer,
    Suite,
    VersionKey,
    generate_data_key,
    open_envelope,
    parse_payload_header,
    parse_wrapping_header,
    payload,
    payload_header,
    rewrap,
    seal,
    unwrap_data_key,
    wrap_data_key,
)
from keyside.envelope.payload_header import derive_whole_keys
from keyside.errors import EnvelopeRejected, InvalidArgument
from keyside.names import KeyName, VersionNumber

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = VersionKey(KeyName("mail"), VersionNumber(1), b"1" * 16, b"\x01" * 32)
NEW = VersionKey(KeyName("mail"), VersionNumber(2), b"2" * 16, b"\x02" * 32)
LONG = VersionKey(KeyName("m" * 63), VersionNumber(2**32 - 1), b"3" * 16, b"\x03" * 32)
CONTEXT = {"account": "42"}

either_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)


@either_suite
@pytest.mark.parametrize("length", [0, 1, 256, 4096, 70_000])
def test_what_is_sealed_opens(suite: Suite, length: int) -> None:
    """The plaintext comes back, small and large."""
    plaintext = bytes(length)
    envelope = seal(OLD, plaintext, CONTEXT, suite)
    assert open_envelope(OLD, envelope, CONTEXT) == plaintext
    assert plaintext[:16] not in envelope or length < 16


def test_header_says_which_version_is_needed() -> None:
    """Parsing finds suite, key and version, and where the payload begins."""
    envelope = seal(LONG, b"", {}, CHACHA20_POLY1305)
    header = parse_wrapping_header(envelope)
    assert (header.suite, header.key_name) == (CHACHA20_POLY1305, LONG.key_name)
    assert (header.version_number, header.version_id) == (LONG.number, LONG.version_id)
    assert envelope.startswith(header.raw)
    assert parse_payload_header(envelope, len(header.raw)).kind == KIND_WHOLE


def test_overhead_is_as_stated() -> None:
    """The longest key name reaches the stated overhead exactly."""
    assert len(seal(LONG, b"", {})) == MAX_OVERHEAD_BYTES


def test_no_two_envelopes_are_alike() -> None:
    """Equal plaintexts and contexts share nothing but the version's name."""
    first, second = seal(OLD, b"x", CONTEXT), seal(OLD, b"x", CONTEXT)
    prefix = len(OLD.header_prefixes[1])
    assert first[:prefix] == second[:prefix]
    assert first[prefix : prefix + 24] != second[prefix : prefix + 24]
    assert first[-16:] != second[-16:]


@either_suite
def test_batch_shares_one_wrapping_header(suite: Suite) -> None:
    """Many payloads under one data key are envelopes each, and one unwrapping opens them all."""
    data_key = generate_data_key()
    wrapped = wrap_data_key(OLD, data_key, suite)
    sealer = PayloadSealer(data_key, suite)
    envelopes = [wrapped + sealer.seal(b"%d" % n, {"n": str(n)}) for n in range(40)]
    opener = PayloadOpener(unwrap_data_key(OLD, parse_wrapping_header(envelopes[0])))
    for n, envelope in enumerate(envelopes):
        assert opener.open(envelope, {"n": str(n)}, offset=len(wrapped)) == b"%d" % n
        assert open_envelope(OLD, envelope, {"n": str(n)}) == b"%d" % n


def test_batch_is_unwrapped_once_and_derived_once() -> None:
    """A thousand payloads of one sealer cost one derivation."""
    data_key = generate_data_key()
    sealer = PayloadSealer(data_key)
    payloads = [sealer.seal(b"", {}) for _ in range(1000)]
    opener = PayloadOpener(data_key)
    with mock.patch.object(payload, "derive_whole_keys", wraps=derive_whole_keys) as derivations:
        for item in payloads:
            opener.open(item, {})
    assert derivations.call_count == 1


def test_opener_keeps_a_bounded_number_of_keys() -> None:
    """Salts that someone makes up don't fill memory."""
    data_key = generate_data_key()
    opener = PayloadOpener(data_key)
    for _ in range(100):
        assert opener.open(PayloadSealer(data_key).seal(b"x", {}), {}) == b"x"
    assert len(opener._keys) <= 16


def test_opener_reads_whole_and_segmented_payloads() -> None:
    """One opener serves both kinds of one data key."""
    data_key = generate_data_key()
    stream = SegmentSealer(data_key, CONTEXT, segment_size=4096)
    segmented = stream.header + stream.seal_segment(b"x" * 4096, is_last=False)
    segmented += stream.seal_segment(b"y", is_last=True)
    assert PayloadOpener(data_key).open(segmented, CONTEXT) == b"x" * 4096 + b"y"
    envelope = wrap_data_key(OLD, data_key, AES_256_GCM) + segmented
    assert open_envelope(OLD, envelope, CONTEXT) == b"x" * 4096 + b"y"


@pytest.mark.parametrize("wrapping", SUITES, ids=lambda suite: suite.name)
@either_suite
def test_rewrapping_replaces_the_wrapping_header_only(suite: Suite, wrapping: Suite) -> None:
    """The payload stays byte for byte, under either suite, and opens with the new version."""
    envelope = seal(OLD, b"secret", CONTEXT, suite)
    moved = rewrap(OLD, NEW, envelope, wrapping)
    before, after = parse_wrapping_header(envelope), parse_wrapping_header(moved)
    assert moved[len(after.raw) :] == envelope[len(before.raw) :]
    assert (after.suite, after.version_number) == (wrapping, NEW.number)
    assert open_envelope(NEW, moved, CONTEXT) == b"secret"
    with pytest.raises(EnvelopeRejected):
        open_envelope(OLD, moved, CONTEXT)


def test_wrapping_header_alone_is_rewrapped() -> None:
    """For an envelope too large to send, its header is enough."""
    envelope = seal(OLD, b"secret", CONTEXT)
    header = parse_wrapping_header(envelope).raw
    moved = rewrap(OLD, NEW, header)
    assert open_envelope(NEW, moved + envelope[len(header) :], CONTEXT) == b"secret"


def test_rewrapping_under_the_same_version_draws_a_new_salt() -> None:
    """May be repeated; never the same wrapping key twice."""
    header = parse_wrapping_header(seal(OLD, b"", {})).raw
    assert rewrap(OLD, OLD, header) != header


@pytest.mark.parametrize(
    "rest", [b"x", bytes(66), b"\x01\x02" + bytes(80), b"\x01\x00" + bytes(79)]
)
def test_rewrapping_refuses_what_can_be_no_payload(rest: bytes) -> None:
    """Bytes after the header must at least look like a payload (I11)."""
    header = parse_wrapping_header(seal(OLD, b"", {})).raw
    with pytest.raises(EnvelopeRejected):
        rewrap(OLD, NEW, header + rest)


def test_rewrapping_a_segmented_envelope_checks_its_layout() -> None:
    """A length that no stream has is refused, a possible one is carried over (I11)."""
    data_key = generate_data_key()
    stream = SegmentSealer(data_key, {}, segment_size=4096)
    body = stream.seal_segment(b"abc", is_last=True)
    envelope = wrap_data_key(OLD, data_key, AES_256_GCM) + stream.header + body
    assert open_envelope(NEW, rewrap(OLD, NEW, envelope), {}) == b"abc"
    with pytest.raises(EnvelopeRejected):
        rewrap(OLD, NEW, envelope[:-4])


def test_rewrapping_to_another_key_is_refused() -> None:
    """The payload names no key, so this would get round the other key's policy."""
    with pytest.raises(InvalidArgument, match="within one key") as caught:
        rewrap(OLD, LONG, seal(OLD, b"", {}))
    assert caught.value.reason == "KEY_MISMATCH"


@pytest.mark.parametrize(
    "stranger",
    [
        VersionKey(KeyName("mai"), OLD.number, OLD.version_id, OLD.material),
        VersionKey(OLD.key_name, NEW.number, OLD.version_id, OLD.material),
        VersionKey(OLD.key_name, OLD.number, NEW.version_id, OLD.material),
        VersionKey(OLD.key_name, OLD.number, OLD.version_id, NEW.material),
    ],
)
def test_another_version_is_refused(stranger: VersionKey) -> None:
    """Name, number, id and material must all be the header's own (I11)."""
    envelope = seal(OLD, b"secret", {})
    with pytest.raises(EnvelopeRejected):
        open_envelope(stranger, envelope, {})
    with pytest.raises(EnvelopeRejected):
        unwrap_data_key(stranger, parse_wrapping_header(envelope))
    with pytest.raises(EnvelopeRejected):
        rewrap(stranger, stranger, envelope)


def test_refusal_says_nothing_but_its_one_sentence() -> None:
    """No layer, no cause, whatever the failure (I11)."""
    envelope = seal(OLD, b"secret", CONTEXT)
    broken = [b"", envelope[:-1], envelope[:50] + b"\xff" + envelope[51:], envelope[:-1] + b"\0"]
    seen = set()
    for item in broken:
        with pytest.raises(EnvelopeRejected) as caught:
            open_envelope(OLD, item, CONTEXT)
        error = caught.value
        seen.add((str(error), error.reason, error.remedy, error.code, error.__cause__))
        assert error.__suppress_context__ or error.__context__ is None
    assert len(seen) == 1


@pytest.mark.parametrize("value", [None, "text", bytearray(300), memoryview(b""), 7])
def test_anything_but_bytes_is_an_invalid_argument(value: object) -> None:
    """A mistake of the caller's program is told apart from a bad envelope."""
    wrong = cast("bytes", value)
    calls: list[Callable[[], object]] = [
        lambda: seal(OLD, wrong, {}),
        lambda: open_envelope(OLD, wrong, {}),
        lambda: rewrap(OLD, NEW, wrong),
        lambda: parse_wrapping_header(wrong),
        lambda: parse_payload_header(wrong),
        lambda: PayloadSealer(generate_data_key()).seal(wrong, {}),
        lambda: PayloadOpener(generate_data_key()).open(wrong, {}),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="must be bytes"):
            call()


def test_bad_context_is_named_whatever_the_envelope() -> None:
    """The context is the caller's own, so its limits may be told."""
    bad: dict[str, Any] = {"": ""}
    calls: list[Callable[[], object]] = [
        lambda: seal(OLD, b"", bad),
        lambda: open_envelope(OLD, b"", bad),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.reason == "INVALID_CONTEXT"


def test_plaintext_beyond_the_format_is_refused() -> None:
    """More than 1 GiB needs segments, and the message says so."""
    with (
        mock.patch.object(payload, "MAX_WHOLE_BYTES", 10),
        pytest.raises(InvalidArgument, match="in segments") as caught,
    ):
        seal(OLD, bytes(11), {})
    assert caught.value.reason == "PLAINTEXT_TOO_LARGE"


def test_whole_body_beyond_the_format_is_refused() -> None:
    """Even if whoever sealed it had the key: a longer body has no other reading (I11)."""
    data_key = generate_data_key()
    wrapped = wrap_data_key(OLD, data_key, AES_256_GCM)
    sealer, opener = PayloadSealer(data_key), PayloadOpener(data_key)
    longest, longer = sealer.seal(bytes(10), {}), sealer.seal(bytes(11), {})
    with mock.patch.object(payload_header, "MAX_WHOLE_BYTES", 10):
        assert open_envelope(OLD, wrapped + longest, {}) == opener.open(longest, {}) == bytes(10)
        assert rewrap(OLD, NEW, wrapped + longest).endswith(longest)
        calls: list[Callable[[], object]] = [
            lambda: open_envelope(OLD, wrapped + longer, {}),
            lambda: opener.open(longer, {}),
            lambda: rewrap(OLD, NEW, wrapped + longer),
        ]
        for call in calls:
            with pytest.raises(EnvelopeRejected):
                call()
    assert opener.open(longer, {}) == bytes(11)


def test_longest_whole_body_is_that_of_the_format() -> None:
    """1 GiB and a tag, to the byte."""
    payload_header.require_possible_whole_body(2**30 + 16)
    with pytest.raises(EnvelopeRejected):
        payload_header.require_possible_whole_body(2**30 + 17)


def test_version_number_zero_is_not_parsed() -> None:
    """No version has it, so no look-up is made for it."""
    header = parse_wrapping_header(seal(OLD, b"", {})).raw
    number_at = len(OLD.header_prefixes[1]) - 20
    assert header[number_at : number_at + 4] == b"\0\0\0\x01"
    with pytest.raises(EnvelopeRejected):
        parse_wrapping_header(header[:number_at] + bytes(4) + header[number_at + 4 :])


def test_negative_offset_is_refused() -> None:
    """An offset is not counted from the end, where a payload would be found all the same."""
    data_key = generate_data_key()
    item = PayloadSealer(data_key).seal(b"x", {})
    for offset in (-len(item), -1):
        with pytest.raises(EnvelopeRejected):
            parse_payload_header(item, offset)
        with pytest.raises(EnvelopeRejected):
            PayloadOpener(data_key).open(item, {}, offset=offset)
