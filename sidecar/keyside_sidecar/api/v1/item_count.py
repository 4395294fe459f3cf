"""Count of what a batch's message holds, before it is parsed.

A parsed message takes many times the room of its bytes: of empty items, 16 MiB become half a
gigabyte, and a worker serves nobody while they do. So the limit on items is looked at first. What
is malformed is left to the parser, which refuses it. It takes turns (turns.py): of 10,000 items it
is milliseconds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from keyside.envelope.context import MAX_CONTEXT_PAIRS
from keyside_sidecar.errors import BadRequest
from keyside_sidecar.services.batches import MAX_ITEMS, too_large
from keyside_sidecar.services.turns import Pace

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from keyside_sidecar.services.turns import Turns


_LENGTH_DELIMITED: Final = 2
# The field ``items`` of each request.
_ITEM: Final = 1 << 3 | _LENGTH_DELIMITED
# Of one item, beside its context; and so many more in all, so that an item with a context of too
# many pairs fails alone.
_FIELDS: Final = 3
_SPARE_FIELDS: Final = 10_000
# Between two looks at the clock.
_STRIDE: Final = 128
_AT_ONCE_S: Final = 0.0002


async def require_countable(
    data: bytes, request_type: type[Message], max_batch_bytes: int, turns: Turns
) -> None:
    """Return where a batch's message has few enough items, and pairs in their contexts.

    Args:
        data: The message.
        request_type: What it shall be.
        max_batch_bytes: How much the items may have in all, to be told.
        turns: Says when to work.

    Raises:
        BadRequest: It has too many.
    """
    # The first bit is done at once: of a small batch that is all.
    pace = Pace(turns, _AT_ONCE_S)
    starts = await _find_items(data, max_batch_bytes, pace)
    items: Any = request_type.DESCRIPTOR.fields_by_name["items"]
    contexts = items.message_type.fields_by_name
    if "context" not in contexts:
        return
    most = len(starts) * (_FIELDS + MAX_CONTEXT_PAIRS) + _SPARE_FIELDS
    tag = contexts["context"].number << 3 | _LENGTH_DELIMITED
    # Each pair has this byte, and others may be the same: few of them are few pairs.
    if data.count(tag) <= most:
        return
    for start, end in pairwise([*starts, len(data)]):
        begin, _length = _read_number(data, start + 1)
        most -= await _count_fields(data, begin, end, most, pace)
        if most < 0:
            text = f"have too many pairs in their contexts; one has at most {MAX_CONTEXT_PAIRS}"
            raise BadRequest("items", text)


async def _find_items(data: bytes, max_batch_bytes: int, pace: Pace) -> list[int]:
    """Return where items begin, each with its tag and length.

    Raises:
        BadRequest: There are too many, or there is something beside them.
    """
    starts: list[int] = []
    at, size = 0, len(data)
    # Tag and length of the item before, and how long it was: many have the same.
    head, step = b"", 0
    while at < size:
        count = len(starts)
        if not count % _STRIDE:
            await pace.pause()
        if not head or not data.startswith(head, at):
            if data[at] != _ITEM:
                raise BadRequest("items", "come with a field that is unknown to this version")
            begin, length = _read_number(data, at + 1)
            head, step = data[at:begin], begin - at + length
        if count == MAX_ITEMS:
            raise too_large(f"are more than {MAX_ITEMS}", max_batch_bytes)
        starts.append(at)
        at += step
    return starts


async def _count_fields(data: bytes, at: int, end: int, most: int, pace: Pace) -> int:
    """Return how many fields a message has; it is enough to know that they are more than ``most``.

    Fields that are no bytes count, too: nothing that we know has any.
    """
    count = 0
    while at < end and count <= most:
        if not count % _STRIDE:
            await pace.pause()
        kind = data[at] & 7
        at, _tag = _read_number(data, at)
        count += 1
        if kind == _LENGTH_DELIMITED:
            at, length = _read_number(data, at)
            at += length
        elif kind == 0:
            at, _value = _read_number(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return count  # no such kind is taken by the parser, or it is a group, kept unparsed
    return count


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """Return where a varint ends, and its value; a value past the end where it is cut off."""
    size = len(data)
    # Two bytes are what most have.
    if at + 1 < size and (byte := data[at]) >= 0x80 > data[at + 1]:  # noqa: PLR2004
        return at + 2, byte & 0x7F | data[at + 1] << 7
    value = shift = 0
    while at < size and shift < 64:  # noqa: PLR2004  (bits)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  (the last one)
            return at, value
        shift += 7
    return size, size
