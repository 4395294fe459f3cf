"""A verifier written from docs/audit.md alone agrees with ``keyside audit verify`` on every log."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.unit.audit_chain import Chain, make_chain, rehash
from tests.unit.audit_scene import Scene, action_record, call_record, make_config
from tests.unit.test_audit_verification import CHANGES
from tests.unit.test_second_reader import load

from keyside.audit import cover, encode_json, encode_line, hash_record, parse_line
from keyside.cli.audit_verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "tests/vectors/second_verifier.py"
T = "2026-11-25T22:45:11.000000Z"
second_verifier = load(SOURCE)

Files = dict[str, bytes]


@dataclass
class Log:
    """A log's files, and what is known of it from elsewhere."""

    files: Files
    public_key: bytes | None = None
    kept: list[bytes] = field(default_factory=list)


def ask_keyside(log: Log, directory: Path) -> dict[str, Any]:
    """Return what the command says, of files on the disk."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    arguments = ["--json"]
    if log.public_key is not None:
        arguments += ["--public-key", log.public_key.hex()]
    if log.kept:
        (directory / "kept").write_bytes(b"".join(line.strip() + b"\n" for line in log.kept))
        arguments += ["--checkpoint", str(directory / "kept")]
    for name, data in log.files.items():
        (directory / name).write_bytes(data)
        arguments.append(str(directory / name))
    done = CliRunner().invoke(verify, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    found: dict[str, Any] = json.loads(done.output)
    return found


def assert_agreed(log: Log, directory: Path) -> dict[str, Any]:
    """Check that both say the same, and return what Keyside says."""
    theirs = ask_keyside(log, directory)
    ours = second_verifier.verify(log.files, log.public_key, log.kept)
    said = {
        "integrity": "intact" if ours.intact else "changed",
        "authenticated": ours.authenticated,
        "completeness": ours.completeness,
        "records": ours.records,
        "exit_code": ours.exit_code,
    }
    if ours.intact:
        said |= {"unsealed": ours.unsealed, "torn_bytes": ours.torn}
    assert said == {name: theirs[name] for name in said}, (ours.why, theirs["change"])
    return theirs


def read_files(scene: Scene) -> Files:
    return {path.name: path.read_bytes() for path in scene.list_files()}


# --- logs as the recorder writes them


async def work(scene: Scene, count: int = 3) -> None:
    sender = scene.make_sender()
    await sender.wait_attached(5)
    for number in range(count):
        sender.note(call_record(number, caller={"uid": 1001, "exe": "/srv/\udcff"}))
        await sender.record(action_record("intent", details={"comment": "é\u2028\x7f\U0001f600"}))
    await sender.flush()
    await sender.close()


def append(scene: Scene, *records: dict[str, Any]) -> None:
    """Append records that fit the chain, as whoever can write to the file can."""
    last = parse_line(scene.audit.path.read_bytes().splitlines()[-1])
    sequence, head = last.sequence, last.hash
    with scene.audit.path.open("ab") as file:
        for record in records:
            sequence += 1
            facts = {"id": f"f-{sequence}", "time": T, **record}
            covered = cover(sequence, encode_json(facts)[1:-1].encode())
            head = hash_record(head, covered)
            file.write(encode_line(covered, head))


class Writer:
    """A recorder, and what is done to its log between two runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scene = Scene.make(directory, checkpoint_every_s=0.1)

    def stop(self, **audit: Any) -> None:
        """Have it run, and end properly."""
        self._run(**audit)
        assert self.scene.stop() == 0

    def kill(self, **audit: Any) -> None:
        """Have it run, and kill it."""
        self._run(**audit)
        self.scene.kill()

    def _run(self, **audit: Any) -> None:
        if audit:
            self.scene.config = make_config(self.directory, **audit)
        self.scene.start()
        asyncio.run(work(self.scene))

    def add(self, data: bytes) -> None:
        """Append bytes to the log."""
        with self.scene.audit.path.open("ab") as file:
            file.write(data)

    def forge(self, record: dict[str, Any]) -> None:
        """Append a record that fits the chain."""
        append(self.scene, record)

    def rotate(self) -> None:
        """Have it write many files, and be killed between."""
        self.stop(checkpoint_every_s=0.05, rotate_every_s=0.1)
        self.kill()


# One log, from one stage to the next: what is done, and how the log ends then.
STAGES: list[tuple[str, Callable[[Writer], object], str]] = [
    ("fresh", lambda _: None, "open-ended"),
    ("stopped", Writer.stop, "closed"),
    ("stopped and continued", Writer.stop, "closed"),
    ("killed", Writer.kill, "open-ended"),
    ("recovered", Writer.stop, "closed"),
    ("half a line after a proper end", lambda it: it.add(b'{"v":1,"seq":'), "open-ended"),
    ("recovered from half a line", Writer.stop, "closed"),
    ("killed as it started", lambda it: it.forge({"event": "run.start"}), "open-ended"),
    ("recovered from that", Writer.stop, "closed"),
    ("killed again", Writer.kill, "open-ended"),
    ("a long end without a line", lambda it: it.add(b"x" * 200_000), "open-ended"),
    ("recovered from a long end", Writer.stop, "closed"),
    ("killed a third time", Writer.kill, "open-ended"),
    ("a record that fits", lambda it: it.forge(action_record("intent")), "open-ended"),
    ("recovered with that record", Writer.stop, "closed"),
    ("several files, and killed", Writer.rotate, "open-ended"),
    ("several files", Writer.stop, "closed"),
]


def make_logs(directory: Path) -> dict[str, tuple[Files, bytes, str]]:
    """Return one real log at every stage: its files, its key, and how it ends."""
    writer = Writer(directory)
    logs: dict[str, tuple[Files, bytes, str]] = {}
    try:
        for name, act, completeness in STAGES:
            act(writer)
            logs[name] = read_files(writer.scene), writer.scene.public_key, completeness
    finally:
        writer.scene.end()
    return logs


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Files, bytes, str]]:
    return make_logs(tmp_path_factory.mktemp("logs"))


def list_checkpoints(files: Files) -> list[bytes]:
    return [
        line
        for data in files.values()
        for line in data.split(b"\n")[:-1]
        if b'"event":"checkpoint"' in line
    ]


def test_both_find_every_real_log_as_it_was_written(
    logs: dict[str, tuple[Files, bytes, str]], tmp_path: Path
) -> None:
    for name, (files, key, completeness) in logs.items():
        seals = list_checkpoints(files)
        found = assert_agreed(Log(files, key), tmp_path / "log")
        assert (found["integrity"], found["authenticated"]) == ("intact", True), name
        assert found["completeness"] == completeness, name
        for kept in ([seals[0]], [seals[-1]], seals):
            assert assert_agreed(Log(files, None, kept), tmp_path / "log")["authenticated"], name
        assert not assert_agreed(Log(files), tmp_path / "log")["authenticated"]


def test_both_verify_without_retired_files(
    logs: dict[str, tuple[Files, bytes, str]], tmp_path: Path
) -> None:
    files, key, _ = logs["several files"]
    assert len(files) > 3
    names = list(files)
    for gone in (1, len(names) // 2, len(names) - 1):
        left = {name: files[name] for name in names[gone:]}
        last = list_checkpoints({"gone": files[names[gone - 1]]})[-1:]
        inside = list_checkpoints(left)
        for kept in (last, inside[-1:], [*last, *inside]):
            for public_key in (None, key):
                found = assert_agreed(Log(left, public_key, kept), tmp_path / "log")
                assert (found["integrity"], found["authenticated"]) == ("intact", True)
        assert assert_agreed(Log(left, key), tmp_path / "log")["integrity"] == "changed"
        assert not assert_agreed(Log(left), tmp_path / "log")["authenticated"]
        early = list_checkpoints(files)[:1]
        assert_agreed(Log(left, None, early), tmp_path / "log")


def test_both_find_a_cut_end(logs: dict[str, tuple[Files, bytes, str]], tmp_path: Path) -> None:
    files, key, _ = logs["several files"]
    newest = list_checkpoints(files)[-1:]
    *earlier, last = files
    choices = random.Random(1)
    for _ in range(10):
        cut = {name: files[name] for name in earlier}
        cut[last] = files[last][: choices.randrange(len(files[last]))]
        assert assert_agreed(Log(cut, key), tmp_path / "log")["integrity"] == "intact"
        assert assert_agreed(Log(cut, key, newest), tmp_path / "log")["completeness"] == "cut"


def test_both_say_closed_of_an_end_that_lost_records(tmp_path: Path) -> None:
    chain = make_chain(50, files=1, closed=False)
    chain.append("audit.failed", outcome="failed", reason="AUDIT_NO_SPACE")
    chain.append("audit.restored", outcome="ok", details={"lost": 7, "refused_actions": 2})
    chain.append("run.end", outcome="failed", details={"lost": 12})
    chain.seal("stop")
    found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
    assert (found["integrity"], found["completeness"]) == ("intact", "closed")


def test_log_of_an_earlier_release_is_verified_for_ever(tmp_path: Path) -> None:
    """It was written before lines were held to the forms that they are held to now."""
    place = ROOT / "tests/vectors/audit_v1"
    known = json.loads((place / "known.json").read_text("ascii"))
    files = {path.name: path.read_bytes() for path in sorted(place.glob("*.jsonl"))}
    key = bytes.fromhex(known["public_key"])
    found = assert_agreed(Log(files, key, [known["checkpoint"].encode()]), tmp_path / "log")
    assert (found["integrity"], found["authenticated"]) == ("intact", True)
    assert {name: found[name] for name in known["found"]} == known["found"]


# --- changes


@pytest.fixture(scope="module")
def chain() -> Chain:
    return make_chain(1900, files=3)


def name_files(files: list[list[bytes]]) -> Files:
    return {f"audit-{index}.jsonl": b"".join(lines) for index, lines in enumerate(files)}


def splice_other_log(files: list[list[bytes]], choices: random.Random) -> None:
    at = choices.randrange(200, 400)
    files[0][at : at + 50] = make_chain(700, files=1).files[0][at : at + 50]


MAKERS: dict[str, Callable[[list[list[bytes]], random.Random], object]] = {
    **{name: change for name, (change, _kinds) in CHANGES.items()},
    "another log spliced in": splice_other_log,
}


@pytest.mark.parametrize("name", MAKERS)
def test_both_find_every_change(chain: Chain, tmp_path: Path, name: str) -> None:
    lines = [list(lines) for lines in chain.files]
    MAKERS[name](lines, random.Random(1))
    files, kept = name_files(lines), [chain.checkpoints[0], chain.checkpoints[-1]]
    for log in (Log(files, chain.public_key), Log(files, None, kept)):
        assert assert_agreed(log, tmp_path / "log")["integrity"] == "changed"


def test_both_find_what_was_put_into_a_gap(tmp_path: Path) -> None:
    for event, seal, good in [
        ("run.start", "start", True),
        ("log.continued", "start", True),
        ("run.recovered", "start", True),
        ("audit.failed", "start", True),
        ("run.start", "interval", False),
        ("run.end", "start", False),
        ("access.approve", "start", False),
        ("audit.restored", "start", False),
    ]:
        chain = make_chain(50, files=1)
        chain.append("run.start")
        chain.append(event)
        chain.seal(seal)
        chain.close()
        found = assert_agreed(Log(name_files(chain.files), chain.public_key), tmp_path / "log")
        assert found["integrity"] == ("intact" if good else "changed"), event


# What whoever can write beside the log does to a real one (test_audit_attacks.py).
def _edit_last_seal(data: bytes, *, hash_too: bool) -> bytes:
    *lines, last = data.splitlines(keepends=True)
    changed = last.replace(b'"every_s":1', b'"every_s":2')
    assert changed != last
    if hash_too:
        changed = rehash([changed], parse_line(lines[-1][:-1]).hash)[0]
    return b"".join([*lines, changed])


ATTACKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "the last checkpoint edited": (lambda it: _edit_last_seal(it, hash_too=False), "changed"),
    "the last checkpoint and its hash edited": (
        lambda it: _edit_last_seal(it, hash_too=True),
        "changed",
    ),
    "rubbish in two lines": (lambda it: it + b"garbage\nmore\n", "changed"),
    "an empty line": (lambda it: it + b"\n", "changed"),
    "zeros": (lambda it: it + bytes(4096), "intact"),
    "zeros, and a line's end": (lambda it: it + bytes(4096) + b"\n", "changed"),
    "truncated to nothing": (lambda _it: b"", "changed"),
    "the end of each line as on Windows": (lambda it: it.replace(b"\n", b"\r\n"), "changed"),
    "the last line's end missing": (lambda it: it[:-1], "intact"),
    "a byte order mark": (lambda it: b"\xef\xbb\xbf" + it, "changed"),
    "a very long line": (lambda it: it + b"x" * 500_000 + b"\n", "changed"),
    "a blank line between": (lambda it: it.replace(b"\n", b"\n\n", 1), "changed"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_both_find_what_is_done_to_the_file(
    logs: dict[str, tuple[Files, bytes, str]], tmp_path: Path, name: str
) -> None:
    attack, integrity = ATTACKS[name]
    files, key, _ = logs["stopped"]
    (only,) = files
    found = assert_agreed(Log({only: attack(files[only])}, key), tmp_path / "log")
    assert found["integrity"] == integrity
    assert found["completeness"] != "closed"


@pytest.mark.parametrize("name", ["stopped", "killed", "fresh"])
def test_both_take_records_that_fit_for_what_they_are(
    logs: dict[str, tuple[Files, bytes, str]], tmp_path: Path, name: str
) -> None:
    """After a proper end they were inserted; otherwise they are there and not sealed."""
    files, key, _ = logs[name]
    (only,) = files
    last = parse_line(files[only].splitlines()[-1])
    covered = cover(
        last.sequence + 1, b'"id":"f","time":"%b","event":"access.approve"' % T.encode()
    )
    forged = encode_line(covered, hash_record(last.hash, covered))
    found = assert_agreed(Log({only: files[only] + forged}, key), tmp_path / "log")
    assert found["integrity"] == ("changed" if name == "stopped" else "intact")


def test_logs_of_others_and_kept_checkpoints_of_others(chain: Chain, tmp_path: Path) -> None:
    other = make_chain(100, files=1)
    files = name_files(chain.files)
    for log in (
        Log(name_files(other.files), chain.public_key),
        Log(name_files(other.files), None, [chain.checkpoints[0]]),
        Log(name_files(other.files), None, [chain.checkpoints[-1]]),
        Log(files, chain.public_key, [other.checkpoints[0]]),
        Log(files, None, [other.checkpoints[-1]]),
    ):
        assert_agreed(log, tmp_path / "log")


# --- the verifier itself


def test_second_verifier_shares_no_code_with_keyside() -> None:
    """It imports `cryptography` and the standard library, and nothing of ours."""
    source = (ROOT / SOURCE).read_text("utf-8")
    assert not re.search(r"^\s*(from|import)\s+(keyside|tests)", source, re.MULTILINE)
