"""Batches as a client shows them: any length as one iterator, each item answering for itself."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.sidecar_double import Double, Failure

import keyside
from keyside.errors import (
    EnvelopeRejected,
    InvalidArgument,
    LimitExceeded,
    NotPermitted,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

CREDENTIAL = "ksc-" + "a" * 52


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def client(double: Double) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket, timeout_s=10) as made:
        yield made


def test_results_come_in_order_and_a_bad_item_harms_no_other(client: keyside.Client) -> None:
    """Bytes where an item succeeded, else a typed error that reading the bytes raises."""
    results = list(
        client.encrypt_batch([("mail", b"abc", {"a": "b"}), ("mail", b"bad"), ("pay", b"x", None)])
    )
    assert [result.error is None for result in results] == [True, False, True]
    assert (results[0].envelope, results[0].key, results[0].version) == (
        b"KS:a=b;:cba",
        "mail",
        250,
    )
    assert results[2].envelope == b"KS::x"
    error = results[1].error
    assert isinstance(error, NotPermitted)
    assert (error.code, error.reason, error.remedy) == ("PERMISSION_DENIED", "NOT_ALLOWED", "ask")
    with pytest.raises(NotPermitted):
        _ = results[1].envelope
    opened = list(client.decrypt_batch([b"KS::cba", b"bad", (b"KS:a=b;:zyx", {"a": "b"})]))
    assert [opened[0].plaintext, opened[2].plaintext] == [b"abc", b"xyz"]
    assert isinstance(opened[1].error, EnvelopeRejected)
    assert [result.envelope for result in client.rewrap_batch([b"KS:1", b"KS:2"])] == [
        b"KT:1",
        b"KT:2",
    ]


def test_what_is_no_item_is_told_at_its_place_and_not_sent(
    client: keyside.Client, double: Double
) -> None:
    """A wrong name or type is the item's error, like the sidecar's."""
    items = [("Wrong!", b"x"), ("mail", b"abc"), ("mail", "text"), ("mail",), ("mail", b"xyz")]
    results = list(client.encrypt_batch(items))  # type: ignore[arg-type]
    assert [type(result.error) for result in results] == [
        InvalidArgument,
        type(None),
        InvalidArgument,
        InvalidArgument,
        type(None),
    ]
    assert double.batches == [2]


def test_no_bytes_show_in_a_repr(client: keyside.Client) -> None:
    """Results are put into logs."""
    (result,) = client.decrypt_batch([b"KS::" + b"terces"])
    assert (result.plaintext, "secret" in repr(result)) == (b"secret", False)


def test_a_long_input_is_cut_into_calls_by_items_and_by_bytes(
    client: keyside.Client, double: Double
) -> None:
    """At most 10,000 items and 8 MiB each; nothing is lost, doubled or moved."""
    numbered = [b"%d" % number for number in range(25_000)]
    results = client.rewrap_batch(numbered)
    assert [result.envelope for result in results] == numbered
    assert sum(double.batches) == 25_000
    assert max(double.batches) == 10_000
    double.batches.clear()
    large = [bytes([number]) * (3 * 1024 * 1024) for number in range(5)]
    assert [result.envelope for result in client.rewrap_batch(large)] == large
    assert double.batches == [2, 2, 1]


def test_a_sidecar_that_takes_less_is_obeyed(client: keyside.Client, double: Double) -> None:
    """A call that is refused for its size is made in parts, and the next ones are smaller."""
    double.max_batch_items, double.max_batch_bytes = 3000, 100_000
    numbered = [b"%09d" % number for number in range(22_000)]
    assert [one.envelope for one in client.rewrap_batch(numbered)] == numbered
    assert len([count for count in double.batches if count > 3000]) <= 6
    # One item alone that is too large fails by itself.
    mixed = [b"a", bytes(100_001), b"c"]
    errors = [type(result.error) for result in client.rewrap_batch(mixed)]
    assert errors == [type(None), InvalidArgument, type(None)]


def test_items_are_read_as_they_are_needed(client: keyside.Client) -> None:
    """An endless input gives results: two calls under way and one being filled are enough."""
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"%d" % read

    results = client.rewrap_batch(endless())
    assert [next(results).envelope for _ in range(10)] == [b"%d" % n for n in range(1, 11)]
    assert read <= 3 * 10_000 + 1
    results.close()  # type: ignore[attr-defined]


def test_two_calls_are_under_way_and_no_more(client: keyside.Client, double: Double) -> None:
    """While one is answered the next is on its way; a slow sidecar isn't flooded."""
    entered = threading.Semaphore(0)
    release = threading.Event()

    def begin(name: str, context: object) -> None:
        del name, context
        entered.release()
        release.wait(10)

    double._begin = begin  # type: ignore[method-assign]
    results = client.rewrap_batch(b"x" for _ in range(50_000))
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, results)
        assert entered.acquire(timeout=5)
        assert entered.acquire(timeout=5)
        assert not entered.acquire(timeout=0.2)
        release.set()
        first.result(10)
    assert sum(1 for _ in results) == 49_999


def test_what_concerns_a_whole_call_is_raised_in_its_turn(
    client: keyside.Client, double: Double
) -> None:
    """Results before it are good, and repeatable calls are made again first."""
    double.failures = [Failure(grpc.StatusCode.UNAVAILABLE, reason="STORE_UNAVAILABLE")]
    assert len(list(client.rewrap_batch([b"x"]))) == 1
    with keyside.Client(double.socket, timeout_s=10, retry=False) as single:
        results = single.rewrap_batch(b"x" for _ in range(30_000))
        assert next(results).error is None
        double.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY_CALLS")] * 3
        with pytest.raises(LimitExceeded):
            list(results)


def test_a_grants_batch_is_never_made_again(client: keyside.Client, double: Double) -> None:
    """Each item may count as a use."""
    double.failures = [Failure(grpc.StatusCode.UNAVAILABLE, reason="STORE_UNAVAILABLE")]
    with pytest.raises(Unavailable):
        list(client.decrypt_batch([b"KS::x"], credential=CREDENTIAL))
    assert (double.calls, double.credentials) == (["BatchDecrypt"], [CREDENTIAL])


def test_asyncio_has_the_same(double: Double) -> None:
    """Plain and asynchronous inputs; cut, in order, item by item."""

    async def items() -> AsyncIterator[bytes]:
        for number in range(25_000):
            yield b"%d" % number

    async def use() -> None:
        async with keyside.AsyncClient(double.socket, timeout_s=10) as client:
            rewrapped = [one.envelope async for one in client.rewrap_batch(items())]
            assert rewrapped == [b"%d" % number for number in range(25_000)]
            sealed = [
                one async for one in client.encrypt_batch([("mail", b"ab"), ("mail", b"bad")])
            ]
            assert (sealed[0].envelope, type(sealed[1].error)) == (b"KS::ba", NotPermitted)
            double.max_batch_items = 3
            opened = [one async for one in client.decrypt_batch([b"KS::ba"] * 10)]
            assert [one.plaintext for one in opened] == [b"ab"] * 10
            double.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="TOO_MANY")]
            with pytest.raises(LimitExceeded):
                _ = [one async for one in client.rewrap_batch([b"x"])]

    asyncio.run(use())


def test_one_item_that_is_too_large_leaves_the_others_their_calls(
    double: Double, client: keyside.Client
) -> None:
    """It is searched for in its own call; the next ones are not made smaller for it."""
    double.max_batch_bytes = 1024 * 1024
    items = [b"%09d" % number for number in range(30_000)]
    items[500] = bytes(1024 * 1024 + 1)
    results = list(client.rewrap_batch(items))
    assert [place for place, one in enumerate(results) if one.error is not None] == [500]
    assert len(double.batches) < 60

    async def use() -> None:
        async with keyside.AsyncClient(double.socket, timeout_s=10) as other:
            double.batches.clear()
            assert len([one async for one in other.rewrap_batch(items)]) == 30_000
            assert len(double.batches) < 60

    asyncio.run(use())


@pytest.mark.parametrize(("given", "sent"), [(10_001, 10_000), (35_000, 30_000)])
def test_what_the_input_raises_comes_after_the_results_of_calls_made(
    double: Double, client: keyside.Client, given: int, sent: int
) -> None:
    """They were sealed and recorded; nobody would know."""

    def items() -> Iterator[bytes]:
        for number in range(given):
            yield b"%d" % number
        raise OSError("the input is gone")

    async def arriving() -> AsyncIterator[bytes]:
        for item in items():
            yield item

    expected = [b"%d" % number for number in range(sent)]
    seen: list[bytes] = []
    results = client.rewrap_batch(items())
    with pytest.raises(OSError, match="input is gone"):
        seen.extend(result.envelope for result in results)
    assert seen == expected

    async def use() -> list[bytes]:
        seen: list[bytes] = []
        async with keyside.AsyncClient(double.socket, timeout_s=10) as other:
            with pytest.raises(OSError, match="input is gone"):
                async for result in other.rewrap_batch(arriving()):
                    seen.append(result.envelope)  # noqa: PERF401  (must be kept after the error)
        return seen

    assert asyncio.run(use()) == expected
