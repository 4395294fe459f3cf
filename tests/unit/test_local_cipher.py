"""A local cipher: the sidecar's envelopes, made here, under keys that are kept within bounds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.envelope_double import EnvelopeDouble

import keyside
from keyside import _local_cipher, _local_keys
from keyside.envelope import (
    DEFAULT_SUITE,
    MAX_OVERHEAD_BYTES,
    SegmentSealer,
    direct,
    forks,
    parse_payload_header,
    parse_wrapping_header,
)
from keyside.errors import (
    EnvelopeRejected,
    InvalidArgument,
    LimitExceeded,
    NotPermitted,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from keyside.envelope import PayloadHeader

CONTEXT = {"account": "42"}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def client(double: EnvelopeDouble) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket, timeout_s=10) as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the host's start, which stand still unless a test moves them."""
    now_s = [1000.0]
    for module in (_local_cipher, _local_keys):
        for name in ("clock_gettime", "read_clock"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_: now_s[0])
    monkeypatch.setattr("keyside.local.read_clock", lambda: now_s[0])
    monkeypatch.setattr("keyside.local_aio.read_clock", lambda: now_s[0])
    return now_s


def payload_of(envelope: bytes) -> PayloadHeader:
    return parse_payload_header(envelope, len(parse_wrapping_header(envelope).raw))


def in_child(fork: Callable[[], int], action: Callable[[], bool]) -> bool:
    """Fork, and say whether ``action`` held in the child."""
    child = fork()
    if child == 0:
        verdict = 1
        try:
            verdict = 0 if action() else 1
        finally:
            os._exit(verdict)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


FORKS = pytest.mark.parametrize(
    "fork", [os.fork, lambda: ctypes.PyDLL(None).fork()], ids=["python", "c"]
)


@pytest.mark.parametrize("size", [0, 1, 256, 9000, 1024 * 1024])
def test_envelopes_are_the_sidecars_both_ways(
    double: EnvelopeDouble, client: keyside.Client, size: int
) -> None:
    """What one seals the other opens, whatever the size, with one call for many messages."""
    cipher = keyside.LocalCipher(client, "mail")
    plaintext = os.urandom(size)
    envelope = cipher.seal(plaintext, CONTEXT)
    assert double.open(envelope, CONTEXT) == plaintext
    assert len(envelope) == cipher.sealed_length(size) <= size + MAX_OVERHEAD_BYTES
    sealed_there = double.seal(plaintext, CONTEXT)
    for one in (envelope, sealed_there, bytearray(envelope), memoryview(sealed_there)):
        assert cipher.open(one, CONTEXT) == plaintext
    assert cipher.open(cipher.seal(bytearray(plaintext))) == plaintext
    assert double.calls == ["GenerateDataKey", "DecryptDataKey", "DecryptDataKey"]


def test_buffers_are_written_in_place(double: EnvelopeDouble, client: keyside.Client) -> None:
    """For large messages; too small a buffer is refused, and a refused envelope leaves zeros."""
    cipher = keyside.LocalCipher(client, "mail")
    plaintext = os.urandom(100_000)
    buffer = bytearray(cipher.sealed_length(len(plaintext)) + 5)
    length = cipher.seal_into(plaintext, buffer, CONTEXT)
    assert length == len(buffer) - 5
    assert double.open(bytes(buffer[:length]), CONTEXT) == plaintext
    out = bytearray(b"x" * length)
    for _ in range(2):
        assert cipher.open_into(memoryview(buffer)[:length], out, CONTEXT) == len(plaintext)
        assert out[: len(plaintext)] == plaintext
    buffer[length - 1] ^= 1
    with pytest.raises(EnvelopeRejected):
        cipher.open_into(memoryview(buffer)[:length], out, CONTEXT)
    assert out[: len(plaintext)] == bytes(len(plaintext))
    with pytest.raises(InvalidArgument, match="the buffer must be writable and have 100216 bytes"):
        cipher.seal_into(plaintext, bytearray(10))
    with pytest.raises(InvalidArgument):
        cipher.open_into(double.seal(b"abc"), bytearray(2))
    with pytest.raises(InvalidArgument):
        cipher.open_into(double.seal(b"abc"), memoryview(b"read-only"))


def test_segmented_envelopes_open_too(double: EnvelopeDouble, client: keyside.Client) -> None:
    """A file's envelope that is in memory is an envelope."""
    issued = client.generate_data_key("mail")
    assert issued.data_key is not None
    sealer = SegmentSealer(issued.data_key, CONTEXT, DEFAULT_SUITE, segment_size=4096)
    body = sealer.seal_segment(bytes(4096), is_last=False) + sealer.seal_segment(b"x", is_last=True)
    envelope = issued.wrapped + sealer.header + body
    cipher = keyside.LocalCipher(client, "mail")
    assert double.open(envelope, CONTEXT) == bytes(4096) + b"x"
    assert cipher.open(envelope, CONTEXT) == bytes(4096) + b"x"
    assert cipher.open_into(envelope, bytearray(5000), CONTEXT) == 4097


def test_no_bit_may_be_another(client: keyside.Client, double: EnvelopeDouble) -> None:
    """Every bit flipped, every length, another context: one refusal, in the quick way as well."""
    cipher = keyside.LocalCipher(client, "mail")
    envelope = cipher.seal(b"x", CONTEXT)
    assert cipher.open(envelope, CONTEXT) == b"x"
    for place in range(len(envelope)):
        for bit in (1, 128):
            altered = bytearray(envelope)
            altered[place] ^= bit
            with pytest.raises(EnvelopeRejected):
                cipher.open(bytes(altered), CONTEXT)
    for end in range(len(envelope)):
        with pytest.raises(EnvelopeRejected):
            cipher.open(envelope[:end], CONTEXT)
    for context in ({"account": "43"}, {}, None, {**CONTEXT, "b": ""}):
        with pytest.raises(EnvelopeRejected):
            cipher.open(envelope, context)
    with pytest.raises(EnvelopeRejected):
        cipher.open(envelope + b"\0", CONTEXT)
    assert cipher.open(envelope, CONTEXT) == b"x"
    assert double.open(envelope, CONTEXT) == b"x"


def test_another_keys_envelope_is_refused_without_a_call(
    client: keyside.Client, double: EnvelopeDouble
) -> None:
    """Also where the caller may open that key's: the cipher is one key's."""
    with pytest.raises(EnvelopeRejected):
        keyside.LocalCipher(client, "payroll").open(double.seal(b"x"))
    assert double.calls == []


def test_sequences_are_never_shared(client: keyside.Client) -> None:
    """4,000 messages from 8 threads under one salt: 4,000 nonces."""
    cipher = keyside.LocalCipher(client, "mail")
    with ThreadPoolExecutor(8) as threads:
        sealed = list(threads.map(lambda n: cipher.seal(b"%d" % n), range(4000)))
    headers = [payload_of(envelope) for envelope in sealed]
    assert len({header.sequence for header in headers}) == 4000
    assert len({header.salted for header in headers}) == 1
    assert [cipher.open(envelope) for envelope in sealed] == [b"%d" % n for n in range(4000)]


def test_counting_without_the_interpreters_lock_takes_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A free-threaded interpreter's counter is guarded by a lock of our own."""
    monkeypatch.setattr("sys._is_gil_enabled", lambda: False, raising=False)
    counter = direct._count_up()
    assert isinstance(counter, direct._LockedCount)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: next(counter), range(2000))) == set(range(2000))


@pytest.mark.parametrize("own", [{}, {"max_messages": 3}])
def test_a_data_key_seals_as_many_messages_as_it_may(
    double: EnvelopeDouble, client: keyside.Client, own: dict[str, Any]
) -> None:
    """The sidecar's bound or the cipher's, whichever is less; then comes a new one first."""
    double.max_messages = 2**20 if own else 3
    cipher = keyside.LocalCipher(client, "mail", **own)
    sealed = [cipher.seal(b"x") for _ in range(7)]
    wrapped = [parse_wrapping_header(envelope).raw for envelope in sealed]
    assert [wrapped.count(one) for one in dict.fromkeys(wrapped)] == [3, 3, 1]
    assert double.calls == ["GenerateDataKey"] * 3


@pytest.mark.parametrize("own", [{}, {"max_bytes": 1000}])
def test_a_data_key_seals_as_many_bytes_as_it_may(
    double: EnvelopeDouble, client: keyside.Client, own: dict[str, Any]
) -> None:
    """Never more in all; what alone is more is refused with the limit."""
    double.max_bytes = 2**36 if own else 1000
    cipher = keyside.LocalCipher(client, "mail", **own)
    by_key: dict[bytes, int] = {}
    for size in (400, 400, 400, 1000, 1, 999):
        raw = parse_wrapping_header(cipher.seal(bytes(size))).raw
        by_key[raw] = by_key.get(raw, 0) + size
    assert max(by_key.values()) <= 1000
    assert len(by_key) <= 5
    with pytest.raises(LimitExceeded, match="at most 1000 bytes"):
        cipher.seal(bytes(1001))


def test_keys_leave_at_their_age(
    double: EnvelopeDouble, client: keyside.Client, clock: list[float]
) -> None:
    """Counted from before the call; a rollover, a refusal or an outage shows then."""
    cipher = keyside.LocalCipher(client, "mail")
    old = cipher.seal(b"x")
    assert cipher.open(old) == b"x"
    double.rotate()
    clock[0] += 299.9
    assert parse_wrapping_header(cipher.seal(b"x")).version_number == 1
    assert cipher.open(old) == b"x"
    assert double.calls == ["GenerateDataKey", "DecryptDataKey"]
    clock[0] += 0.1
    assert parse_wrapping_header(cipher.seal(b"x")).version_number == 2
    assert cipher._keys.ready.by_beginning == {}
    double.refused.add(1)
    with pytest.raises(keyside.VersionUnusable):
        cipher.open(old)
    double.allow_data_keys = False
    assert cipher.seal(b"x")
    clock[0] += 300
    with pytest.raises(NotPermitted) as caught:
        cipher.seal(b"x")
    assert caught.value.reason == "DATA_KEYS_NOT_ALLOWED"
    assert cipher._keys.sealer is None


def test_a_ciphers_own_age_shortens_the_sidecars(
    double: EnvelopeDouble, client: keyside.Client, clock: list[float]
) -> None:
    """And never lengthens it."""
    for own_s, kept_s in ((10, 10), (900, 300)):
        double.calls.clear()
        cipher = keyside.LocalCipher(client, "mail", max_age_s=own_s)
        for pause_s in (0, kept_s - 0.5, 0.5):
            clock[0] += pause_s
            cipher.seal(b"x")
        assert double.calls == ["GenerateDataKey"] * 2


def test_only_so_many_keys_are_kept_for_opening(
    double: EnvelopeDouble, client: keyside.Client
) -> None:
    """The oldest goes first; salts that somebody makes up don't pile up either."""
    cipher = keyside.LocalCipher(client, "mail", max_cached=3)
    sealed = [double.seal(b"%d" % number) for number in range(5)]
    assert [cipher.open(one) for one in sealed + sealed[2:]] == [
        b"0", b"1", b"2", b"3", b"4", b"2", b"3", b"4",
    ]  # fmt: skip
    assert double.calls == ["DecryptDataKey"] * 5
    assert cipher.open(sealed[0]) == b"0"
    assert double.calls == ["DecryptDataKey"] * 6
    assert len(cipher._keys._data_keys) == 3


def test_threads_that_miss_at_once_make_one_call(
    double: EnvelopeDouble, client: keyside.Client
) -> None:
    """For sealing and for each key to open; and what that one call raises, all of them raise."""
    double.delay_s = 0.2
    cipher = keyside.LocalCipher(client, "mail")
    with ThreadPoolExecutor(8) as threads:
        sealed = list(threads.map(lambda _: cipher.seal(b"x"), range(8)))
        assert double.calls == ["GenerateDataKey"]
        assert list(threads.map(cipher.open, sealed)) == [b"x"] * 8
        assert double.calls == ["GenerateDataKey", "DecryptDataKey"]
        double.allow_data_keys = False
        cipher.forget_keys()
        raised = [threads.submit(cipher.seal, b"x").exception() for _ in range(1)]
        raised += [one.exception() for one in [threads.submit(cipher.seal, b"x") for _ in range(8)]]
    assert {type(error) for error in raised} == {NotPermitted}
    assert double.calls.count("GenerateDataKey") <= 3


def test_a_sidecar_that_is_away_is_said_to_be_away(tmp_path: Path) -> None:
    """While a key is at hand nothing is noticed; then it is no "decryption failed"."""
    with EnvelopeDouble(tmp_path / "k.sock") as double:
        client = keyside.Client(double.socket, timeout_s=0.3)
        cipher = keyside.LocalCipher(client, "mail")
        envelope = cipher.seal(b"x")
    assert cipher.seal(b"y")
    with pytest.raises(Unavailable):
        cipher.open(envelope)
    client.close()


@FORKS
def test_keys_do_not_survive_a_fork(
    double: EnvelopeDouble, client: keyside.Client, fork: Callable[[], int]
) -> None:
    """Neither one that Python is told of nor another: a child never uses its parent's nonces."""
    cipher = keyside.LocalCipher(client, "mail")
    envelope = cipher.seal(b"x")
    cipher.open(envelope)
    sealer = cipher._keys.sealer
    assert sealer is not None

    def seals_nothing() -> bool:
        vars(cipher)["_seal_later"] = lambda _: b"asked"
        return sealer.seal(b"x", 1, b"\0\0") is None and cipher.seal(b"x") == b"asked"

    assert in_child(fork, seals_nothing)
    assert cipher.seal(b"y")
    assert double.calls == ["GenerateDataKey", "DecryptDataKey"]


def test_a_fork_empties_the_cache_whatever_locks_were_held(
    client: keyside.Client,
) -> None:
    """Another thread may hold any of them at that moment."""
    cipher = keyside.LocalCipher(client, "mail")
    cipher.open(cipher.seal(b"x"))
    locks = (cipher._keys._lock, cipher._flights._lock)

    def is_empty() -> bool:
        ctypes.CDLL(None).alarm(10)
        cipher._keys.refresh()
        cipher.forget_keys()
        empty = not cipher._keys._data_keys and cipher._keys.sealer is None
        return empty and cipher._flights.share("x", lambda: True)

    with ThreadPoolExecutor(1) as threads:
        for lock in locks:
            threads.submit(lock.acquire).result(10)
        assert in_child(os.fork, is_empty)
        for lock in locks:
            threads.submit(lock.release).result(10)


def test_a_kernel_that_wipes_nothing_is_made_up_for() -> None:
    """The process id and the count of forks take the page's place."""
    marks = forks.ComputedMarks()
    before = marks[0]
    assert before == marks[0] != 0
    assert in_child(os.fork, lambda: marks[0] != before)
    assert in_child(lambda: ctypes.PyDLL(None).fork(), lambda: marks[0] != before)


def test_bounds_keys_and_arguments_are_looked_at(client: keyside.Client) -> None:
    """All that is wrong is named; nothing of a key shows or can be copied."""
    with pytest.raises(InvalidArgument, match="max_age_s, max_messages"):
        keyside.LocalCipher(client, "mail", max_age_s=0, max_messages=-1)
    with pytest.raises(InvalidArgument):
        keyside.LocalCipher(client, "Mail")
    cipher = keyside.LocalCipher(client, "mail")
    for wrong in ("text", None, 5):
        with pytest.raises(InvalidArgument):
            cipher.seal(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            cipher.open(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        cipher.seal(b"x", {"": "y"})
    assert repr(cipher) == "<keyside.LocalCipher mail>"
    issued = client.generate_data_key("mail")
    assert issued.data_key is not None
    assert repr(issued.data_key.material) not in repr(issued)
    assert client.generate_data_key("mail", wrapped_only=True).data_key is None
    for unshareable in (cipher, cipher._keys):
        with pytest.raises(TypeError):
            pickle.dumps(unshareable)


def test_asyncio_has_the_same(double: EnvelopeDouble, clock: list[float]) -> None:
    """One call for tasks that miss at once; a task that is cancelled takes it from no other."""

    async def use() -> None:
        async with keyside.AsyncClient(double.socket, timeout_s=10) as client:
            cipher = keyside.AsyncLocalCipher(client, "mail")
            double.delay_s = 0.2
            tasks = [asyncio.create_task(cipher.seal(b"%d" % n, CONTEXT)) for n in range(8)]
            await asyncio.sleep(0.05)
            tasks[0].cancel()
            sealed = await asyncio.gather(*tasks[1:])
            assert [double.open(one, CONTEXT) for one in sealed] == [b"%d" % n for n in range(1, 8)]
            opened = await asyncio.gather(*(cipher.open(one, CONTEXT) for one in sealed))
            assert opened == [b"%d" % n for n in range(1, 8)]
            assert double.calls == ["GenerateDataKey", "DecryptDataKey"]
            buffer = bytearray(cipher.sealed_length(3))
            assert await cipher.seal_into(b"abc", buffer) == len(buffer)
            assert await cipher.open_into(buffer, bytearray(3)) == 3
            double.delay_s = 0
            double.allow_data_keys = False
            clock[0] += 301
            with pytest.raises(NotPermitted):
                await cipher.seal(b"x")
            assert repr(cipher) == "<keyside.AsyncLocalCipher mail>"

    asyncio.run(use())


def test_an_interrupted_thread_leaves_the_call_to_the_next(client: keyside.Client) -> None:
    """Ctrl-C in the thread that makes the call says nothing about the call."""
    cipher = keyside.LocalCipher(client, "mail")
    entered, go_on = threading.Event(), threading.Event()

    def be_interrupted() -> None:
        entered.set()
        go_on.wait(10)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cipher._flights.share, "k", be_interrupted)
        assert entered.wait(10)
        second = threads.submit(cipher._flights.share, "k", lambda: "answer")
        go_on.set()
        assert second.result(10) == "answer"
        assert isinstance(first.exception(10), KeyboardInterrupt)


@pytest.mark.parametrize("call", ["GenerateDataKey", "DecryptDataKey"])
def test_no_key_that_arrives_while_keys_are_forgotten_is_without_an_age(
    double: EnvelopeDouble,
    client: keyside.Client,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """In another thread, at the worst moment."""
    cipher = keyside.LocalCipher(client, "mail")
    envelope = double.seal(b"x")

    def use() -> None:
        cipher.seal(b"x") if call == "GenerateDataKey" else cipher.open(envelope)

    other = threading.Thread(target=use)
    whole = _local_keys.Ready

    def let_the_other_in() -> _local_keys.Ready:
        if other.ident is None:
            other.start()
            other.join(0.2)
        return whole()

    monkeypatch.setattr(_local_keys, "Ready", let_the_other_in)
    cipher.forget_keys()
    other.join(10)
    assert double.calls == [call]
    clock[0] += 301
    use()
    assert double.calls == [call, call]


def test_forgetting_harms_no_message_that_is_being_sealed(
    client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key has come: it is sealed under that, and not called too long."""
    cipher = keyside.LocalCipher(client, "mail")
    whole = cipher._take_issued

    def take(*arguments: Any) -> direct.DirectSealer:
        sealer = whole(*arguments)
        cipher.forget_keys()
        return sealer

    monkeypatch.setattr(cipher, "_take_issued", take)
    assert cipher.open(cipher.seal(b"x")) == b"x"


def test_what_no_new_key_could_seal_is_refused_at_once(
    double: EnvelopeDouble, client: keyside.Client
) -> None:
    """The bytes that can't be divided among the messages are nobody's; no keys are used up."""
    for first in (99, 100):
        double.calls.clear()
        cipher = keyside.LocalCipher(client, "mail", max_messages=3, max_bytes=100)
        if first == 99:
            assert double.open(cipher.seal(bytes(99))) == bytes(99)
        for _ in range(2):
            with pytest.raises(LimitExceeded, match="at most 99 bytes"):
                cipher.seal(bytes(100))
        assert double.calls == ["GenerateDataKey"]


def test_a_key_asked_for_before_keys_were_forgotten_is_not_kept(
    double: EnvelopeDouble, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It serves who waited for it; who comes later asks anew, and doesn't wait for that one."""
    cipher = keyside.LocalCipher(client, "mail")
    envelope = double.seal(b"x")
    uses: list[tuple[str, Callable[[], bytes]]] = [
        ("generate_data_key", lambda: cipher.seal(b"x")),
        ("decrypt_data_key", lambda: cipher.open(envelope)),
    ]
    for method, use in uses:
        entered, go_on = threading.Event(), threading.Event()
        whole = getattr(client, method)

        def be_slow(
            argument: Any,
            whole: Any = whole,
            entered: threading.Event = entered,
            go_on: threading.Event = go_on,
        ) -> Any:
            if not entered.is_set():
                entered.set()
                go_on.wait(10)
            return whole(argument)

        monkeypatch.setattr(client, method, be_slow)
        double.calls.clear()
        with ThreadPoolExecutor(2) as threads:
            early = threads.submit(use)
            assert entered.wait(10)
            cipher.forget_keys()
            assert threads.submit(use).result(10)
            assert len(double.calls) == 1
            cipher.forget_keys()
            go_on.set()
            assert early.result(10)
        assert len(double.calls) == 2
        assert use()
        assert len(double.calls) == 3


def test_asyncio_keeps_no_key_from_before_either(double: EnvelopeDouble) -> None:
    """Both kinds of key; and a later task has a call of its own."""

    async def use() -> None:
        async with keyside.AsyncClient(double.socket, timeout_s=10) as client:
            cipher = keyside.AsyncLocalCipher(client, "mail")
            envelope = double.seal(b"x")
            actions: list[Callable[[], Coroutine[Any, Any, bytes]]] = [
                lambda: cipher.seal(b"x"),
                lambda: cipher.open(envelope),
            ]
            for action in actions:
                double.calls.clear()
                double.delay_s = 0.1
                early = asyncio.create_task(action())
                await asyncio.sleep(0.02)
                cipher.forget_keys()
                late = asyncio.create_task(action())
                await asyncio.sleep(0.02)
                cipher.forget_keys()
                await asyncio.gather(early, late)
                double.delay_s = 0
                assert len(double.calls) == 2
                await action()
                assert len(double.calls) == 3

    asyncio.run(use())


def test_a_signal_handler_does_not_wait_for_the_thread_it_interrupts(
    double: EnvelopeDouble, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for a key itself where that thread is about to."""
    cipher = keyside.LocalCipher(client, "mail")
    sealed: list[bytes] = []
    whole = client.generate_data_key

    def be_interrupted(key: str) -> Any:
        if not sealed:
            signal.raise_signal(signal.SIGUSR1)
        return whole(key)

    def give_up(*_: object) -> None:
        raise TimeoutError

    def handle(*_: object) -> None:
        monkeypatch.setattr(client, "generate_data_key", whole)
        sealed.append(cipher.seal(b"handler"))

    monkeypatch.setattr(client, "generate_data_key", be_interrupted)
    former = signal.signal(signal.SIGUSR1, handle), signal.signal(signal.SIGALRM, give_up)
    try:
        signal.alarm(5)
        sealed.append(cipher.seal(b"thread"))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGUSR1, former[0])
        signal.signal(signal.SIGALRM, former[1])
    assert [double.open(one) for one in sealed] == [b"handler", b"thread"]
