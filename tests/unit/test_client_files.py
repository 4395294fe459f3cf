"""keyside.open: sealed files that are read and written as if they were plain."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import random
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.envelope_double import EnvelopeDouble

import keyside
from keyside import _stream_keys
from keyside._atomic import AtomicFile
from keyside._file_writing import RUN_BYTES
from keyside.envelope import MAX_OVERHEAD_BYTES, MAX_WHOLE_BYTES, parse_wrapping_header
from keyside.errors import (
    EnvelopeRejected,
    InvalidArgument,
    LimitExceeded,
    NotPermitted,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEGMENT = 65536
CONTEXT = {"file": "a"}
PLAIN = random.Random(5).randbytes(20 * SEGMENT + 123)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        # So that files of a few segments take the way of large ones.
        running.max_plaintext_bytes = 1000
        yield running


@pytest.fixture
def client(double: EnvelopeDouble) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket, timeout_s=10) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


def write(path: Path, client: keyside.Client, plain: bytes = PLAIN, step: int = 100_003) -> bytes:
    """Write a sealed file in steps; return its bytes."""
    with keyside.open(path, "wb", key="mail", context=CONTEXT, client=client) as file:
        for at in range(0, len(plain), step):
            assert file.write(plain[at : at + step]) == len(plain[at : at + step])
        assert file.tell() == len(plain)
    return path.read_bytes()


def read(path: Path, client: keyside.Client) -> bytes:
    with keyside.open(path, context=CONTEXT, client=client) as file:
        return file.read()


@pytest.mark.parametrize(
    "size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 16 * SEGMENT, 16 * SEGMENT + 1, len(PLAIN)]
)
def test_what_is_written_is_read_and_is_an_envelope(
    folder: Path, client: keyside.Client, double: EnvelopeDouble, size: int
) -> None:
    """Of any size, in any steps; the sidecar opens it as well."""
    for step in (7777, 3 * 1024 * 1024):
        sealed = write(folder / "f", client, PLAIN[:size], step)
        assert double.open(sealed, CONTEXT) == PLAIN[:size]
        assert read(folder / "f", client) == PLAIN[:size]


def test_a_file_is_read_from_any_place(folder: Path, client: keyside.Client) -> None:
    """As a plain file would be: seek, tell, read, readinto, readline and iteration agree."""
    write(folder / "f", client)
    (folder / "plain").write_bytes(PLAIN)
    choose = random.Random(6)
    with (
        (folder / "plain").open("rb") as plain,
        keyside.open(folder / "f", key="mail", context=CONTEXT, client=client) as file,
    ):
        assert (file.seekable(), file.readable(), file.writable()) == (True, True, False)
        for _ in range(200):
            whence = choose.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            offset = choose.randrange(len(PLAIN) + 100)
            if whence == os.SEEK_END:
                offset = -offset % len(PLAIN) - len(PLAIN)
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            size = choose.choice([0, 1, 10, 5000, SEGMENT, 3 * SEGMENT + 1, -1])
            assert file.read(size) == plain.read(size)
            assert file.tell() == plain.tell()
        for one in (file, plain):
            one.seek(SEGMENT - 10)
        assert file.readline() == plain.readline()
        file.seek(0)
        assert b"".join(file) == PLAIN
        with pytest.raises(OSError, match="no descriptor"):
            file.fileno()


def test_reading_a_place_opens_its_segments_alone(
    folder: Path, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the file: the last segment at open, and the one that is asked for."""
    write(folder / "f", client)
    opened: list[tuple[int, int]] = []
    whole = _stream_keys.StreamOpener.open_run

    def note(self: Any, index: int, sealed: memoryview, *arguments: Any, **more: Any) -> int:
        opened.append((index, len(sealed)))
        return whole(self, index, sealed, *arguments, **more)

    monkeypatch.setattr(_stream_keys.StreamOpener, "open_run", note)
    with keyside.open(folder / "f", context=CONTEXT, client=client) as file:
        file.raw.seek(5 * SEGMENT + 1, os.SEEK_SET)
        assert file.raw.read(10) == PLAIN[5 * SEGMENT + 1 :][:10]
    assert opened == [(20, 123 + 16), (5, SEGMENT + 16)]


def cut_points(length: int) -> list[int]:
    """Within header, payload header and segments, between segments, and one byte short."""
    header = length - len(PLAIN) - 21 * 16
    stride = SEGMENT + 16
    return [10, header - 1, header, header + stride, header + 20 * stride, length - 1]


def test_a_cut_file_is_found_at_open(folder: Path, client: keyside.Client) -> None:
    """Wherever it was cut, before a byte is handed out; and one that is too long."""
    sealed = write(folder / "f", client)
    for end in cut_points(len(sealed)):
        (folder / "f").write_bytes(sealed[:end])
        with pytest.raises(EnvelopeRejected):
            keyside.open(folder / "f", context=CONTEXT, client=client)
    (folder / "f").write_bytes(sealed + b"\0")
    with pytest.raises(EnvelopeRejected):
        keyside.open(folder / "f", context=CONTEXT, client=client)


def test_an_altered_segment_hides_no_other(folder: Path, client: keyside.Client) -> None:
    """What is genuine can be read; of the altered one comes no byte, however it is asked for."""
    sealed = bytearray(write(folder / "f", client))
    header = len(sealed) - len(PLAIN) - 21 * 16
    sealed[header + 7 * (SEGMENT + 16) + 100] ^= 4
    (folder / "f").write_bytes(sealed)
    with keyside.open(folder / "f", context=CONTEXT, client=client) as file:
        raw = file.raw
        for at in (7 * SEGMENT, 7 * SEGMENT + 5, 8 * SEGMENT - 1):
            raw.seek(at, os.SEEK_SET)
            buffer = bytearray(b"?" * SEGMENT)
            with pytest.raises(EnvelopeRejected):
                raw.readinto(memoryview(buffer))
            assert set(buffer) <= {0, ord("?")}
        for at in (0, 6 * SEGMENT, 8 * SEGMENT):
            raw.seek(at, os.SEEK_SET)
            assert raw.read(SEGMENT) == PLAIN[at : at + SEGMENT]


def test_a_pipe_gives_verified_bytes_and_an_error_for_a_missing_end(
    folder: Path, client: keyside.Client
) -> None:
    """It can't be known earlier; a whole one is read to its end."""
    sealed = write(folder / "f", client)
    os.mkfifo(folder / "pipe")
    for end in (None, *cut_points(len(sealed))):

        def feed(part: bytes = sealed[:end]) -> None:
            with (folder / "pipe").open("wb") as pipe:
                pipe.write(part)

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        got = bytearray()
        try:
            with keyside.open(folder / "pipe", context=CONTEXT, client=client) as file:
                assert not file.seekable()
                while part := file.read1(10_000):
                    got += part
        except EnvelopeRejected:
            assert end is not None
        else:
            assert end is None
            assert got == PLAIN
        feeder.join(10)
        assert PLAIN.startswith(got)


@pytest.mark.parametrize("way", ["exception", "discard", "forgotten", "child"])
def test_a_file_that_is_not_closed_well_never_appears(
    folder: Path, client: keyside.Client, way: str
) -> None:
    """And what stood there is as it was, with nothing beside it."""
    (folder / "f").write_bytes(b"old")
    file = keyside.open(folder / "f", "wb", key="mail", client=client)
    file.write(PLAIN)
    assert [path.name for path in folder.iterdir()] == ["f"]
    if way == "exception":
        with pytest.raises(RuntimeError), file:
            raise RuntimeError
    elif way == "discard":
        file.discard()
    elif way == "forgotten":
        del file
        gc.collect()
    else:
        child = os.fork()
        if child == 0:
            try:
                file.close()
            except LimitExceeded:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert [path.name for path in folder.iterdir()] == ["f"]
        file.discard()
    assert [path.read_bytes() for path in folder.iterdir()] == [b"old"]


def test_writing_that_fails_ends_the_file(
    folder: Path, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while writing; closing then changes nothing."""
    file = keyside.open(folder / "f", "wb", key="mail", client=client)

    def be_full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("keyside._atomic.os.write", be_full)
        with pytest.raises(OSError, match="No space left"):
            file.write(PLAIN)
    assert file.closed
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x")
    assert list(folder.iterdir()) == []


def test_exclusive_writing_replaces_nothing(folder: Path, client: keyside.Client) -> None:
    """Neither what is there at the beginning nor what has come meanwhile."""
    (folder / "f").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        keyside.open(folder / "f", "xb", key="mail", client=client)
    (folder / "f").unlink()
    with keyside.open(folder / "f", "xb", key="mail", context=CONTEXT, client=client) as file:
        file.write(b"new")
    assert read(folder / "f", client) == b"new"
    file = keyside.open(folder / "g", "xb", key="mail", client=client)
    (folder / "g").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        file.close()
    assert sorted(path.name for path in folder.iterdir()) == ["f", "g"]


def test_text_is_a_wrapper_away(folder: Path, client: keyside.Client) -> None:
    """The standard library's wrapper works on both."""
    with keyside.open(folder / "f", "wb", key="mail", client=client) as file:
        text = io.TextIOWrapper(file, encoding="utf-8")
        text.writelines(f"grüße {number}\n" for number in range(3))
        text.detach()
    with (
        pytest.raises(RuntimeError),
        keyside.open(folder / "f", "wb", key="mail", client=client) as file,
    ):
        text = io.TextIOWrapper(file, encoding="utf-8")
        text.write("half")
        raise RuntimeError
    with io.TextIOWrapper(keyside.open(folder / "f", client=client), encoding="utf-8") as lines:
        assert list(lines) == ["grüße 0\n", "grüße 1\n", "grüße 2\n"]
    with keyside.open(folder / "g", "wb", key="mail", client=client) as file:
        (folder / "plain").write_bytes(PLAIN)
        with (folder / "plain").open("rb") as plain:
            shutil.copyfileobj(plain, file)
    assert keyside.open(folder / "g", client=client).read() == PLAIN


def test_short_files_and_whole_envelopes_are_read_too(
    folder: Path, client: keyside.Client, double: EnvelopeDouble
) -> None:
    """In one call without a data key where that is enough; else under one, in memory."""
    for size, calls in ((900, ["Decrypt"]), (5000, ["Decrypt", "refused", "DecryptDataKey"])):
        (folder / "f").write_bytes(double.seal(PLAIN[:size], CONTEXT))
        double.calls.clear()
        with keyside.open(folder / "f", context=CONTEXT, client=client) as file:
            assert file.read() == PLAIN[:size]
            assert file.seek(3) == 3
        assert double.calls == calls


def test_refusals_come_before_anything_is_written(
    folder: Path, client: keyside.Client, double: EnvelopeDouble
) -> None:
    """Policy, arguments, another key, another context, no file."""
    write(folder / "f", client)
    invalid: list[dict[str, Any]] = [
        {"mode": "r"}, {"mode": "wb"}, {"key": "Mail"}, {"context": {"": ""}},
    ]  # fmt: skip
    for arguments in invalid:
        with pytest.raises(InvalidArgument):
            keyside.open(folder / "g", client=client, **arguments)
    wrong: list[dict[str, Any]] = [{"key": "payroll", "context": CONTEXT}, {"context": {}}]
    for arguments in wrong:
        with pytest.raises(EnvelopeRejected):
            keyside.open(folder / "f", client=client, **arguments)
    with pytest.raises(FileNotFoundError):
        keyside.open(folder / "none", client=client)
    with pytest.raises(IsADirectoryError):
        keyside.open(folder, client=client)
    double.allow_data_keys = False
    opens: list[Callable[[], object]] = [
        lambda: keyside.open(folder / "g", "wb", key="mail", client=client),
        lambda: keyside.open(folder / "f", context=CONTEXT, client=client),
    ]
    for refused in opens:
        with pytest.raises(NotPermitted) as caught:
            refused()
        assert caught.value.reason == "DATA_KEYS_NOT_ALLOWED"
    assert [path.name for path in folder.iterdir()] == ["f"]


def test_long_streams_are_charged_for_and_old_keys_asked_for_again(
    folder: Path,
    client: keyside.Client,
    double: EnvelopeDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than one data key's bytes; longer than its age, when permission may have gone."""
    double.max_bytes = 1024 * 1024
    sealed = write(folder / "f", client, PLAIN * 3)
    charges = len(PLAIN) * 3 // double.max_bytes + 1
    assert double.calls.count("GenerateDataKey") == charges
    assert parse_wrapping_header(sealed).version_number == 1
    now_s = [1000.0]
    monkeypatch.setattr(_stream_keys, "read_clock", lambda: now_s[0])
    with keyside.open(folder / "f", context=CONTEXT, client=client) as file:
        assert file.raw.read(SEGMENT) == PLAIN[:SEGMENT]
        now_s[0] += 300
        asked = double.calls.count("DecryptDataKey")
        assert file.raw.read(SEGMENT) == PLAIN[SEGMENT : 2 * SEGMENT]
        assert double.calls.count("DecryptDataKey") == asked + 1
        double.allow_data_keys = False
        now_s[0] += 300
        with pytest.raises(NotPermitted):
            file.raw.read(SEGMENT)


def test_a_client_of_its_own_is_closed_with_the_file(
    folder: Path, double: EnvelopeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a client given: from KEYSIDE_SOCKET, as ``Client()`` is."""
    monkeypatch.setenv("KEYSIDE_SOCKET", double.socket)
    closed: list[object] = []
    close = keyside.Client.close

    def note(self: keyside.Client) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(keyside.Client, "close", note)
    with keyside.open(folder / "f", "wb", key="mail") as file:
        file.write(PLAIN)
        assert closed == []
    assert len(closed) == 1
    with keyside.open(folder / "f") as opened:
        assert opened.read() == PLAIN
        assert len(closed) == 1
    assert len(closed) == 2


@pytest.mark.parametrize("size", [50, RUN_BYTES + 1])
def test_a_child_writes_nothing_into_its_parents_file(
    folder: Path, client: keyside.Client, size: int
) -> None:
    """It shares the descriptor: not even the header may come from there."""
    file = keyside.open(folder / "f", "wb", key="mail", context=CONTEXT, client=client)
    file.write(PLAIN[:50])
    child = os.fork()
    if child == 0:
        try:
            file.write(PLAIN[50:size])
            file.close()
        except LimitExceeded:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    file.close()
    assert read(folder / "f", client) == PLAIN[:50]


def test_a_child_neither_fills_nor_places_an_atomic_file(folder: Path) -> None:
    """Whatever is written with it."""
    file = AtomicFile(folder / "f", secret=False)
    child = os.fork()
    if child == 0:
        refused = 0
        actions: list[Callable[[], None]] = [lambda: file.write(b"child"), file.put_in_place]
        for action in actions:
            try:
                action()
            except PermissionError:
                refused += 1
        file.discard()
        os._exit(0 if refused == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    file.write(b"parent")
    file.put_in_place()
    assert [path.read_bytes() for path in folder.iterdir()] == [b"parent"]


@pytest.mark.parametrize("raised", [Unavailable("away"), EnvelopeRejected(), KeyboardInterrupt()])
def test_a_pipe_that_has_failed_has_no_end(
    folder: Path, client: keyside.Client, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    """Each read after an error is an error: whoever tries again must not take it for the end."""
    sealed = write(folder / "f", client, PLAIN[: 3 * SEGMENT])
    os.mkfifo(folder / "pipe")
    feeder = threading.Thread(target=lambda: (folder / "pipe").write_bytes(sealed), daemon=True)
    feeder.start()

    def fail(*_: object, **__: object) -> int:
        raise raised

    with keyside.open(folder / "pipe", context=CONTEXT, client=client) as file:
        with monkeypatch.context() as patched:
            patched.setattr(_stream_keys.StreamOpener, "open_run", fail)
            with pytest.raises(type(raised)):
                file.read(10)
        for _ in range(3):
            with pytest.raises(type(raised) if isinstance(raised, Exception) else OSError):
                file.read(10)
    feeder.join(10)


def test_a_place_that_could_not_be_read_can_be_read_again(
    folder: Path, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file can seek, an outage costs nothing: no end is shown, no byte skipped."""
    write(folder / "f", client)

    def fail(*_: object, **__: object) -> int:
        raise Unavailable("away")

    with keyside.open(folder / "f", context=CONTEXT, client=client) as file:
        with monkeypatch.context() as patched:
            patched.setattr(_stream_keys.StreamOpener, "open_run", fail)
            for _ in range(2):
                with pytest.raises(Unavailable):
                    file.read(10)
        assert file.read() == PLAIN


def test_threads_that_share_a_writer_write_one_after_the_other(
    folder: Path, client: keyside.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each has written stands there in one piece, and opens."""
    parts = [letter * (2 * RUN_BYTES + 5) for letter in (b"a", b"b")]
    file = keyside.open(folder / "f", "wb", key="mail", context=CONTEXT, client=client)
    other = threading.Thread(target=lambda: file.write(parts[1]))
    whole = _stream_keys.StreamSealer.seal_run

    def let_the_other_in(*arguments: Any, **more: Any) -> int:
        if other.ident is None:
            other.start()
            other.join(0.2)
        return whole(*arguments, **more)

    monkeypatch.setattr(_stream_keys.StreamSealer, "seal_run", let_the_other_in)
    file.write(parts[0])
    other.join(10)
    file.close()
    assert read(folder / "f", client) == b"".join(parts)


def test_a_child_does_not_wait_for_a_thread_that_it_lacks(
    folder: Path, client: keyside.Client
) -> None:
    """One that was writing when the process forked."""
    file = keyside.open(folder / "f", "wb", key="mail", client=client)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(file._own_lock().acquire).result(10)
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).alarm(10)
            try:
                file.close()
            except LimitExceeded:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        threads.submit(file._own_lock().release).result(10)
    file.discard()


def test_a_long_whole_envelope_is_read_from_files_and_pipes(
    folder: Path, client: keyside.Client, double: EnvelopeDouble
) -> None:
    """Longer than any call; for its own context only."""
    plaintext = PLAIN * 6
    sealed = double.seal(plaintext, CONTEXT)
    (folder / "f").write_bytes(sealed)
    assert read(folder / "f", client) == plaintext
    with pytest.raises(EnvelopeRejected):
        keyside.open(folder / "f", client=client)
    (folder / "f").write_bytes(sealed + b"x")
    with pytest.raises(EnvelopeRejected):
        read(folder / "f", client)
    os.mkfifo(folder / "pipe")
    feeder = threading.Thread(target=lambda: (folder / "pipe").write_bytes(sealed), daemon=True)
    feeder.start()
    assert read(folder / "pipe", client) == plaintext
    feeder.join(10)


def test_what_only_says_it_is_whole_costs_no_memory(
    folder: Path, client: keyside.Client, double: EnvelopeDouble
) -> None:
    """It is read once its key is there and its context fits, and never if it is too long."""
    wrapped = parse_wrapping_header(double.seal(b"x")).raw
    lie = wrapped + b"\x01\x00" + bytes(64)
    with (folder / "f").open("wb") as file:
        file.write(lie)
        file.truncate(64 * 1024 * 1024)
    for error in (EnvelopeRejected, NotPermitted):
        double.allow_data_keys = error is EnvelopeRejected
        tracemalloc.start()
        with pytest.raises(error):
            read(folder / "f", client)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 16 * 1024 * 1024
    double.calls.clear()
    os.truncate(folder / "f", MAX_WHOLE_BYTES + MAX_OVERHEAD_BYTES + 1)
    with pytest.raises(EnvelopeRejected):
        read(folder / "f", client)
    assert double.calls == []
