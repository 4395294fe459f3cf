"""What is called again, and how soon a client is back after the sidecar restarts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.sidecar_double import Double, Failure

import keyside
from keyside import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AWAY = Failure(grpc.StatusCode.UNAVAILABLE, "the store is away", reason="STORE_UNAVAILABLE")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.encrypt("mail", b"x"),
        lambda c: c.decrypt(b"KS::x"),
        lambda c: c.rewrap(b"KS::x"),
        lambda c: c.list_keys(),
        lambda c: c.get_key("mail"),
        lambda c: c.status(),
        lambda c: c.rotate_key("mail", 250),
        lambda c: c.rotate_key("mail", 250, compromised=True),
        lambda c: c.reencrypt(b"KS::x"),
        lambda c: c.disable_version("mail", 3),
        lambda c: c.enable_version("mail", 3),
        lambda c: c.destroy_version("mail", 3),
    ],
)
def test_unavailable_is_tried_again_where_that_is_safe(
    double: Double, call: Callable[[keyside.Client], object]
) -> None:
    double.failures = [AWAY, AWAY]
    with keyside.Client(double.socket) as client:
        call(client)
    assert len(double.calls) == 3


@pytest.mark.parametrize(
    ("call", "rpc"),
    [
        (lambda c: c.rotate_key("mail"), "RotateKey"),
        (lambda c: c.rotate_key("mail", compromised=True), "RotateKey"),
        (lambda c: c.cancel_destroy_version("mail", 3), "CancelDestroyVersion"),
    ],
)
def test_what_would_do_more_the_second_time_is_never_repeated(
    double: Double, call: Callable[[keyside.Client], object], rpc: str
) -> None:
    """A rotation without an expectation, and calling a destruction off."""
    double.failures = [AWAY]
    with keyside.Client(double.socket) as client, pytest.raises(errors.Unavailable) as caught:
        call(client)
    assert double.calls == [rpc]
    assert caught.value.retryable


def test_a_call_that_the_sidecar_broke_off_is_tried_again_where_that_is_safe(
    double: Double,
) -> None:
    """So it ends where too many calls wait to begin, and at a stop; no more is said."""
    broken_off = Failure(grpc.StatusCode.CANCELLED, "")
    double.failures = [broken_off, broken_off]
    with keyside.Client(double.socket) as client:
        client.encrypt("mail", b"x")
        assert double.calls == ["Encrypt"] * 3
        double.failures = [broken_off]
        with pytest.raises(errors.Unavailable, match="too many calls waited") as caught:
            client.rotate_key("mail")
    assert double.calls[3:] == ["RotateKey"]
    assert "fewer calls in flight" in caught.value.remedy


def test_a_conflict_after_a_repetition_says_whose_it_may_be(double: Double) -> None:
    conflict = Failure(grpc.StatusCode.ABORTED, "it is 251", reason="ROTATION_CONFLICT")
    double.failures = [AWAY, conflict]
    with keyside.Client(double.socket) as client, pytest.raises(errors.Conflict) as caught:
        client.rotate_key("mail", 250)
    assert "this very call may have rotated" in caught.value.remedy


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"])
def test_nothing_but_unavailable_is_tried_again(double: Double, code: str) -> None:
    double.failures = [Failure(grpc.StatusCode[code], "no", reason="X")]
    with keyside.Client(double.socket) as client, pytest.raises(errors.KeysideError):
        client.encrypt("mail", b"x")
    assert double.calls == ["Encrypt"]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.rotate_key("mail", 250),
        lambda c: c.disable_version("mail", 3),
        lambda c: c.enable_version("mail", 3),
        lambda c: c.destroy_version("mail", 3),
        lambda c: c.cancel_destroy_version("mail", 3),
    ],
)
def test_what_waits_for_other_sidecars_has_more_time(
    double: Double, call: Callable[[keyside.Client], object]
) -> None:
    """They have 3 s: a client that gives up says that a change failed which has taken effect."""
    double.delay_s = 0.3
    with keyside.Client(double.socket, timeout_s=0.1) as client:
        call(client)
        with pytest.raises(errors.DeadlineExceeded):
            client.get_key("mail")


def test_retry_can_be_turned_off(double: Double) -> None:
    double.failures = [AWAY]
    with (
        keyside.Client(double.socket, retry=False) as client,
        pytest.raises(errors.Unavailable, match="the store is away") as caught,
    ):
        client.encrypt("mail", b"x")
    assert (caught.value.reason, caught.value.code) == ("STORE_UNAVAILABLE", "UNAVAILABLE")


def test_a_missing_socket_is_unavailable_and_named_after_the_deadline(tmp_path: Path) -> None:
    begun = time.monotonic()
    with (
        keyside.Client(tmp_path / "none.sock", timeout_s=0.5) as client,
        pytest.raises(errors.Unavailable, match=r"none\.sock") as caught,
    ):
        client.status()
    assert caught.value.reason == "SOCKET_MISSING"
    assert "keysided" in caught.value.remedy
    assert 0.1 < time.monotonic() - begun < 2


def test_a_socket_that_nobody_listens_on_says_so(tmp_path: Path) -> None:
    import socket

    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    with (
        keyside.Client(stale, timeout_s=0.5) as client,
        pytest.raises(errors.Unavailable, match=r"nothing listens on .*stale\.sock"),
    ):
        client.status()


def test_a_call_waits_for_a_sidecar_that_is_starting(tmp_path: Path) -> None:
    double = Double(tmp_path / "late.sock")
    timer = threading.Timer(0.5, double.start)
    timer.start()
    try:
        with keyside.Client(double.socket) as client:
            assert client.status().is_serving
    finally:
        timer.join()
        double.stop()


def test_clients_come_back_within_about_a_second_of_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "k.sock"

    async def use_async(client: keyside.AsyncClient) -> None:
        assert (await client.status()).is_serving

    with keyside.Client(path) as client, asyncio.Runner() as runner:
        async_client = keyside.AsyncClient(path)
        for _ in range(3):
            process = start_process(path)
            begun = time.monotonic()
            assert client.status().is_serving
            runner.run(use_async(async_client))
            assert time.monotonic() - begun < 2
            process.send_signal(signal.SIGKILL)
            process.wait()
            for once in (keyside.Client(path, retry=False), client):
                with pytest.raises(errors.Unavailable):
                    once.status(timeout_s=0.5)
            path.unlink()
        runner.run(async_client.close())


def start_process(path: Path) -> subprocess.Popen[str]:
    """Start the double as a process and wait until it serves."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.sidecar_double", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process
