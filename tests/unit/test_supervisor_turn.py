"""One turn of the supervisor's loop, with events in whatever order the kernel reports them."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from keyside_sidecar.access.policy import Policy
from keyside_sidecar.config.settings import (
    Config,
    IdentitySettings,
    Principals,
    RootKeySettings,
    SidecarSettings,
    StoreSettings,
)
from keyside_sidecar.handover import make_channels
from keyside_sidecar.peer.listener import listen
from keyside_sidecar.supervisor import Supervisor, _Child

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = Path("/nonexistent")


class SignalsFirst(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Reports the descriptor that was registered first before all others."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        order = {key.fd: place for place, key in enumerate(self.get_map().values())}
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return sorted(found, key=lambda event: order[event[0].fd])


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """One that is running, as far as its loop can tell, and has no worker yet."""
    config = Config(
        sidecar=SidecarSettings(tmp_path / "run" / "keyside.sock"),
        identity=IdentitySettings(),
        store=StoreSettings("sqlite:////nonexistent"),
        root_key=RootKeySettings("file", NOWHERE),
        operators=Principals(),
        auditors=Principals(),
        keys=MappingProxyType({}),
        path=NOWHERE,
        digest="",
    )
    listener = listen(config.sidecar.socket, owners=frozenset({os.geteuid()}))
    made = Supervisor(config, Policy(), listener, None, _selector=SignalsFirst(), _announced=True)
    made._wakeups = receiver, sender = socket.socketpair()
    made._watch(receiver, made._on_signal)
    made._watch(listener.socket, made._accept)
    yield made
    made._selector.close()
    listener.close()
    receiver.close()
    sender.close()


def signal_arrives(supervisor: Supervisor, number: int) -> None:
    """Do what Python's signal handling does with the wake-up descriptor."""
    assert supervisor._wakeups is not None
    supervisor._wakeups[1].send(bytes([number]))


def test_a_worker_that_ended_is_reaped_before_its_channel_is_looked_at(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """Its channel is closed by then, and its event must not bring the supervisor down."""
    ours, theirs = make_channels()
    pid = os.fork()
    if pid == 0:
        os._exit(1)
    theirs.close()
    directory = tmp_path / "private"
    directory.mkdir()
    child = _Child(0, pid, ours, directory, time.monotonic(), ready=True)
    supervisor._children[pid] = child
    supervisor._watch(ours, lambda: supervisor._on_packet(child))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    signal_arrives(supervisor, signal.SIGCHLD)
    supervisor._turn()
    assert not supervisor._children
    assert not directory.exists()
    assert len(supervisor._timers) == 1, "a successor is due"


def test_a_caller_that_connects_while_the_sidecar_stops_does_no_harm(
    supervisor: Supervisor,
) -> None:
    """The listening socket is closed by the time that its event is looked at."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(supervisor.listener.path)
        signal_arrives(supervisor, signal.SIGTERM)
        supervisor._turn()
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
    assert not Path(supervisor.listener.path).exists()
