"""``keyside audit verify``: what it says, and what it exits with."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from tests.unit.audit_chain import Chain, make_chain

from keyside.audit import parse_line
from keyside.cli import exits
from keyside.cli.audit_verify import verify
from keyside.cli.exits import CommandError
from keyside_sidecar.audit.reading import Filters, search_records

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def chain() -> Chain:
    return make_chain(600, files=3)


@pytest.fixture
def log(chain: Chain, tmp_path: Path) -> Path:
    """The directory of a log in three files."""
    for index, lines in enumerate(chain.files):
        first = sum(map(len, chain.files[:index])) + 1
        last = index + 1 == len(chain.files)
        name = "audit.jsonl" if last else f"audit-{first:012d}.jsonl"
        (tmp_path / name).write_bytes(b"".join(lines))
    (tmp_path / "kept.json").write_bytes(chain.checkpoints[-1])
    return tmp_path


def run(*arguments: str | Path) -> tuple[int, str]:
    """Return the exit code and the output, as ``keyside`` would have them."""
    done = CliRunner().invoke(verify, list(map(str, arguments)), standalone_mode=False)
    match done.exception:
        case None:
            return done.return_value, done.output
        case CommandError() as error:
            return error.exit_code, str(error)
        case click.ClickException() as error:
            return exits.USAGE, str(error)
        case error:
            raise error


def test_closed_and_intact_is_0(log: Path, chain: Chain) -> None:
    code, said = run("--public-key", chain.public_key.hex(), log)
    assert code == 0
    assert "integrity:    authentic" in said
    assert "completeness: closed" in said


def test_without_anchor_it_says_so(log: Path) -> None:
    code, said = run(log)
    assert code == 0
    assert "unauthenticated" in said
    assert "--public-key" in said


def test_open_ended_is_1(log: Path, chain: Chain) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(file.read_bytes()[:-100])
    code, said = run("--public-key", chain.public_key.hex(), log)
    assert code == 1
    assert "completeness: open-ended" in said
    assert "torn:" in said
    assert "unsealed:" in said


def test_changed_is_65_with_its_place(log: Path, chain: Chain) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"version":3', b'"version":4', 1))
    code, said = run("--public-key", chain.public_key.hex(), log)
    assert code == 65
    assert "CHANGED: edited" in said
    assert "audit.jsonl line 2, where record" in said


def test_cut_is_65_and_not_called_changed(log: Path, chain: Chain) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(b"".join(chain.files[2][:-2]))
    code, said = run("--checkpoint", log / "kept.json", "--public-key", chain.public_key.hex(), log)
    assert code == 65
    assert "integrity:    authentic" in said
    assert "completeness: cut" in said


def test_authentic_says_how_far(log: Path, chain: Chain) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(b"".join(chain.files[2][:-1]))
    code, said = run("--public-key", chain.public_key.hex(), log)
    sealed = max(
        parse_line(line.strip()).sequence
        for line in chain.files[2][:-1]
        if b'"event":"checkpoint"' in line
    )
    assert code == 1
    assert f"authentic to record {sealed:,}; {chain.sequence - 1 - sealed:,} records after" in said


def test_log_of_which_nothing_is_left_is_65(log: Path, chain: Chain) -> None:
    for file in log.glob("*.jsonl"):
        file.write_bytes(b"")
    code, said = run("--public-key", chain.public_key.hex(), log)
    assert code == 65
    assert "authentic" not in said


def test_kept_checkpoints_may_be_many_and_of_an_older_log_too(log: Path, chain: Chain) -> None:
    """What the system's log holds of this host; the newest shows a cut end."""
    kept = log / "kept.json"
    kept.write_bytes(b"".join(make_chain(300).checkpoints + chain.checkpoints))
    key = ["--public-key", chain.public_key.hex()]
    assert run("--checkpoint", kept, *key, log)[0] == 0
    assert run("--checkpoint", kept, log)[0] == exits.USAGE
    (log / "audit.jsonl").write_bytes(b"".join(chain.files[2][:-2]))
    code, said = run("--checkpoint", kept, *key, log)
    assert code == 65
    assert "completeness: cut" in said


def test_log_of_more_files_than_may_be_open(tmp_path: Path) -> None:
    chain = Chain()
    chain.seal("start")
    for _ in range(120):
        chain.rotate()
    chain.close()
    for lines in chain.files[:-1]:
        name = f"audit-{parse_line(lines[0].strip()).sequence:012d}.jsonl"
        (tmp_path / name).write_bytes(b"".join(lines))
    (tmp_path / "audit.jsonl").write_bytes(b"".join(chain.files[-1]))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        assert run("--public-key", chain.public_key.hex(), tmp_path)[0] == 0
        found = search_records(tmp_path / "audit.jsonl", Filters(), page_size=1000)
        assert len(found.records) == chain.sequence
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_files_in_any_order_each_once(log: Path, chain: Chain) -> None:
    names = sorted(log.glob("*.jsonl"), reverse=True)
    code, said = run("--public-key", chain.public_key.hex(), *names, names[0], log)
    assert code == 0, said


def test_missing_file_in_the_middle_is_removed(log: Path, chain: Chain) -> None:
    files = sorted(log.glob("*.jsonl"))
    files[1].unlink()
    code, said = run("--public-key", chain.public_key.hex(), log)
    assert code == 65
    assert "CHANGED: removed" in said


def test_json_says_everything(log: Path, chain: Chain) -> None:
    code, said = run("--json", "--checkpoint", log / "kept.json", log)
    facts = json.loads(said)
    assert code == facts["exit_code"] == 0
    assert (facts["integrity"], facts["completeness"]) == ("intact", "closed")
    assert facts["authenticated"] is True
    assert facts["change"] is None
    assert facts["last_sequence"] == facts["records"] == chain.sequence
    assert facts["last_checkpoint"]["details"]["kind"] == "stop"


def test_json_of_a_change_has_its_place(log: Path, chain: Chain) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"version":3', b'"version":4', 1))
    code, said = run("--json", "--public-key", chain.public_key.hex(), log)
    change = json.loads(said)["change"]
    assert code == 65
    assert change["kind"] == "edited"
    assert change["line"] == 2
    assert change["sequence"] == sum(map(len, chain.files[:2])) + 2


WRONG = [
    ("no such file", ["{log}/none.jsonl"], exits.NO_INPUT),
    ("no log in a directory", ["{log}/empty"], exits.NO_INPUT),
    ("a device", ["/dev/null"], exits.NO_INPUT),
    ("no files", [], exits.USAGE),
    ("a short key", ["--public-key", "00", "{log}"], exits.USAGE),
    ("no checkpoint", ["--checkpoint", "{log}/audit.jsonl", "{log}"], exits.USAGE),
    ("no checkpoint file", ["--checkpoint", "{log}/none", "{log}"], exits.NO_INPUT),
    ("two logs", ["{log}/two"], exits.USAGE),
]


@pytest.mark.parametrize(
    ("arguments", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_wrong_arguments(log: Path, arguments: list[str], code: int) -> None:
    (log / "empty").mkdir()
    (log / "two").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (log / "two" / name).touch()
    assert run(*(text.format(log=log) for text in arguments))[0] == code
