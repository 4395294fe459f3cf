"""What a batch's message holds is counted before it is parsed (item_count.py)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from keyside.v1 import encryption_pb2 as pb
from keyside_sidecar.api.v1 import item_count as counting
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.services.batches import MAX_ITEMS
from keyside_sidecar.services.turns import Turns

KINDS: tuple[Any, ...] = (pb.BatchEncryptRequest, pb.BatchDecryptRequest, pb.BatchRewrapRequest)
EMPTY_ITEM = b"\x0a\x00"


def require_countable(data: bytes, kind: Any, max_batch_bytes: int) -> None:
    asyncio.run(counting.require_countable(data, kind, max_batch_bytes, Turns()))


def encrypt_message(*contexts: dict[str, str], plaintext: bytes = b"") -> bytes:
    """Return a request with as many items."""
    items = [pb.BatchEncryptItem(key="k", plaintext=plaintext, context=it) for it in contexts]
    return pb.BatchEncryptRequest(items=items).SerializeToString()


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_items_are_refused_and_told_both_limits(kind: Any) -> None:
    require_countable(EMPTY_ITEM * MAX_ITEMS, kind, 99)
    for data in (EMPTY_ITEM * (MAX_ITEMS + 1), EMPTY_ITEM * (8 << 20)):
        with pytest.raises(BadRequest, match=r"10000 items and 99 bytes") as refused:
            require_countable(data, kind, 99)
        assert refused.value.field == "items"


def test_what_real_clients_send_passes() -> None:
    """The largest contexts, and plaintexts that look like nothing but pairs."""
    pairs = {f"{number:0128d}": "v" * 20 for number in range(32)}
    require_countable(encrypt_message(*[pairs] * 600), pb.BatchEncryptRequest, 1)
    for byte in (0x0A, 0x12, 0x1A):
        looks_alike = encrypt_message({}, {"a": "b"}, plaintext=bytes([byte]) * 1_000_000)
        require_countable(looks_alike, pb.BatchEncryptRequest, 1)
    noise = random.Random(7).randbytes(4 << 20)
    require_countable(encrypt_message({}, plaintext=noise), pb.BatchEncryptRequest, 1)
    require_countable(b"", pb.BatchEncryptRequest, 1)


def test_an_item_with_too_many_pairs_is_left_to_fail_alone() -> None:
    several = encrypt_message({}, {str(number): "" for number in range(9_000)}, {})
    require_countable(several, pb.BatchEncryptRequest, 1)


def test_contexts_beyond_all_measure_are_refused() -> None:
    """Whatever the other fields are, and wherever the pairs are."""
    pair = b"\x1a\x02\x0a\x00"
    for body in (pair * 50_000, b"\x0a\x01k\x20\x01" + pair * 50_000, b"\x25abcd" + pair * 50_000):
        length = len(body)
        prefix = b"\x0a" + bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
        message = prefix + body
        assert len(pb.BatchEncryptRequest.FromString(message).items) == 1
        with pytest.raises(BadRequest, match="too many pairs"):
            require_countable(EMPTY_ITEM + message, pb.BatchEncryptRequest, 1)


def test_a_field_beside_the_items_is_refused() -> None:
    with pytest.raises(BadRequest, match="unknown"):
        require_countable(EMPTY_ITEM + b"\x10\x01" + EMPTY_ITEM, pb.BatchEncryptRequest, 1)


def test_whatever_arrives_is_walked_to_its_end() -> None:
    """Cut or random bytes are for the parser; counting never fails in another way."""
    whole = encrypt_message({"a": "b"}, {"c": "d"}, plaintext=b"\x1a" * 40_000)
    numbers = random.Random(11)
    for data in (
        *(whole[: numbers.randrange(len(whole))] for _ in range(200)),
        *(b"\x0a" + numbers.randbytes(60) for _ in range(2_000)),
        b"\x0a" + b"\xff" * 11,
        b"\x0a",
    ):
        try:
            require_countable(data, pb.BatchEncryptRequest, 1)
        except BadRequest:
            continue


def test_the_longest_message_is_counted_a_turn_at_a_time() -> None:
    """Whoever shares the loop is held up by no more than a turn, and a little."""
    item = encrypt_message({}, plaintext=bytes(256))
    pair = b"\x1a\x02\x0a\x00"
    many = b"\x0a" + varint(len(pair) * 300_000) + pair * 300_000
    for data in (item * MAX_ITEMS, EMPTY_ITEM * (MAX_ITEMS - 1) + many):
        assert count_rounds(data) >= 3


def varint(number: int) -> bytes:
    groups = []
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def count_rounds(data: bytes) -> int:
    """Return how many rounds of the loop others had meanwhile."""

    async def count() -> int:
        task = asyncio.create_task(
            counting.require_countable(data, pb.BatchEncryptRequest, 1, Turns())
        )
        rounds = 0
        while not task.done():
            await asyncio.sleep(0)
            rounds += 1
        await task
        return rounds

    return asyncio.run(count())
