"""What -o and -i may name: plain files, links, pipes, sockets, devices and open descriptors.

Only a plain file is replaced. A descriptor is read or written where it stands.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from tests.unit.cli_process import on_terminal, run
from tests.unit.envelope_double import EnvelopeDouble

import keyside
from keyside.envelope import parse_wrapping_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYSIDE = f"{sys.executable} -m keyside.cli"
LARGE = os.urandom(3 * 1024 * 1024 + 5)
OUTPUTS = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "link")
INPUTS = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "link")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, double: EnvelopeDouble) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    (made / "e").write_bytes(double.seal(b"secret\n"))
    return made


def shell(double: EnvelopeDouble, folder: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script of bash, in which $K is the command, in that directory."""
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "KEYSIDE_SOCKET": double.socket, "K": KEYSIDE},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, ">") for name in OUTPUTS), ("/dev/stdout", ">>"), ("/dev/stdout", "1<>")],
)
def test_a_descriptor_is_written_to_where_it_stands(
    double: EnvelopeDouble, folder: Path, name: str, way: str
) -> None:
    """What others wrote before and behind it is there too, in a file and in a pipe."""
    (folder / "link").symlink_to("/dev/stdout")
    script = f"{{ echo header; $K decrypt -i e -o {name} || exit; echo footer; }}"
    finished = shell(double, folder, f"{script} {way} all")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert (folder / "all").read_bytes() == b"header\nsecret\nfooter\n"
    assert sorted(path.name for path in folder.iterdir()) == ["all", "e", "link"]


@pytest.mark.parametrize("name", INPUTS)
def test_a_descriptor_is_read_from_where_it_stands(
    double: EnvelopeDouble, folder: Path, name: str
) -> None:
    """Behind what somebody else has read of it already."""
    (folder / "link").symlink_to("/dev/fd/0")
    finished = shell(double, folder, f"cat e | $K decrypt -i {name}")
    assert (finished.returncode, finished.stdout) == (0, b"secret\n")
    (folder / "e").write_bytes(b"0123456789" + double.seal(b"secret\n"))
    script = f"{{ dd bs=10 count=1 status=none >first; $K decrypt -i {name}; }} <e"
    finished = shell(double, folder, script)
    assert (finished.returncode, finished.stdout) == (0, b"secret\n")


def test_process_substitution_and_other_descriptors(double: EnvelopeDouble, folder: Path) -> None:
    """Of every command that has -i and -o."""
    for command, got in (("decrypt", b"secret\n"), ("rewrap", None), ("reencrypt", None)):
        finished = shell(double, folder, f"$K {command} -i <(cat e) -o >(cat) | cat")
        assert finished.stderr == b""
        assert finished.stdout == got if got else double.open(finished.stdout) == b"secret\n"
    finished = shell(double, folder, "echo new | $K encrypt mail -o /dev/fd/7 7>seven")
    assert finished.returncode == 0
    assert double.open((folder / "seven").read_bytes()) == b"new\n"


def test_a_large_stream_takes_the_same_ways(double: EnvelopeDouble, folder: Path) -> None:
    (folder / "plain").write_bytes(LARGE)
    script = """{ echo header; $K encrypt mail -i /dev/stdin -o /dev/stdout; } <plain >sealed
    { read; $K decrypt -i /dev/stdin -o /dev/stdout; } <sealed >opened"""
    assert shell(double, folder, script).returncode == 0
    sealed = (folder / "sealed").read_bytes()
    assert parse_wrapping_header(sealed[len("header\n") :]).key_name == "mail"
    assert (folder / "opened").read_bytes() == LARGE


def test_a_socket_is_written_to_and_read_from(double: EnvelopeDouble, folder: Path) -> None:
    """By its descriptor: by a path it could not be opened."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((folder / "e").read_bytes())
        ours.shutdown(socket.SHUT_WR)
        subprocess.run(
            [*KEYSIDE.split(), "decrypt", "-i", "/dev/stdin", "-o", "/dev/stdout"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            env={**os.environ, "KEYSIDE_SOCKET": double.socket},
            timeout=60,
            check=True,
        )
        theirs.close()
        assert ours.recv(100) == b"secret\n"


def test_a_pipe_that_does_not_wait_is_waited_for(double: EnvelopeDouble, folder: Path) -> None:
    """Its other end may have set O_NONBLOCK, which holds for ours."""
    (folder / "plain").write_bytes(LARGE)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got: list[bytes] = []

    def drain() -> None:
        while part := os.read(reader, 65536):
            got.append(part)

    command = [*KEYSIDE.split(), "encrypt", "mail", "-i", str(folder / "plain"), "-o", "/dev/fd/1"]
    environment = {**os.environ, "KEYSIDE_SOCKET": double.socket}
    with subprocess.Popen(command, stdout=writer, env=environment) as process:
        os.close(writer)
        thread = threading.Thread(target=drain)
        thread.start()
        assert process.wait(60) == 0
        thread.join(10)
    os.close(reader)
    assert len(b"".join(got)) > len(LARGE)


def test_a_named_pipe_a_device_and_links_to_them(double: EnvelopeDouble, folder: Path) -> None:
    """They are written to, and stay what they are."""
    os.mkfifo(folder / "pipe")
    (folder / "to-pipe").symlink_to("pipe")
    (folder / "to-null").symlink_to("/dev/null")
    for name in ("pipe", "to-pipe"):
        finished = shell(double, folder, f"cat pipe & $K decrypt -i e -o {name}; wait")
        assert (finished.returncode, finished.stdout) == (0, b"secret\n")
    given = ("decrypt", "-i", str(folder / "e"), "-o", str(folder / "to-null"))
    assert run(double, *given).returncode == 0
    assert (folder / "pipe").is_fifo()
    assert (folder / "to-null").is_symlink()
    finished = shell(double, folder, "cat e >pipe & $K decrypt -i to-pipe; wait")
    assert finished.stdout == b"secret\n"


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("-o /dev/fd/77", 73, b"can't create /dev/fd/77: No such file"),
        ("-o /dev/fd/7 7<e", 73, b"can't create /dev/fd/7: Bad file descriptor"),
        ("-o unix", 73, b"can't create unix: No such device or address"),
        ("-o /dev/full", 74, b"can't write /dev/full: No space left on device"),
        ("-o /dev/stdout >/dev/full", 74, b"can't write /dev/stdout: No space left on device"),
        ("-o folder", 73, b"can't create folder: Is a directory"),
        ("-o loop", 73, b"can't create loop: Too many levels of symbolic links"),
        ("-i /dev/fd/77", 66, b"can't read /dev/fd/77: No such file"),
        ("-i /dev/fd/7 7>sink", 66, b"can't read /dev/fd/7: Bad file descriptor"),
        ("-i unix", 66, b"can't read unix: No such device or address"),
        ("-i none", 66, b"can't read none: No such file or directory"),
    ],
)
def test_what_cant_be_used_is_said_before_anything_is_sent(
    double: EnvelopeDouble, folder: Path, given: str, code: int, words: bytes
) -> None:
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        listener.bind("unix")
        source = "" if "-i" in given else "-i e "
        finished = shell(double, folder, f"$K decrypt {source}{given}")
    assert finished.returncode == code
    assert words in finished.stderr
    assert double.calls == ([] if code != 74 else ["Decrypt"])


@pytest.mark.parametrize(
    "given",
    [
        "encrypt mail -i e >>e",
        "rewrap -i e -o /dev/stdout 1<>e",
        "reencrypt -o /dev/fd/1 <e >>e",
        "decrypt -i linked >>e",
    ],
)
def test_a_file_is_not_written_to_while_it_is_read(
    double: EnvelopeDouble, folder: Path, given: str
) -> None:
    """By none of its names; the file is as it was."""
    os.link(folder / "e", folder / "linked")
    before = (folder / "e").read_bytes()
    finished = shell(double, folder, f"$K {given}")
    assert finished.returncode == 64
    assert b"the output is the input" in finished.stderr
    assert (folder / "e").read_bytes() == before


@pytest.mark.parametrize("other", ["symlink", "hard link", "path"])
def test_input_and_output_may_be_one_file_of_two_names(
    double: EnvelopeDouble, folder: Path, other: str
) -> None:
    """A link stays and its target is replaced; another hard link keeps the old content."""
    e, target = folder / "e", folder / "target"
    before = e.read_bytes()
    match other:
        case "symlink":
            target.symlink_to("e")
        case "hard link":
            os.link(e, target)
        case "path":
            target = folder / ".." / "files" / "e"
    double.rotate()
    finished = run(double, "rewrap", "-i", str(e), "-o", str(target))
    assert finished.returncode == 0
    assert parse_wrapping_header(target.read_bytes()).version_number == 2
    if other == "hard link":
        assert b"not kept: 1 other name, of the former content" in finished.stderr
        assert e.read_bytes() == before
    else:
        assert finished.stderr == b""
        assert e.read_bytes() == target.read_bytes()
        assert target.is_symlink() == (other == "symlink")


def test_a_terminal_is_guarded_by_whatever_name(double: EnvelopeDouble, folder: Path) -> None:
    """Binary goes to no terminal but by -o -; text may be seen."""
    (folder / "binary").write_bytes(double.seal(b"\x1b[31m"))
    for name in ("/dev/stdout", "/dev/tty"):
        code, shown = on_terminal(double, "encrypt", "mail", "-o", name, typed=b"")
        assert code == 64
        assert b"or -o - to insist" in shown
        given = ["decrypt", "-o", name, "-i"]
        code, shown = on_terminal(double, *given, str(folder / "binary"), typed=b"")
        assert code == 64
        assert b"\x1b[31m" not in shown
        code, shown = on_terminal(double, *given, str(folder / "e"), typed=b"")
        assert code == 0
        assert b"secret" in shown


@pytest.fixture
def client(double: EnvelopeDouble) -> Iterator[keyside.Client]:
    with keyside.Client(double.socket, timeout_s=10) as made:
        yield made


def test_the_library_takes_descriptors_too(folder: Path, client: keyside.Client) -> None:
    """Of its own process, for reading and for writing, but not for what must not be there yet."""
    place = folder / "all"
    with place.open("w+b", buffering=0) as file:
        file.write(b"header\n")
        path = f"/dev/fd/{file.fileno()}"
        with keyside.open(path, "wb", key="mail", client=client) as sealed:
            sealed.write(b"secret")
        file.write(b"footer\n")
        whole = place.read_bytes()
        assert whole.startswith(b"header\n")
        assert whole.endswith(b"footer\n")
        (folder / "f").write_bytes(b"header\n" + whole[7:-7])
        with pytest.raises(FileExistsError):
            keyside.open(path, "xb", key="mail", client=client)
    with (folder / "f").open("rb", buffering=0) as file:
        file.seek(7)
        with keyside.open(f"/proc/self/fd/{file.fileno()}", client=client) as opened:
            assert opened.read() == b"secret"


def test_the_names_of_another_processs_descriptors(folder: Path, client: keyside.Client) -> None:
    """A pipe of it is written to; a file that has lost its name can't be replaced."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with keyside.open(f"/proc/{process.pid}/fd/0", "wb", key="mail", client=client) as sealed:
            sealed.write(b"secret")
        process.stdin.close()
        assert parse_wrapping_header(process.stdout.read()).key_name == "mail"
    gone = folder / "gone"
    with gone.open("wb") as file, subprocess.Popen(["sleep", "60"], stdout=file) as process:
        gone.unlink()
        with pytest.raises(FileNotFoundError):
            keyside.open(f"/proc/{process.pid}/fd/1", "wb", key="mail", client=client)
        process.kill()
    assert [path.name for path in folder.iterdir()] == ["e"]
