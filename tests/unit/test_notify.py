"""sd_notify and socket activation, with real sockets."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from keyside_sidecar import notify
from keyside_sidecar.errors import StartupError

ROOT = Path(__file__).parents[2]


def receiver(address: str) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(address)
    channel.settimeout(5)
    return channel


def test_state_reaches_a_socket_with_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with receiver(path) as channel:
        assert notify.sd_notify("READY=1\nSTATUS=serving")
        assert channel.recv(100) == b"READY=1\nSTATUS=serving"


def test_state_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"keyside-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with receiver(f"\0{name}") as channel:
        assert notify.sd_notify("STOPPING=1")
        assert channel.recv(100) == b"STOPPING=1"


def test_nothing_happens_without_a_service_manager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.sd_notify("READY=1")
    assert not caplog.records


@pytest.mark.parametrize("address", ["/nonexistent/notify", "vsock:2:1234", "/" + "x" * 200])
def test_failure_to_notify_is_logged_and_no_more(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.sd_notify("READY=1")
    assert len(caplog.records) == 1


# --- listen_fds


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def pass_descriptor(
    monkeypatch: pytest.MonkeyPatch, descriptor: int, *, pid: int | None = None, count: str = "1"
) -> None:
    monkeypatch.setattr(notify, "_FIRST_DESCRIPTOR", descriptor)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "keyside.socket")


def test_passed_socket_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed on exec from then on, and the environment no longer speaks of it."""
    descriptor = listening(tmp_path / "s").detach()
    os.set_inheritable(descriptor, True)
    pass_descriptor(monkeypatch, descriptor)
    (taken,) = notify.listen_fds()
    with taken:
        assert taken.fileno() == descriptor
        assert taken.getsockname() == str(tmp_path / "s")
        assert not taken.get_inheritable()
        assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & set(os.environ)
        assert notify.listen_fds() == ()


def test_nothing_is_taken_without_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert notify.listen_fds() == ()


def test_sockets_for_another_process_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path / "s") as listener:
        pass_descriptor(monkeypatch, listener.fileno(), pid=1)
        assert notify.listen_fds() == ()


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "1025", "٣", "9" * 5000])
def test_wrong_count_is_refused(
    count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path / "s") as listener:
        pass_descriptor(monkeypatch, listener.fileno(), count=count)
        with pytest.raises(StartupError, match="no count"):
            notify.listen_fds()


def test_socket_that_does_not_listen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(tmp_path / "s"))
        pass_descriptor(monkeypatch, bound.fileno())
        with pytest.raises(StartupError, match="not a listening Unix stream socket"):
            notify.listen_fds()


def test_socket_of_another_family_or_type_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: no way in but a Unix stream socket, whatever the service manager passes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as network,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets,
    ):
        packets.bind(str(tmp_path / "s"))
        packets.listen()
        for wrong in (network, packets):
            pass_descriptor(monkeypatch, wrong.fileno())
            with pytest.raises(StartupError, match="not a listening Unix stream socket"):
                notify.listen_fds()


def test_file_and_closed_descriptor_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "f").open("wb") as file:
        pass_descriptor(monkeypatch, file.fileno())
        with pytest.raises(StartupError, match="not a listening"):
            notify.listen_fds()
    pass_descriptor(monkeypatch, 1000)
    with pytest.raises(StartupError, match="can't be used"):
        notify.listen_fds()


def test_real_activation_starts_at_descriptor_three(tmp_path: Path) -> None:
    script = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from keyside_sidecar.notify import listen_fds\n"
        "print(*(s.getsockname() for s in listen_fds()))"
    )
    with listening(tmp_path / "a") as first, listening(tmp_path / "b") as second:
        command = f"exec 3<&{first.fileno()} 4<&{second.fileno()}; exec {sys.executable} -c '$CODE'"
        done = subprocess.run(
            ["/bin/bash", "-c", command.replace("'$CODE'", '"$CODE"')],
            env={
                "CODE": script,
                "LISTEN_FDS": "2",
                "PYTHONPATH": f"{ROOT / 'client'}:{ROOT / 'sidecar'}",
            },
            pass_fds=[first.fileno(), second.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    assert done.stdout.split() == [str(tmp_path / "a"), str(tmp_path / "b")]
