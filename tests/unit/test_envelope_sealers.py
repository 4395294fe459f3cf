"""Sealers never use a nonce twice: counters, bounds, threads, forks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import pytest

from keyside.envelope import (
    MAX_BYTES_PER_SEALER,
    MAX_MESSAGES_PER_SEALER,
    PayloadOpener,
    PayloadSealer,
    SegmentSealer,
    forks,
    generate_data_key,
    parse_payload_header,
    payload,
    segments,
)
from keyside.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable


def judge(action: Callable[[], object]) -> int:
    """Return 0 where ``action`` raised a spent sealer's error, and 1 where it raised nothing."""
    try:
        action()
    except LimitExceeded as error:
        return 0 if error.reason == "SEALER_SPENT" else 2
    except BaseException:  # noqa: BLE001 - in a child nothing may get as far as the test runner
        return 3
    return 1


def judge_in_child(child: int, action: Callable[[], object]) -> int:
    """Judge ``action`` in the child, where ``child`` is 0; return its verdict in the parent."""
    if child == 0:
        os._exit(judge(action))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_in_child(action: Callable[[], object]) -> int:
    """Fork and judge ``action`` in the child."""
    return judge_in_child(os.fork(), action)


class ForkPoint:
    """A place in the code under test where the process forks once, as a signal handler might."""

    def __init__(self) -> None:
        self.child: int | None = None

    def fork(self) -> None:
        if self.child is None:
            self.child = os.fork()

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with the fork between its end and its caller."""

        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            self.fork()
            return result

        return call


class ForkingLock:
    """A lock with the fork just before it is taken."""

    def __init__(self, point: ForkPoint) -> None:
        self._point = point
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._point.fork()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class SlowBound(int):
    """A bound that takes so long to compare with that every other thread gets its turn."""

    def __lt__(self, other: int) -> bool:
        time.sleep(0.002)
        return int(self) < other

    def __le__(self, other: int) -> bool:
        time.sleep(0.002)
        return int(self) <= other

    def __sub__(self, other: int) -> SlowBound:
        return SlowBound(int(self) - other)


def seal_whole(sealer: PayloadSealer | SegmentSealer) -> bytes:
    """Seal one byte with either kind of sealer."""
    if isinstance(sealer, PayloadSealer):
        return sealer.seal(b"x", {})
    return sealer.seal_segment(b"x", is_last=True)


MAKERS: list[Callable[[], PayloadSealer | SegmentSealer]] = [
    lambda: PayloadSealer(generate_data_key()),
    lambda: SegmentSealer(generate_data_key(), {}),
]
either_sealer = pytest.mark.parametrize("make", MAKERS, ids=["whole", "segments"])


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


def test_no_sequence_is_taken_twice_while_another_thread_is_at_it() -> None:
    """A thread that is held up between reading the counter and raising it holds up the others."""
    sealer = PayloadSealer(generate_data_key())
    sealer._bytes_left = SlowBound(MAX_BYTES_PER_SEALER)
    with ThreadPoolExecutor(8) as threads:
        payloads = list(threads.map(lambda _: sealer.seal(b"x", {}), range(64)))
    sequences = {int.from_bytes(parse_payload_header(item).sequence) for item in payloads}
    assert sequences == set(range(64))


def test_no_index_is_taken_twice_while_another_thread_is_at_it() -> None:
    """The same for segments: equal plaintexts seal to equal segments only under one nonce."""
    sealer = SegmentSealer(generate_data_key(), {}, segment_size=4096)
    sealer._max_segments = SlowBound(sealer._max_segments)
    with ThreadPoolExecutor(8) as threads:
        seal = threads.map(lambda _: sealer.seal_segment(bytes(4096), is_last=False), range(64))
        assert len(set(seal)) == 64


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


@either_sealer
def test_sealer_whose_lock_was_held_at_the_fork_refuses_and_does_not_hang(
    make: Callable[[], PayloadSealer | SegmentSealer],
) -> None:
    """The fork is noticed before the lock is asked for."""
    sealer = make()
    sealer._lock.acquire()
    child = os.fork()
    if child == 0:
        # A child that waits for the lock for ever is ended by this alarm, and fails the test.
        ctypes.CDLL(None).alarm(10)
    assert judge_in_child(child, lambda: seal_whole(sealer)) == 0
    sealer._lock.release()


@either_sealer
def test_fork_between_the_check_and_the_lock_is_noticed(
    make: Callable[[], PayloadSealer | SegmentSealer],
) -> None:
    """A signal handler may fork there, and the parent's other threads go on sealing."""
    sealer = make()
    point = ForkPoint()
    sealer._lock = cast("threading.Lock", ForkingLock(point))
    verdict = judge(lambda: seal_whole(sealer))
    if point.child == 0:
        os._exit(verdict)
    assert point.child is not None
    assert os.waitstatus_to_exitcode(os.waitpid(point.child, 0)[1]) == 0
    assert verdict == 1


@pytest.mark.parametrize(
    ("module", "step", "make"),
    [
        (payload, "urandom", MAKERS[0]),
        (payload, "derive_whole_keys", MAKERS[0]),
        (segments, "encode_context", MAKERS[1]),
        (segments, "urandom", MAKERS[1]),
        (segments, "derive_segmented_keys", MAKERS[1]),
    ],
)
def test_fork_while_a_sealer_is_made_is_noticed(
    module: Any, step: str, make: Callable[[], PayloadSealer | SegmentSealer]
) -> None:
    """Both processes then hold a sealer of one salt, and only the parent's may seal."""
    point = ForkPoint()
    with mock.patch.object(module, step, point.after(getattr(module, step))):
        sealer = make()
    assert point.child is not None
    assert judge_in_child(point.child, lambda: seal_whole(sealer)) == 0
    assert seal_whole(sealer)


@either_sealer
def test_fork_that_python_is_not_told_of_is_noticed(
    make: Callable[[], PayloadSealer | SegmentSealer],
) -> None:
    """C code forks without the interpreter's hooks; the process id is another all the same."""
    sealer = make()
    count = forks.FORKS.count

    def seal() -> None:
        assert count == forks.FORKS.count
        seal_whole(sealer)

    assert judge_in_child(ctypes.PyDLL(None).fork(), seal) == 0
    assert seal_whole(sealer)


@either_sealer
def test_child_that_is_given_the_same_process_id_is_noticed(
    make: Callable[[], PayloadSealer | SegmentSealer],
) -> None:
    """Ids are given out again, and are small in a container; the count of forks never falls."""
    sealer = make()

    def seal() -> None:
        with mock.patch.object(forks, "getpid", os.getppid):
            seal_whole(sealer)

    assert run_in_child(seal) == 0
    assert seal_whole(sealer)


EARLY_HOOK = """
import os
sealers = []

def seal():
    for sealer in sealers:
        try:
            sealer()
            os.write(1, b"sealed ")
        except Exception as error:
            os.write(1, getattr(error, "reason", repr(error)).encode() + b" ")

os.register_at_fork(after_in_child=seal)
from keyside.envelope import PayloadSealer, SegmentSealer, generate_data_key
whole = PayloadSealer(generate_data_key())
stream = SegmentSealer(generate_data_key(), {})
sealers += [lambda: whole.seal(b"x", {}), lambda: stream.seal_segment(b"x", is_last=True)]
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
seal()
"""


def test_hook_that_runs_before_ours_finds_the_sealers_spent() -> None:
    """Hooks run in the order of their registration: another library's may seal before we count."""
    said = subprocess.run(
        [sys.executable, "-c", EARLY_HOOK], capture_output=True, timeout=60, check=True
    )
    assert said.stdout.split() == [b"SEALER_SPENT", b"SEALER_SPENT", b"sealed", b"sealed"]


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
