"""What supervisor and worker say to each other."""

from __future__ import annotations

import os

import pytest

from keyside_sidecar.handover import make_channels


def test_descriptors_arrive_with_their_packet_and_are_not_inherited() -> None:
    """A connection and its pidfd travel beside the credential; exec closes them."""
    ours, theirs = make_channels()
    reader, writer = os.pipe()
    ours.send({"connection": 1, "caller": "{}"}, (reader, writer))
    ours.send({"drain": 2.5})
    packet = theirs.receive()
    assert packet is not None
    assert packet.fields == {"connection": 1, "caller": "{}"}
    assert len(packet.descriptors) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in packet.descriptors)
    os.write(packet.descriptors[1], b"x")
    assert os.read(reader, 1) == b"x"
    second = theirs.receive()
    assert second is not None
    assert second.fields == {"drain": 2.5}
    with pytest.raises(BlockingIOError):
        theirs.receive()
    for descriptor in (reader, writer, *packet.descriptors):
        os.close(descriptor)
    ours.close()
    assert theirs.receive() is None
    theirs.close()


def test_a_worker_that_does_not_keep_up_is_noticed() -> None:
    """Sending never blocks the supervisor."""
    ours, theirs = make_channels()
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            ours.send({"drain": 1})
    ours.close()
    theirs.close()
