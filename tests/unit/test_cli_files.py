"""Where the keyside command reads and writes: files whole or not at all, terminals, pipes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.cli_process import on_terminal, run
from tests.unit.sidecar_double import Double, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    with Double(tmp_path / "k.sock") as running:
        yield running


def test_files_in_and_out_and_in_place(double: Double, tmp_path: Path) -> None:
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(b"abc")
    assert run(double, "encrypt", "mail", "-i", str(plain), "-o", str(sealed)).returncode == 0
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o644
    assert run(double, "rewrap", "-i", str(sealed), "-o", str(sealed)).returncode == 0
    assert sealed.read_bytes().startswith(b"KT:")
    assert run(double, "decrypt", "-i", str(sealed), "-o", str(opened)).returncode == 0
    assert opened.read_bytes() == b"abc"
    assert stat.S_IMODE(opened.stat().st_mode) == 0o600


def test_a_replaced_file_keeps_its_mode_unless_it_now_holds_a_plaintext(
    double: Double, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    assert run(double, "encrypt", "mail", "-o", str(target), umask=0o077).returncode == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert run(double, "decrypt", "-o", str(target), stdin=b"KS::x").returncode == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_symbolic_link_is_followed_and_stays(double: Double, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    assert run(double, "encrypt", "mail", "-o", str(tmp_path / "link")).returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"KS::"


def test_a_failure_leaves_the_file_as_it_was_and_nothing_beside_it(
    double: Double, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "target").write_bytes(b"old")
    double.failures = [Failure(grpc.StatusCode.PERMISSION_DENIED, "no", reason="NOT_ALLOWED")]
    assert run(double, "decrypt", "-o", str(folder / "target")).returncode == 77
    assert [path.name for path in folder.iterdir()] == ["target"]
    assert (folder / "target").read_bytes() == b"old"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(
    double: Double, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    double.delay_s = 3
    process = subprocess.Popen(
        [sys.executable, "-m", "keyside.cli", "decrypt", "-o", str(folder / "target")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "KEYSIDE_SOCKET": double.socket},
    )
    assert double.entered.wait(10)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert complaint.strip() == b""
    assert list(folder.iterdir()) == []


def test_a_missing_input_exits_66_and_an_impossible_output_73(
    double: Double, tmp_path: Path
) -> None:
    assert run(double, "encrypt", "mail", "-i", str(tmp_path / "none")).returncode == 66
    assert run(double, "encrypt", "mail", "-o", str(tmp_path / "no" / "x")).returncode == 73
    assert run(double, "encrypt", "mail", "-o", str(tmp_path)).returncode == 73
    assert double.calls == []


def test_a_full_device_exits_74(double: Double) -> None:
    finished = run(double, "encrypt", "mail", "-o", "/dev/full")
    assert (finished.returncode, finished.stderr) == (
        74,
        b"keyside: can't write /dev/full: No space left on device\n",
    )


def test_an_input_above_the_limit_needs_a_data_key_and_says_so(
    double: Double, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(19 * 1024 * 1024)
    finished = run(double, "encrypt", "mail", "-i", str(big))
    assert (finished.returncode, finished.stdout) == (77, b"")
    assert b"more than the sidecar takes in one call needs a data key" in finished.stderr
    assert b"what to do: set allow_data_keys = true" in finished.stderr
    finished = run(double, "reencrypt", "-i", str(big))
    assert (finished.returncode, b"more than any sidecar accepts" in finished.stderr) == (65, True)


def test_a_reader_that_goes_away_is_met_with_silence(double: Double) -> None:
    for command in (["keys", "show", "mail"], ["encrypt", "mail", "-i", "/dev/null"]):
        reader, writer = os.pipe()
        os.close(reader)
        finished = subprocess.run(
            [sys.executable, "-m", "keyside.cli", "--socket", double.socket, *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (finished.returncode, finished.stderr) == (141, b"")


def test_binary_is_not_written_to_a_terminal_unless_asked(double: Double, tmp_path: Path) -> None:
    code, shown = on_terminal(double, "encrypt", "mail")
    assert (code, double.calls) == (64, [])
    assert b"use -o FILE" in shown
    code, shown = on_terminal(double, "encrypt", "mail", "-o", "-", typed=b"abc\n\x04")
    assert code == 0
    assert b"reading from the terminal; end with Ctrl-D" in shown
    assert b"KS::" in shown
    sealed = tmp_path / "sealed"
    sealed.write_bytes(b"KS::" + "grüße\n".encode()[::-1])
    assert "grüße".encode() in on_terminal(double, "decrypt", "-i", str(sealed))[1]
    sealed.write_bytes(b"KS::m13[\x1b")
    code, shown = on_terminal(double, "decrypt", "-i", str(sealed))
    assert code == 64
    assert b"\x1b[31m" not in shown
