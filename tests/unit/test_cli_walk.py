"""keyside rewrap and reencrypt over files and directories: what is replaced, kept and refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.unit.cli_process import call, on_terminal, run
from tests.unit.envelope_double import EnvelopeDouble
from tests.unit.sidecar_double import Failure

from keyside import _temporary as temporary
from keyside.cli import replacing
from keyside.envelope import (
    DEFAULT_SUITE,
    SegmentSealer,
    generate_data_key,
    parse_wrapping_header,
    seal,
    wrap_data_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.sidecar_double import Double


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EnvelopeDouble]:
    with EnvelopeDouble(tmp_path / "k.sock") as running:
        yield running


@pytest.fixture
def tree(tmp_path: Path, double: EnvelopeDouble, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six envelopes under version 1 in three directories, and a text; version 2 is current."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    top = tmp_path / "tree"
    (top / "a" / "b").mkdir(parents=True)
    for number, folder in enumerate([top, top, top / "a", top / "a", top / "a" / "b", top / "a"]):
        (folder / f"{number}.sealed").write_bytes(double.seal(b"plain %d" % number))
    (top / "readme.txt").write_text("KSE is no envelope")
    double.rotate()
    return top


def sealed(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(tree.rglob("*.sealed"))}


def version_of(envelope: bytes) -> int:
    return parse_wrapping_header(envelope).version_number


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.is_dir()}


def opens(double: EnvelopeDouble, tree: Path) -> None:
    """Every envelope opens, and holds what its name says."""
    for name, envelope in sealed(tree).items():
        assert double.open(envelope) == b"plain " + name.split(".")[0].encode()


@pytest.mark.parametrize("command", ["rewrap", "reencrypt"])
def test_a_directory_is_walked_and_every_envelope_is_replaced(
    double: EnvelopeDouble, tree: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sealed(tree)
    assert call(double, command, str(tree)) == 0
    word = "rewrapped" if command == "rewrap" else "re-encrypted"
    assert capsys.readouterr().out == f"6 files {word}; 1 no envelope\n"
    after = sealed(tree)
    assert {version_of(envelope) for envelope in after.values()} == {2}
    opens(double, tree)
    header = len(parse_wrapping_header(before["0.sealed"]).raw)
    carried = [before[name][header:] == after[name][header:] for name in before]
    assert set(carried) == {command == "rewrap"}
    assert len(names(tree)) == 7


def test_rewrap_passes_over_what_is_current_without_a_call(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(double, "rewrap", str(tree)) == 0
    inodes = {path: path.stat().st_ino for path in tree.rglob("*.sealed")}
    double.calls.clear()
    assert call(double, "rewrap", str(tree), str(tree / "a")) == 0
    assert double.calls == ["GetKey"]
    assert {path: path.stat().st_ino for path in tree.rglob("*.sealed")} == inodes
    assert "0 files rewrapped; 6 current already" in capsys.readouterr().out


def test_rewrap_sends_headers_only_and_streams_the_rest(
    double: EnvelopeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any size, in constant memory: 25 MiB is more than any message."""
    monkeypatch.setattr("keyside._sparse_copying._BLOCK_BYTES", 1 << 16)
    data_key = generate_data_key()
    sealer = SegmentSealer(data_key, {}, segment_size=1 << 20)
    big = tmp_path / "big"
    with big.open("wb") as file:
        header = wrap_data_key(double.current, data_key, DEFAULT_SUITE)
        file.write(header)
        file.write(sealer.header)
        for _ in range(24):
            file.write(sealer.seal_segment(bytes(1 << 20), is_last=False))
        file.write(sealer.seal_segment(b"end", is_last=True))
    body = big.read_bytes()[len(header) :]
    double.rotate()
    assert call(double, "rewrap", str(big)) == 0
    assert big.read_bytes()[len(header) :] == body
    assert version_of(big.read_bytes()) == 2
    assert double.rewrapped == [header]


def test_a_header_in_a_file_of_its_own_is_rewrapped(double: EnvelopeDouble, tmp_path: Path) -> None:
    alone = tmp_path / "header"
    alone.write_bytes(parse_wrapping_header(double.seal(b"x")).raw)
    double.rotate()
    assert call(double, "rewrap", str(alone)) == 0
    assert version_of(alone.read_bytes()) == 2


def test_mode_times_and_attributes(double: EnvelopeDouble, tree: Path) -> None:
    """The mode is kept, set-id bits too; extended attributes are, where the file system has any."""
    one, two = tree / "0.sealed", tree / "1.sealed"
    one.chmod(0o640)
    two.chmod(0o2604)
    can = set_attribute(one, "user.note", b"kept")
    assert call(double, "rewrap", str(tree)) == 0
    assert stat.S_IMODE(one.stat().st_mode) == 0o640
    assert stat.S_IMODE(two.stat().st_mode) == 0o2604
    if can:
        assert os.getxattr(one, "user.note") == b"kept"


def set_attribute(path: Path, name: str, value: bytes) -> bool:
    try:
        os.setxattr(path, name, value)
    except OSError:
        return False
    return True


# user::rw-, user:12345:rw-, group::---, mask::rw-, other::---
ACCESS_LIST = bytes.fromhex(
    "0200000001000600ffffffff020006003930000004000000ffffffff10000600ffffffff20000000ffffffff"
)


def test_access_control_lists_are_kept_and_none_is_inherited(
    double: EnvelopeDouble, tree: Path
) -> None:
    """Without the list its mask would be the group's rights; a directory's default lets others in.

    (On a file system without such lists there is nothing to keep.)
    """
    one, two = tree / "0.sealed", tree / "1.sealed"
    if not set_attribute(one, "system.posix_acl_access", ACCESS_LIST):
        return
    two.chmod(0o640)
    os.setxattr(tree, "system.posix_acl_default", ACCESS_LIST)
    assert call(double, "rewrap", str(tree)) == 0
    assert os.getxattr(one, "system.posix_acl_access") == ACCESS_LIST
    assert "system.posix_acl_access" not in os.listxattr(two)
    assert stat.S_IMODE(two.stat().st_mode) == 0o640


@pytest.mark.root
def test_the_owner_is_kept(double: EnvelopeDouble, tree: Path) -> None:
    os.chown(tree / "0.sealed", 12345, 12346)
    assert call(double, "reencrypt", str(tree)) == 0
    status = (tree / "0.sealed").stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)


def test_a_file_whose_owner_cant_be_kept_is_left_alone(
    double: EnvelopeDouble,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    before = sealed(tree)
    fstat = os.fstat

    def another_owner(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if status.st_nlink:  # it has a name, so it is not the one that is being written
            return status
        fields = list(status)
        fields[4] = status.st_uid + 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "fstat", another_owner)
    assert call(double, "rewrap", str(tree / "0.sealed")) == 77
    shown = capsys.readouterr()
    assert "can't be kept" in shown.err
    assert "0 files rewrapped; 1 failed" in shown.out
    assert sealed(tree) == before
    assert len(names(tree)) == 7


@pytest.mark.parametrize("command", ["rewrap", "reencrypt"])
def test_a_file_that_changed_meanwhile_is_left_alone(
    double: EnvelopeDouble,
    tree: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place, by another file of its name, by its mode, and by going away."""
    new = double.seal(b"plain 0")
    others = iter(["write", "replace", "mode", "remove"])
    finish = replacing.Replacement.finish

    def meddle(replacement: replacing.Replacement) -> None:
        finish(replacement)
        path = tree / "0.sealed"
        match next(others):
            case "write":
                path.write_bytes(new)
            case "replace":
                (tree / "new").write_bytes(new)
                (tree / "new").rename(path)
            case "mode":
                path.chmod(0o600)
            case "remove":
                path.unlink()

    monkeypatch.setattr(replacing.Replacement, "finish", meddle)
    for _ in range(4):
        (tree / "0.sealed").write_bytes(seal_under(double, 0, b"plain 0"))
        assert call(double, command, str(tree / "0.sealed")) == 75
        assert "it was changed meanwhile, and was left alone" in capsys.readouterr().err
    assert not (tree / "0.sealed").exists()
    assert not [name for name in names(tree) if temporary.is_temporary(name)]


def seal_under(double: EnvelopeDouble, place: int, plaintext: bytes) -> bytes:
    return seal(double.materials[place], plaintext, {}, DEFAULT_SUITE)


def test_symbolic_links_are_not_followed_unless_named(
    double: EnvelopeDouble, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.sealed").write_bytes(seal_under(double, 0, b"plain x"))
    (tree / "file-link").symlink_to(outside / "x.sealed")
    (tree / "folder-link").symlink_to(outside)
    os.mkfifo(tree / "pipe")
    assert call(double, "rewrap", str(tree)) == 0
    assert "3 links or special files passed over" in capsys.readouterr().out
    assert version_of((outside / "x.sealed").read_bytes()) == 1
    assert call(double, "rewrap", str(tree / "file-link")) == 0
    assert version_of((outside / "x.sealed").read_bytes()) == 2
    assert (tree / "file-link").is_symlink()


def test_what_cant_be_done_is_named_and_the_rest_is_done(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hard links, damaged envelopes, other formats, other things; the first one's code is last."""
    os.link(tree / "0.sealed", tree / "0-again")
    damaged = (tree / "1.sealed").read_bytes()
    (tree / "1.sealed").write_bytes(damaged[:100])
    (tree / "cut\x1b[31m\n").write_bytes(damaged[:-20])
    (tree / "future").write_bytes(b"KSE\x02" + bytes(100))
    assert call(double, "rewrap", str(tree)) == 73
    shown = capsys.readouterr()
    assert "4 files rewrapped; 1 no envelope; 5 failed" in shown.out
    assert "0.sealed: it has 1 other name (hard links), which would keep the old" in shown.err
    assert "1.sealed: it begins as an envelope does, but is cut short or damaged" in shown.err
    assert "cut\\x1b[31m\\x0a: it begins as an envelope" in shown.err
    assert "future: it is an envelope of format version 2" in shown.err
    assert shown.err.count("what to do") == 1


def test_what_was_named_must_be_an_envelope(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(double, "rewrap", str(tree / "readme.txt")) == 65
    assert "it is no envelope" in capsys.readouterr().err
    assert call(double, "rewrap", str(tree / "none"), str(tree / "2.sealed")) == 66
    assert "none: can't read it: No such file or directory" in capsys.readouterr().err
    assert call(double, "rewrap", "/dev/null") == 65
    for wrong in (
        ["rewrap", ""],
        ["rewrap", str(tree), "-i", "x"],
        ["rewrap", str(tree), "-o", "-"],
        ["rewrap", "--dry-run"],
        ["rewrap", "--json"],
        ["reencrypt", "--journal", "x"],
        ["reencrypt", "--restart"],
    ):
        assert call(double, *wrong) == 64
    assert double.rewrapped == []


def test_a_refusal_of_one_envelope_does_not_stop_the_others(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "a" / "other.sealed").write_bytes(double.seal(b"plain other"))
    double.rotate()
    double.refused = {2}
    assert call(double, "reencrypt", "--json", str(tree)) == 65
    shown = capsys.readouterr()
    assert shown.err == ""
    facts = json.loads(shown.out)
    path = str(tree / "a" / "other.sealed")
    assert facts == {
        "command": "reencrypt",
        "dry_run": False,
        "done": 6,
        "already_done": 0,
        "not_envelopes": 1,
        "passed_over": 0,
        "failed": 1,
        "failures": [
            {
                "path": path,
                "message": "version 2 of mail is disabled",
                "remedy": "an operator can enable it again",
                "exit_code": 65,
            }
        ],
        "stopped": None,
    }


def test_another_context_is_one_files_failure(double: EnvelopeDouble, tree: Path) -> None:
    (tree / "bound.sealed").write_bytes(double.seal(b"x", {"a": "1"}))
    double.rotate()
    before = sealed(tree)
    assert call(double, "reencrypt", "-c", "a=1", str(tree)) == 65
    after = sealed(tree)
    assert {name for name in before if before[name] != after[name]} == {"bound.sealed"}
    assert double.open(after["bound.sealed"], {"a": "1"}) == b"x"


def test_a_refused_caller_stops_the_walk_at_once(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    double.failures = [
        Failure(grpc.StatusCode.PERMISSION_DENIED, "a person's", reason="PEER_PERSON_LOGIN")
    ]
    assert call(double, "reencrypt", str(tree)) == 77
    assert double.calls == ["Reencrypt"]
    assert "stopped before the end: a person's" in capsys.readouterr().out


def test_a_busy_sidecar_is_given_time(
    double: EnvelopeDouble, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyside.cli.rewriting._BUSY_PAUSES_S", (0.0, 0.0))
    busy = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", reason="TOO_MANY_CALLS")
    double.failures = [busy, busy]
    assert call(double, "reencrypt", str(tree)) == 0
    opens(double, tree)


def test_a_dry_run_changes_nothing_and_names_what_it_would(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sealed(tree)
    for command, word in (("rewrap", "rewrap"), ("reencrypt", "re-encrypt")):
        assert call(double, command, "--dry-run", str(tree)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"would {word} {tree / '0.sealed'}"
        assert len(lines) == 7
        assert lines[-1].startswith("6 files would be re")
    assert sealed(tree) == before
    assert set(double.calls) == {"GetKey"}
    assert not (tree.parent / "state").exists()


def test_a_newer_version_is_noticed_while_walking(
    double: EnvelopeDouble, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under a version newer than the one that was learnt is asked about again."""
    monkeypatch.setattr("keyside.cli.rewriting._RELEARN_SOONEST_S", 0.0)
    (tree / "0.sealed").write_bytes(seal_under(double, 0, b"plain 0"))
    double.rotate()
    (tree / "6.sealed").write_bytes(double.seal(b"plain 6"))
    double.materials.pop()
    assert call(double, "rewrap", "--dry-run", str(tree / "0.sealed")) == 0
    asked = double.calls.count("GetKey")
    assert call(double, "rewrap", "--dry-run", str(tree / "0.sealed"), str(tree / "6.sealed")) == 0
    assert double.calls.count("GetKey") == asked + 2


@pytest.mark.root
def test_without_the_right_to_write_there_it_says_so(
    double: EnvelopeDouble, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sealed(tree)
    for folder in (tree, *tree.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    with as_nobody(tree.parent):
        assert call(double, "rewrap", str(tree / "0.sealed")) == 73
    assert "can't create a file beside it: Permission denied" in capsys.readouterr().err
    assert sealed(tree) == before


class as_nobody:  # noqa: N801
    """Be another user for a while."""

    def __init__(self, home: Path) -> None:
        self._folders = [home, *list(home.parents)[:-2]]

    def __enter__(self) -> None:
        self._modes = [(folder, folder.stat().st_mode) for folder in self._folders]
        for folder in self._folders:
            folder.chmod(folder.stat().st_mode | 0o055)
        (self._folders[0] / "k.sock").chmod(0o777)
        os.seteuid(12345)

    def __exit__(self, *_: object) -> None:
        os.seteuid(0)
        for folder, mode in self._modes:
            folder.chmod(stat.S_IMODE(mode))


def test_one_envelope_goes_through_a_pipe(double: EnvelopeDouble, tmp_path: Path) -> None:
    envelope = double.seal(b"abc", {"a": "1"})
    double.rotate()
    finished = run(double, "reencrypt", "-c", "a=1", stdin=envelope)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert double.open(finished.stdout, {"a": "1"}) == b"abc"
    assert version_of(finished.stdout) == 2
    path = tmp_path / "one"
    path.write_bytes(envelope)
    assert call(double, "reencrypt", "-c", "a=1", "-i", str(path), "-o", str(path)) == 0
    assert version_of(path.read_bytes()) == 2


def test_progress_is_shown_on_a_terminal_and_taken_away(double: EnvelopeDouble, tree: Path) -> None:
    double.pause_s = 0.15
    code, shown = on_terminal(double, "rewrap", str(tree), typed=b"")
    assert code == 0
    assert b"\r\x1b[K1 file, 1 rewrapped, " in shown
    assert shown.endswith(b"\r\x1b[K6 files rewrapped; 1 no envelope\r\n")
    piped: Double = double
    assert run(piped, "rewrap", str(tree)).stderr == b""
