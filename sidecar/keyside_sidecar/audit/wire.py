r"""What workers and the recorder say to each other, over a SOCK_SEQPACKET pair.

    worker ──► recorder   d\nBODY\nBODY…     durable: acknowledged as soon as they are on the disk
                          n\nBODY\nBODY…     written behind
                          r\nBODY\nBODY…     refusals: taken even while the disk is full
                          {"generation": ["<store id>", N]}
                          {"sync": true}     put on the disk now what was written behind
    recorder ──► worker   {"hello": true, "anchor": ["<store id>", N] or null}
                          {"ack": {"d": N, "n": N, "r": N}}
                          {"failing": null or "<reason>", "low": whether only refusals are taken}

A BODY is a line of the log without its number and hash (``keyside.audit.lines``). What is
acknowledged is how many records of each lane are on the disk, counted since the pair was made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from keyside.audit import encode_json
from keyside_sidecar.errors import SidecarError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_PACKET_BYTES: Final = 96 * 1024
# What is packed together; a single record may be as long as a record may be.
FULL_PACKET_BYTES: Final = 48 * 1024
MAX_PACKET_RECORDS: Final = 1024
DURABLE: Final = "d"
BEHIND: Final = "n"
REFUSED: Final = "r"
LANES: Final = (REFUSED, DURABLE, BEHIND)


class WireError(SidecarError):
    """What came is not a packet of ours."""


def encode_records(lane: str, bodies: Iterable[str]) -> bytes:
    """Return a packet of records."""
    return "\n".join((lane, *bodies)).encode("ascii")


def encode_message(fields: Mapping[str, object]) -> bytes:
    """Return a packet of anything else."""
    return encode_json(fields).encode("ascii")


def parse_packet(data: bytes) -> tuple[str, list[bytes]] | dict[str, Any]:
    """Return a lane and its bodies, or another packet's fields.

    Raises:
        WireError: It is neither.
    """
    if data[1:2] == b"\n" and data[:1] in {b"d", b"n", b"r"}:
        if data.count(b"\n") > MAX_PACKET_RECORDS:
            raise WireError("a packet holds too many records")
        lane, *bodies = data.split(b"\n")
        return lane.decode("ascii"), bodies
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise WireError("a packet is no JSON object and holds no records")
    return fields
