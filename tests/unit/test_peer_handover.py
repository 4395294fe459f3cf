"""A caller as text, on its way from the supervisor to a worker."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from keyside_sidecar.access.reasons import Reason
from keyside_sidecar.peer.caller import Caller, CallerMalformed
from keyside_sidecar.peer.credential import MAX_GROUPS

CALLERS = [
    Caller(pid=0, uid=2**32 - 1, gid=2**32 - 1, standing=Reason.PEER_NOT_UNIX),
    Caller(
        pid=4711,
        uid=70001,
        gid=70002,
        process_gids=(4, 70003),
        login_uid=1000,
        session_id=3,
        login_readable=True,
        pidfd_source="kernel",
        exe="/usr/bin/ä\\xff",
    ),
    Caller(pid=1, uid=0, gid=0, process_gids=(), pidfd_source="pidfd_open"),
]


@pytest.mark.parametrize("caller", CALLERS)
def test_a_caller_survives_the_handover(caller: Caller) -> None:
    assert astuple(Caller.from_json(caller.to_json())) == astuple(caller)


def test_the_largest_caller_fits_into_a_packet() -> None:
    groups = tuple(range(2**32 - MAX_GROUPS, 2**32))
    assert len(replace(CALLERS[1], process_gids=groups).to_json()) < 100_000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"pid":4711', '"pid":-1'),
        ('"pid":4711', '"pid":true'),
        ('"pid":4711', '"pid":4711.0'),
        ('"pid":4711', '"pid":"4711"'),
        ('"pid":4711', '"pid":4294967296'),
        ('"uid":70001', '"uid":null'),
        ('"uid":70001', '"uid":4294967296'),
        ('"uid":70001,', ""),
        ('"uid":70001', '"uid":70001,"more":1'),
        ("[4,70003]", "[4,null]"),
        ("[4,70003]", '"4"'),
        ('"login_uid":1000', '"login_uid":-1'),
        ('"login_readable":true', '"login_readable":1'),
        ('"kernel"', '"guess"'),
        ('"standing":null', '"standing":"NO_SUCH_REASON"'),
        ('"standing":null', '"standing":{}'),
        ('"exe":"/usr/bin/', '"exe":"' + 1020 * "/"),
        (r'"/usr/bin/\u00e4\\xff"', '""'),
        (r'"/usr/bin/\u00e4\\xff"', "7"),
        ("{", "["),
        ("{", '{"a":' * 100_000),
    ],
)
def test_a_caller_that_to_json_did_not_write_is_rejected(old: str, new: str) -> None:
    text = CALLERS[1].to_json()
    assert old in text
    with pytest.raises(CallerMalformed):
        Caller.from_json(text.replace(old, new, 1))


def test_a_callers_repr_leaves_out_a_thousand_groups() -> None:
    assert "70003" not in repr(CALLERS[1])
