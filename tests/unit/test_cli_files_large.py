"""keyside encrypt and decrypt with more than one call takes: segments, in files and in pipes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.unit import envelope_double
from tests.unit.cli_process import call, run
from tests.unit.envelope_double import EnvelopeDouble

from keyside.cli.progress import Progress
from keyside.envelope import parse_payload_header, parse_wrapping_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024
# Above what the double takes in a call; not a whole number of segments.
LARGE = os.urandom(5 * MIB + 77)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


def kind_of(envelope: bytes) -> int:
    """Return the payload's kind: 0 whole, 1 segmented."""
    return parse_payload_header(envelope, len(parse_wrapping_header(envelope).raw)).kind


def test_large_files_are_sealed_in_segments_and_small_ones_in_one_call(
    double: EnvelopeDouble, tmp_path: Path
) -> None:
    """Nobody has to say which; what comes out is what went in, with the modes as for small ones."""
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(LARGE)
    arguments = ("encrypt", "mail", "-c", "a=b", "-i", str(plain), "-o", str(sealed))
    assert call(double, *arguments) == 0
    assert double.calls[-1] == "GenerateDataKey"
    assert kind_of(sealed.read_bytes()) == 1
    assert call(double, "decrypt", "-c", "a=b", "-i", str(sealed), "-o", str(opened)) == 0
    assert opened.read_bytes() == LARGE
    assert stat.S_IMODE(opened.stat().st_mode) == 0o600
    plain.write_bytes(LARGE[:MIB])
    assert call(double, *arguments) == 0
    assert double.calls[-1] == "Encrypt"
    assert kind_of(sealed.read_bytes()) == 0


def test_pipes_carry_any_size_both_ways(double: EnvelopeDouble) -> None:
    """A short one, a whole number of what is read at once, and more than any call takes."""
    double.max_plaintext_bytes = 1000
    for size in (1001, 2 * MIB, 18 * MIB + 1):
        plaintext = (LARGE * 4)[:size]
        sealed = run(double, "encrypt", "mail", stdin=plaintext)
        assert (sealed.returncode, kind_of(sealed.stdout)) == (0, 1)
        opened = run(double, "decrypt", stdin=sealed.stdout)
        assert (opened.returncode, opened.stdout == plaintext) == (0, True)


def test_the_sidecar_opens_what_the_command_sealed(double: EnvelopeDouble) -> None:
    """Segments or not, an envelope is an envelope."""
    double.max_plaintext_bytes = 1000
    sealed = run(double, "encrypt", "mail", "-c", "a=b", stdin=LARGE[:70_000]).stdout
    double.max_plaintext_bytes = MIB
    finished = run(double, "decrypt", "-c", "a=b", stdin=sealed)
    assert (finished.returncode, finished.stdout == LARGE[:70_000]) == (0, True)
    assert double.calls[-1] == "Decrypt"


def test_a_cut_file_opens_to_nothing_and_a_cut_stream_only_to_what_is_genuine(
    double: EnvelopeDouble, tmp_path: Path
) -> None:
    """Cut between two segments, where only the missing last one tells."""
    plaintext = LARGE * 4
    sealed = run(double, "encrypt", "mail", stdin=plaintext).stdout
    header = len(parse_wrapping_header(sealed).raw) + 70
    cut = sealed[: header + 300 * (65536 + 16)]
    path, out = tmp_path / "cut", tmp_path / "folder" / "out"
    path.write_bytes(cut)
    out.parent.mkdir()
    out.write_bytes(b"old")
    assert call(double, "decrypt", "-i", str(path), "-o", str(out)) == 65
    assert (list(out.parent.iterdir()), out.read_bytes()) == ([out], b"old")
    finished = run(double, "decrypt", "-i", str(path))
    assert (finished.returncode, finished.stdout) == (65, b"")
    finished = run(double, "decrypt", stdin=cut)
    assert finished.returncode == 65
    assert len(finished.stdout) >= 10 * MIB
    assert plaintext.startswith(finished.stdout)


def test_an_altered_segment_ends_a_stream_before_it(double: EnvelopeDouble) -> None:
    """No byte of it comes out, nor of what comes after it."""
    plaintext = LARGE * 4
    sealed = bytearray(run(double, "encrypt", "mail", stdin=plaintext).stdout)
    header = len(parse_wrapping_header(bytes(sealed)).raw) + 70
    sealed[header + 40 * (65536 + 16) + 5] ^= 1
    finished = run(double, "decrypt", stdin=bytes(sealed))
    assert finished.returncode == 65
    assert len(finished.stdout) <= 40 * 65536
    assert plaintext.startswith(finished.stdout)


def test_rewrapping_a_large_file_sends_its_header_alone(double: EnvelopeDouble) -> None:
    """In a pipe as in place."""
    plaintext = LARGE * 4
    sealed = run(double, "encrypt", "mail", stdin=plaintext).stdout
    double.rotate()
    rewrapped = run(double, "rewrap", stdin=sealed)
    assert (rewrapped.returncode, parse_wrapping_header(rewrapped.stdout).version_number) == (0, 2)
    assert [len(sent) for sent in double.rewrapped] == [len(parse_wrapping_header(sealed).raw)]
    assert run(double, "decrypt", stdin=rewrapped.stdout).stdout == plaintext


def test_progress_is_for_terminals_and_memory_is_constant(
    double: EnvelopeDouble, tmp_path: Path
) -> None:
    """256 MiB pass through 120 MiB of memory; a pipe on standard error gets nothing."""
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    with plain.open("wb") as file:
        file.truncate(256 * MIB)
    for arguments in (
        ("encrypt", "mail", "-i", str(plain), "-o", str(sealed)),
        ("decrypt", "-i", str(sealed), "-o", str(plain)),
    ):
        measured = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments],
            capture_output=True,
            env={**os.environ, "KEYSIDE_SOCKET": double.socket},
            check=True,
        )
        assert measured.stderr == b""
        assert int(measured.stdout) * 1024 < 120 * MIB


MEASURE = """
import re, sys
from pathlib import Path
from keyside import cli
assert cli._run(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


def test_a_long_stream_shows_how_far_it_is_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After half a second, a few times a second, and nothing is left of it at the end."""
    shown, now_s = Terminal(), [100.0]
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("keyside.cli.progress.time.monotonic", lambda: now_s[0])
    with Progress(4 * MIB) as progress:
        for _ in range(4):
            progress.add(MIB)
            now_s[0] += 0.3
    assert shown.getvalue() == (
        "\r\x1b[K3 MiB of 4 MiB, 75%, 5 MiB/s\r\x1b[K4 MiB of 4 MiB, 100%, 4.44 MiB/s\r\x1b[K"
    )


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.mark.parametrize("way", ["shortened", "nonsense"])
def test_rewrapping_in_place_replaces_nothing_by_less(
    double: EnvelopeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Neither where the file became shorter meanwhile nor where the answer is no header."""
    path = tmp_path / "f"
    sealed = double.seal(LARGE * 4)
    path.write_bytes(sealed)
    double.rotate()

    def answer(*_: object) -> bytes:
        if way == "shortened":
            os.truncate(path, len(sealed) // 2)
            return parse_wrapping_header(double.seal(b"")).raw
        return b"nonsense"

    monkeypatch.setattr(envelope_double, "rewrap", answer)
    before = {entry.name for entry in tmp_path.iterdir()}
    status = call(double, "rewrap", "-i", str(path), "-o", str(path))
    left = sealed[: len(sealed) // 2] if way == "shortened" else sealed
    assert (status, path.read_bytes() == left) == (75 if way == "shortened" else 70, True)
    assert {entry.name for entry in tmp_path.iterdir()} == before
