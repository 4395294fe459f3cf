"""Sealers never use a nonce twice: counters, bounds, threads, forks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from keyside.envelope import (
    MAX_BYTES_PER_SEALER,
    MAX_MESSAGES_PER_SEALER,
    PayloadOpener,
    PayloadSealer,
    SegmentSealer,
    generate_data_key,
    parse_payload_header,
)
from keyside.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable


def run_in_child(action: Callable[[], object]) -> int:
    """Fork, run ``action`` in the child, and return 0 where it raised a spent sealer's error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
        except LimitExceeded as error:
            code = 0 if error.reason == "SEALER_SPENT" else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_sequence_counts_from_zero_under_one_salt() -> None:
    """One sealer, one salt, one counter."""
    sealer = PayloadSealer(generate_data_key())
    headers = [parse_payload_header(sealer.seal(b"", {})) for _ in range(5)]
    assert [int.from_bytes(header.sequence) for header in headers] == [0, 1, 2, 3, 4]
    assert len({header.salted for header in headers}) == 1


def test_sealers_of_one_data_key_have_their_own_salts() -> None:
    """Two sealers that both begin at 0 have different keys."""
    data_key = generate_data_key()
    headers = [parse_payload_header(PayloadSealer(data_key).seal(b"", {})) for _ in range(50)]
    headers += [parse_payload_header(SegmentSealer(data_key, {}).header) for _ in range(50)]
    assert len({header.salted for header in headers}) == 100


def test_equal_contexts_have_different_digests() -> None:
    """Whoever sees two payloads can't tell that their contexts are equal."""
    sealer = PayloadSealer(generate_data_key())
    first, second = (parse_payload_header(sealer.seal(b"", {"a": "b"})) for _ in range(2))
    assert first.context_digest != second.context_digest


def test_threads_never_share_a_sequence() -> None:
    """The counter is guarded: 4,000 payloads from 8 threads have 4,000 sequences."""
    data_key = generate_data_key()
    sealer = PayloadSealer(data_key)
    with ThreadPoolExecutor(8) as threads:
        payloads = list(threads.map(lambda n: sealer.seal(b"%d" % n, {}), range(4000)))
    assert len({parse_payload_header(item).sequence for item in payloads}) == 4000
    opener = PayloadOpener(data_key)
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda item: opener.open(item, {}), payloads))
    assert opened == [b"%d" % n for n in range(4000)]


def test_sealer_ends_at_its_bound_of_messages() -> None:
    """The last sequence is 2**32 - 1, and nothing comes after it."""
    data_key = generate_data_key()
    sealer = PayloadSealer(data_key)
    sealer._sequence = MAX_MESSAGES_PER_SEALER - 1
    assert PayloadOpener(data_key).open(sealer.seal(b"x", {}), {}) == b"x"
    for _ in range(2):
        with pytest.raises(LimitExceeded) as caught:
            sealer.seal(b"x", {})
        assert caught.value.reason == "SEALER_SPENT"


def test_sealer_ends_at_its_bound_of_bytes() -> None:
    """64 GiB in all; a smaller plaintext may still fit."""
    sealer = PayloadSealer(generate_data_key())
    sealer._bytes_left = 10
    with pytest.raises(LimitExceeded):
        sealer.seal(bytes(11), {})
    sealer.seal(bytes(10), {})
    with pytest.raises(LimitExceeded):
        sealer.seal(b"x", {})
    assert MAX_BYTES_PER_SEALER == 2**36


def test_sealer_refuses_to_go_on_in_a_forked_child() -> None:
    """Parent and child would seal under the same nonces."""
    sealer = PayloadSealer(generate_data_key())
    assert run_in_child(lambda: sealer.seal(b"x", {})) == 0
    assert sealer.seal(b"x", {})


def test_stream_refuses_to_go_on_in_a_forked_child() -> None:
    """Parent and child would seal different segments under the same nonce."""
    sealer = SegmentSealer(generate_data_key(), {})
    assert run_in_child(lambda: sealer.seal_segment(b"x", is_last=True)) == 0
    assert sealer.seal_segment(b"x", is_last=True)


def test_sealer_made_in_a_child_works() -> None:
    """Only inherited sealers are spent."""
    assert run_in_child(lambda: PayloadSealer(generate_data_key()).seal(b"x", {})) == 1


def test_sealer_whose_lock_was_held_at_the_fork_refuses_and_does_not_hang() -> None:
    """The fork is noticed before the lock is asked for."""
    sealer = PayloadSealer(generate_data_key())
    with sealer._lock:
        assert run_in_child(lambda: sealer.seal(b"x", {})) == 0


def test_failed_encryption_ends_a_stream() -> None:
    """After a failure nobody knows what left the process, so the nonce is never used again."""
    sealer = SegmentSealer(generate_data_key(), {})
    broken = mock.Mock()
    broken.encrypt.side_effect = MemoryError
    sealer._aead = broken
    with pytest.raises(MemoryError):
        sealer.seal_segment(b"x", is_last=True)
    with pytest.raises(Exception, match="has ended"):
        sealer.seal_segment(b"x", is_last=True)
